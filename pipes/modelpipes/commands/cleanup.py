"""cleanup-pipes: remove a room's FIFOs, and nothing else."""

from __future__ import annotations

import os

import click

from modelpipes.commands.cli import options
from modelpipes.commands.cli.configured import in_force
from modelpipes.errors import RoomError
from modelpipes.pipe.cleanup import clean_up, pipes_of_prefix
from modelpipes.pipe.room import Room, check_seat, resolve
from modelpipes.terminal import output


@click.command(context_settings=options.settings)
@options.directory
@click.option("-p", "--prefix", metavar="PREFIX", help="Only the seats PREFIX1, PREFIX2 and so on.")
@click.option("-f", "--force", is_flag=True, help="Also seats in use; their members leave by themselves.")
@click.option("-v", "--verbose", is_flag=True, help="Tell each pipe that is removed, on stderr.")
@options.lenient
@click.pass_context
def command(ctx: click.Context, /, directory: str | None, prefix: str | None, force: bool, verbose: bool) -> int:
    """Remove what a room may contain, if it is ours, and the room if we made it.

    Never asks. A seat in use is named and kept (exit 1), unless -f.

    \b
    Examples:
      cleanup-pipes
      cleanup-pipes -d ./room -f
      cleanup-pipes --prefix model -v
    """
    if prefix is not None:
        check_seat(f"{prefix}1")
    if mistake := in_force(ctx).mistake:
        if not (directory or os.environ.get("PIPE_DIR")):
            raise mistake  # it may name another room than the default one
        output.say(f"cleanup-pipes: {mistake}")
    try:
        room = Room.open(directory)
    except RoomError:
        if os.path.lexists(resolve(directory)):
            raise
        return 0  # what is not there is clean
    pipes = None if prefix is None else pipes_of_prefix(room, prefix)
    say = output.say if verbose else lambda line: None
    kept = clean_up(room, pipes, force=force, tell=lambda path: say(f"cleanup-pipes: removed {path}"))
    for line in kept:
        output.say(f"cleanup-pipes: {line}")
    return 1 if kept else 0
