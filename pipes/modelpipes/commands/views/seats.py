"""The seats of a room as list-seats shows them: a table, or JSON."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import astuple

from modelpipes.pipe.room import Sitting
from modelpipes.terminal import output


class Seat(Sitting, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """One seat. Every key is there, also where it says nothing: scripts need not guess."""


def write(found: Sequence[Sitting], *, as_json: bool) -> None:
    """Write to stdout who sits where."""
    if as_json:
        output.write_json([Seat(*astuple(who)) for who in found])
    else:
        rows = [(w.seat, w.state, w.pid, w.queue, w.answers, w.voice) for w in found]
        output.write_table(rows, ["seat", "state", "pid", "queue", "answers", "voice"])
