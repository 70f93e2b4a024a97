"""The table "Their word, ours" of docs/reference.md: what is typed elsewhere, and the line that does it here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from tests.shell import CHECKOUT

PAGE = "docs/reference.md"
_TITLE = "## Their word, ours\n"
_CELL = re.compile(r"(?<!\\)\|")  # a bar within a command stands as \|


@dataclass(frozen=True)
class Row:
    """Their words, and ours: a command line, or a key of the configuration, which begins with its [section]."""

    theirs: str
    ours: str

    @property
    def is_key(self) -> bool:
        return self.ours.startswith("[")


@cache
def rows() -> tuple[Row, ...]:
    """Every row, from top to bottom."""
    found = []
    for line in _section((CHECKOUT / PAGE).read_text("utf-8")).splitlines():
        if line.startswith("| `"):
            theirs, ours, _ = (cell.replace(r"\|", "|").strip() for cell in _CELL.split(line)[1:-1])
            found.append(Row(theirs, ours.removeprefix("`").removesuffix("`")))
    return tuple(found)


def without_their_words(text: str) -> str:
    """The text of a page, without what is typed elsewhere."""
    section = _section(text)
    return text.replace(section, re.sub(r"(?m)^\| `.*?(?<!\\)\|", "|", section)) if section else text


def _section(text: str) -> str:
    return text.partition(_TITLE)[2].partition("\n## ")[0]
