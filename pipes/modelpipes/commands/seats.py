"""list-seats: who sits where, doing what."""

from __future__ import annotations

import click
import msgspec

from modelpipes.commands.cli import options, values
from modelpipes.errors import UsageError
from modelpipes.pipe.room import Room, Sitting
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline


class Seat(Sitting, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """One seat. Every key is there, also where it says nothing: scripts need not guess."""


@click.command(context_settings=options.settings)
@click.argument("seats", metavar="[SEAT]...", nargs=-1, type=values.SEAT)
@options.directory
@click.option("--wait", is_flag=True, help="Return when these seats are ready or busy.")
@options.option(
    "--timeout",
    key="list-seats.timeout",
    type=options.SECONDS,
    default="30",
    show_default=True,
    help="How long to wait, or none.",
)
@options.as_json
@options.common
def command(seats: tuple[str, ...], directory: str | None, wait: bool, timeout: float, as_json: bool) -> None:
    """List the seats of a room: pid, what sits there, state, queue, answers so far.

    Reads the lock files alone and touches no pipe. Scripts wait with --wait, they never sleep.

    \b
    Examples:
      list-seats
      list-seats --wait alice bob --timeout 60
      list-seats --json
    """
    room = Room.open(directory)
    for seat in set(seats).difference(room.seats()):
        room.require(seat)  # tells which there are
    if wait:
        if not seats:
            raise UsageError("--wait needs the seats to wait for: list-seats --wait alice bob")
        room.wait_for(seats, Deadline.after(options.bounded(timeout)))
        if not as_json:
            return
    found = [room.sitting(seat) for seat in seats or room.seats()]
    if as_json:
        output.write_json([Seat(*msgspec.structs.astuple(who)) for who in found])
    else:
        rows = [(w.seat, w.state, w.pid, w.queue, w.answers, w.voice) for w in found]
        output.write_table(rows, ["seat", "state", "pid", "queue", "answers", "voice"])
