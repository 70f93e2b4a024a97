"""list-seats: who sits where, doing what."""

from __future__ import annotations

import click

from modelpipes.commands.cli import options, values
from modelpipes.commands.views import seats as view
from modelpipes.errors import UsageError
from modelpipes.pipe.room import Room
from modelpipes.terminal.drawing import SCREEN
from modelpipes.values.deadline import Deadline


@click.command(context_settings=options.settings)
@click.argument("seats", metavar="[SEAT]...", nargs=-1, type=values.SEAT)
@options.directory
@click.option("--wait", is_flag=True, help="Return when these seats are ready or busy.")
@options.option("--timeout", key="list-seats.timeout", type=options.SECONDS, default="30", show_default=True,
                help="How long a seat may show no life; loading is life.")  # fmt: skip
@options.option("--max-seconds", key="list-seats.max_seconds", type=options.SECONDS, default="none", show_default=True,
                help="Longest wait in all.")  # fmt: skip
@options.formats("table", "json")
@options.common
def command(
    seats: tuple[str, ...], directory: str | None, wait: bool, timeout: float, max_seconds: float, format_: str
) -> None:
    """List the seats of a room: pid, what sits there, state, queue, answers so far.

    Reads the lock files alone and touches no pipe. Scripts wait with --wait, they never sleep.

    \b
    Examples:
      list-seats
      list-seats --wait alice bob --max-seconds 5m
      list-seats --json
    """
    room = Room.open(directory)
    for seat in set(seats).difference(room.seats()):
        room.require(seat)  # tells which there are
    if wait:
        if not seats:
            raise UsageError("--wait needs the seats to wait for: list-seats --wait alice bob")
        limit = Deadline.after(options.bounded(max_seconds))
        room.wait_for(seats, limit, silence_s=options.bounded(timeout))
        if format_ == SCREEN:
            return
    for seat in seats or room.seats():
        room.check_line(seat)
    view.write([room.sitting(seat) for seat in seats or room.seats()], format_)
