"""What check-system found, as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from modelpipes.machine.checks import Check
from modelpipes.terminal import output
from modelpipes.terminal.drawing import SCREEN, draw
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.table import Table

FOUND_COLUMN = 24  # least width of the last column, on a terminal however narrow


def write(found: Sequence[Check], format_: str) -> None:
    """Write to stdout a table of checks, for the screen or as a document."""
    if format_ == SCREEN:
        output.write_text(draw_screen(found, output.width()))
    else:
        rows = [(check.state, check.name, check.found, check.advice) for check in found]
        output.write_table(Table(["state", "check", "found", "advice"], rows), format_)


def draw_screen(found: Sequence[Check], width: int | None) -> str:
    """The table for a person: each advice on lines of its own, and lines broken where a terminal is too narrow."""
    return draw(Table(["state", "check", "found"], list(_lines(found, width))))


def _lines(found: Sequence[Check], width: int | None) -> Iterator[tuple[str, str, str]]:
    last = max(FOUND_COLUMN, (width or 0) - len("missing  stale-rooms  "))

    def broken(text: str) -> list[str]:
        text = make_line(text)
        return textwrap.wrap(text, last, break_on_hyphens=False) if width and text else [text]

    for check in found:
        told = broken(check.found) + (broken(f"→ {check.advice}") if check.advice else [])
        yield check.state, check.name, told[0]
        yield from (("", "", line) for line in told[1:])
