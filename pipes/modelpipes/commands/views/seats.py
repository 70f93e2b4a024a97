"""The seats of a room as list-seats shows them: a table, for the screen or as a document, or JSON."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import astuple

from modelpipes.pipe.room import Sitting
from modelpipes.terminal import output
from modelpipes.terminal.drawing import SCREEN
from modelpipes.terminal.table import Table, draw_table


class Seat(Sitting, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """One seat. Every key is there, also where it says nothing: scripts need not guess."""


def write(found: Sequence[Sitting], format_: str) -> None:
    """Write to stdout who sits where."""
    if format_ == "json":
        output.write_json([Seat(*astuple(who)) for who in found])
        return
    rows = [
        (w.seat, f"{w.state} {w.loading}" if w.loading else w.state, w.pid, w.queue, w.answers, w.voice) for w in found
    ]
    table = Table(["seat", "state", "pid", "queue", "answers", "voice"], rows)
    if format_ == SCREEN:
        output.write_text(draw_table(table))
    else:
        output.write_table(table, format_)
