"""What check-system found, as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from modelpipes.machine.checks import Check
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.table import draw_table

FOUND_COLUMN = 24  # least width of the last column, on a terminal however narrow


def draw(found: Sequence[Check], width: int | None) -> str:
    """A table of checks, each advice on lines of its own below; lines are broken where a terminal is too narrow."""
    last = max(FOUND_COLUMN, (width or 0) - len("missing  stale-rooms  "))

    def lines(text: str) -> list[str]:
        text = make_line(text)
        return textwrap.wrap(text, last, break_on_hyphens=False) if width and text else [text]

    rows = []
    for check in found:
        told = lines(check.found) + (lines(f"→ {check.advice}") if check.advice else [])
        rows += [(check.state, check.name, told[0]), *(("", "", line) for line in told[1:])]
    return draw_table(rows, ["state", "check", "found"])
