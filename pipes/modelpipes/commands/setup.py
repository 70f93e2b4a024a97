"""setup-pipes: make a room's FIFOs."""

from __future__ import annotations

import shlex

import click

from modelpipes.commands.cli import options, values
from modelpipes.errors import RoomError, UsageError
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.room import HUB, Room, check_seat, exports, star
from modelpipes.terminal import output


@click.command(context_settings=options.settings)
@click.argument("seats", metavar="[SEAT]...", nargs=-1)
@click.option(
    "-n", "--num", "count", metavar="COUNT", type=click.IntRange(1, 999), default=None, help="Seats to make.  [2]"
)
@options.option("-p", "--prefix", "prefix", key="room.prefix", metavar="PREFIX", envvar="PIPE_PREFIX",
                help="Their names' beginning.  [model]")  # fmt: skip
@options.directory
@click.option("--hub", type=values.SENDER, default=HUB, show_default=True, metavar="SEAT",
              help="The seat in the middle.")  # fmt: skip
@click.option("--mesh", is_flag=True, help="Also a pipe for every ordered pair of seats.")
@click.option("-c", "--clean", is_flag=True, help="Remove what is there first, as cleanup-pipes does.")
@click.option("--print-env", is_flag=True, help="Print shell `export` lines, for eval.")
@click.option("-v", "--verbose", is_flag=True, help="Tell each pipe that is made or was there, on stderr.")
@options.common
def command(
    seats: tuple[str, ...], count: int | None, prefix: str | None, directory: str | None, hub: str, mesh: bool,
    clean: bool, print_env: bool, verbose: bool,
) -> None:  # fmt: skip
    """Make a room's FIFOs: two between the hub and each seat.

    Prints one path a line. Running it again changes nothing and adds what is missing.

    \b
    Examples:
      setup-pipes alice bob
      setup-pipes --num 3 --prefix model -d ./room
      eval "$(setup-pipes alice bob --print-env)"; echo hi > "$PIPE_TO_ALICE"
    """
    if seats and count is not None:
        raise UsageError("name the seats, or give their number with --num, not both")
    named = [check_seat(s) for s in seats] or [check_seat(f"{prefix or 'model'}{i + 1}") for i in range(count or 2)]
    pairs = star(check_seat(hub), named, mesh=mesh)
    variables = exports(hub, named) if print_env else {}
    room = Room.make(directory)
    say = output.say if verbose else lambda line: None
    if clean and (kept := clean_up(room, tell=lambda path: say(f"setup-pipes: removed {path}"))):
        raise RoomError(f"--clean: {kept[0]}")
    if clean:
        room = Room.make(directory)
    paths = room.make_pipes(
        pairs, lambda path, is_new: say(f"setup-pipes: {'made' if is_new else 'was there:'} {path}")
    )
    if print_env:
        output.write_text(f"export PIPE_DIR={shlex.quote(room.path)}\n")
        for variable, pair in variables.items():
            output.write_text(f"export {variable}={shlex.quote(room.pipe(*pair))}\n")
    else:
        output.write_text("".join(f"{path}\n" for path in paths))
