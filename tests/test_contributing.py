"""CONTRIBUTING.md and CHANGELOG.md name what is there."""

from __future__ import annotations

import re
import shlex

import pytest

import modelpipes
from modelpipes.commands import VERBS
from tests.shell import CHECKOUT

PACKAGE = CHECKOUT / "pipes" / "modelpipes"
CONTRIBUTING = (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8")
CHANGELOG = (CHECKOUT / "CHANGELOG.md").read_text("utf-8")
PLACES = (
    CHECKOUT,
    PACKAGE,
    PACKAGE / "engine",
    PACKAGE / "chat",
    PACKAGE / "fit" / "compute",
    CHECKOUT / "tests" / "chat" / "voices",
)  # what a path in the text is meant from
LONGEST_LINES = 120


def test_every_path_leads_somewhere() -> None:
    named = re.findall(r"`([a-z_/]+(?:/|\.(?:py|md|toml)))`", CONTRIBUTING)
    assert len(named) > 30
    assert [path for path in named if not any((place / path).exists() for place in PLACES)] == []


def test_every_name_in_capitals_stands_in_the_file_beside_it() -> None:
    found = re.findall(r"`([A-Z][A-Z0-9_]+)`(?: and `([A-Z0-9_]+)`)?,? (?:in )?`([a-z_/]+\.py)`", CONTRIBUTING)
    assert len(found) >= 6
    for *names, path in found:
        (text,) = [(place / path).read_text("utf-8") for place in PLACES if (place / path).is_file()]
        for name in filter(None, names):
            assert re.search(rf"^{name}\b", text, re.MULTILINE), f"{name} in {path}"


@pytest.mark.parametrize("line", re.findall(r"^ {4}(\S.*)", CONTRIBUTING, re.MULTILINE))
def test_every_line_to_type_begins_with_what_is_there(line: str) -> None:
    program, *rest = shlex.split(line, comments=True)
    if program == "make":
        assert f"\n{rest[0]}:" in (CHECKOUT / "Makefile").read_text()
        return
    assert program == ".venv/bin/python" or (CHECKOUT / program).is_file()
    for module in [rest[1]] if rest[:1] == ["-m"] and program.endswith("python") else []:
        assert (CHECKOUT / f"{module.replace('.', '/')}.py").is_file() or (CHECKOUT / module.replace(".", "/")).is_dir()


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(CONTRIBUTING.splitlines()) < LONGEST_LINES


def test_the_changelog_has_this_version_every_command_and_every_name() -> None:
    assert f"\n## {modelpipes.__version__} - " in CHANGELOG
    for verb, (command, _) in VERBS.items():
        assert f"`{command or f'modelpipes {verb}'}" in CHANGELOG, verb
    functions = {name for name in modelpipes.__all__ if f"`{name}`" in CHANGELOG}
    assert {"ask", "Room", "Conversation", "Engine", "plan"} <= functions
