"""hold: take a seat for a program that opens the FIFOs itself."""

from __future__ import annotations

import click

from modelpipes.commands.cli import options, values
from modelpipes.pipe.hold import hold
from modelpipes.pipe.room import Room, check_seat


@click.command(context_settings=options.settings)
@click.argument("seat", type=values.SEAT)
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@options.directory
@options.common
def command(seat: str, words: tuple[str, ...], directory: str | None) -> int:
    """Take a seat for a program that reads and writes its pipes itself, and end with its exit code.

    It finds them in $PIPE_FROM_HUB, $PIPE_TO_HUB …, its seat in $MODELPIPES_SEAT, the room in $PIPE_DIR. It is ready
    when it has opened a pipe to read, which then does not end. It has our output and, where that is no terminal, our
    stdin; what it started ends with it.

    \b
    Examples:
      modelpipes hold bob -- python3 bob.py
      modelpipes hold bob -- sh -c 'exec cat "$PIPE_FROM_HUB"'
    """
    return hold(Room.open(directory), check_seat(seat), words)
