"""build-engine: llama.cpp compiled for this machine; list and remove what was built."""

from __future__ import annotations

from typing import Any

import click

from modelpipes.commands.cli import options, values
from modelpipes.commands.views import engines
from modelpipes.engine import build, builds, making, sdist
from modelpipes.errors import UsageError
from modelpipes.terminal import output
from modelpipes.terminal.drawing import DOCUMENTS
from modelpipes.values.deadline import Deadline

LIMIT_S = 3 * 3600.0  # a build for a card, on a few cores
BUILD = values.Text(lambda ctx, incomplete: [each.name for each in builds.builds()])
VARIANTS = ["auto", "cpu", "cuda", "vulkan", "rocm"]


@click.command(context_settings=options.settings)
@click.option("--source", "directory", metavar="DIR", type=values.DIRECTORY,
              help="A llama.cpp tree or clone.  [the release from PyPI]")  # fmt: skip
@click.option("--release", metavar="N", type=click.IntRange(1), help=f"Another llama.cpp build.  [{sdist.RELEASE}]")
@click.option("--variant", type=click.Choice(VARIANTS), default="auto", show_default=True, help="What it computes on.")
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Compilers at a time.  [one a core]")
@click.option("--max-seconds", type=options.SECONDS, default=LIMIT_S, metavar="TIME",
              help="Longest time in all.  [180m]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the commands that would be run, and run none.")
@click.option("--list", "is_list", is_flag=True, help="All engines, each tried with the tiny model.")
@click.option("--remove", metavar="NAME", type=BUILD, help="Remove a build.")
@options.formats("table", "json", text="How to report; all but json are for --list.")
@options.common
def command(
    directory: str | None, release: int | None, variant: Any, jobs: int | None, max_seconds: float, dry_run: bool,
    is_list: bool, remove: str | None, format_: str,
) -> None:  # fmt: skip
    """Compile llama.cpp for this machine, try it, and use it from now on.

    Prints the path of its llama-server. A build that was interrupted goes on where it stopped.

    \b
    Examples:
      modelpipes build-engine --dry-run
      modelpipes build-engine
      modelpipes build-engine --source ~/llama.cpp --variant cuda
      modelpipes build-engine --list
    """
    if sum((dry_run, is_list, remove is not None)) > 1:
        raise UsageError("give one of --dry-run, --list and --remove")
    if format_ in DOCUMENTS and not is_list:
        raise UsageError(f"--format {format_} is for --list")
    if directory and release:
        raise UsageError("--source names a tree, --release one to fetch: give one of them")
    wanted = making.Wanted(variant, directory, release, jobs)
    with output.Progress() as progress:

        def report(line: str) -> None:
            progress.say(f"build-engine: {line}")

        if is_list:
            engines.write_list(build.tried(), report, format_)
            for refusal in builds.refusals():
                report(refusal)
        elif remove is not None:
            with build.lock():
                builds.remove(remove)
        elif dry_run:
            engines.write_commands(making.describe(wanted, report), format_)
        else:
            limit = Deadline.after(options.bounded(max_seconds))
            made = making.make(wanted, report, progress.show, limit)
            engines.write_made(made, format_)
