"""docs/troubleshooting.md: each message on it is one that the program has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.shell import CHECKOUT

PAGE = (CHECKOUT / "docs" / "troubleshooting.md").read_text("utf-8")
MESSAGES = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
LEAST_LETTERS = 7  # of a text in the program that are its own: less is found in anything


def pattern_of(node: ast.AST) -> str:
    """What a text in the program may become: its own words, and anything for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(pattern_of(part) if isinstance(part, ast.Constant) else ".*?" for part in node.values)
    return ""


@cache
def patterns() -> list[re.Pattern[str]]:
    """Every text of the program that says enough."""

    def texts() -> Iterator[str]:
        for path in (CHECKOUT / "pipes" / "modelpipes").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant | ast.JoinedStr):
                    yield pattern_of(node)

    enough = {text for text in texts() if len(re.sub(r"\W", "", text)) >= LEAST_LETTERS}
    return [re.compile(text) for text in enough if len(text) < 1000]


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_is_one_that_the_program_has(message: str) -> None:
    assert any(pattern.fullmatch(message) for pattern in patterns()), f"nothing says: {message}"


def test_a_message_that_nothing_says_is_noticed() -> None:
    assert not any(pattern.fullmatch("no server answers at URL: does it run?") for pattern in patterns())


def test_each_message_is_told_once_with_what_to_do() -> None:
    assert len(MESSAGES) > 40 and len(set(MESSAGES)) == len(MESSAGES)
    parts = re.split(r"^#+ .*$", PAGE, flags=re.MULTILINE)
    assert sum(len(part.split()) >= 5 for part in parts) >= len(MESSAGES)


def test_the_readme_leads_there() -> None:
    assert "(docs/troubleshooting.md)" in (CHECKOUT / "README.md").read_text("utf-8")
