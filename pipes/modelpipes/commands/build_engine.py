"""build-engine: llama.cpp compiled for this machine; list and remove what was built."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Any

import click
from msgspec import Struct

from modelpipes.commands.cli import options, values
from modelpipes.engine import build, builds, hardware, locate, sdist, source, variants
from modelpipes.errors import DeadlineError, Ended, PipesError, UsageError
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

NAME = "build-engine"
LIMIT_S = 3 * 3600.0  # a build for a card, on a few cores


class Made(Struct, frozen=True, forbid_unknown_fields=True):
    """A build: its name, the path of its llama-server, how fast it answers with tiny-chat."""

    name: str
    path: str
    version: str
    variant: str
    tokens_per_second: float


class DryRun(Struct, frozen=True, forbid_unknown_fields=True):
    """The commands that would be run, a list of words each."""

    variant: str
    version: str
    commands: list[list[str]]


class Listed(Struct, frozen=True, forbid_unknown_fields=True):
    """An engine of this machine; `tokens_per_second` is with tiny-chat, null where it gave none: see `problem`."""

    name: str
    version: str
    backend: str
    tokens_per_second: float | None
    path: str
    is_used: bool
    problem: str


@click.command(context_settings=options.settings)
@click.option("--source", "directory", metavar="DIR", type=values.DIRECTORY,
              help="A llama.cpp tree or clone.  [the release from PyPI]")  # fmt: skip
@click.option("--release", metavar="N", type=click.IntRange(1), help=f"Another llama.cpp build.  [{sdist.RELEASE}]")
@click.option(
    "--variant",
    type=click.Choice(["auto", "cpu", "cuda", "vulkan", "rocm"]),
    default="auto",
    show_default=True,
    help="What it computes on.",
)
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Compilers at a time.  [one a core]")
@click.option("--max-seconds", type=options.SECONDS, default=LIMIT_S, metavar="TIME",
              help="Longest time in all.  [180m]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the commands that would be run, and run none.")
@click.option("--list", "is_list", is_flag=True, help="All engines, each tried with the tiny model.")
@click.option("--remove", metavar="NAME", type=values.Text(lambda ctx, _: [each.name for each in builds.builds()]),
              help="Remove a build.")  # fmt: skip
@options.as_json
@options.common
def command(
    directory: str | None,
    release: int | None,
    variant: variants.Variant | str,
    jobs: int | None,
    max_seconds: float,
    dry_run: bool,
    is_list: bool,
    remove: str | None,
    as_json: bool,
) -> None:
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
    if directory and release:
        raise UsageError("--source names a tree, --release one to fetch: give one of them")
    if is_list:
        _list(as_json)
    elif remove is not None:
        with build.lock():
            builds.remove(remove)
    else:
        _build(directory, release, variant, jobs, max_seconds, dry_run, as_json)


def _build(
    directory: str | None,
    release: int | None,
    variant: Any,
    jobs: int | None,
    max_seconds: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    machine = hardware.look()
    choice = variants.choose(machine, variant)
    for line in (*choice.found, choice.why, *choice.missing):
        _report(line)
    number = release or sdist.RELEASE
    if not (directory or dry_run) and (made := build.already(f"b{number}", choice, machine)):
        _report(f"{made.name} is there, made {made.built_at[:10]}; --remove {made.name} to make it anew")
        _tell(made, as_json)
        return
    jobs = jobs or build.jobs_here(choice)
    deadline = Deadline.after(options.bounded(max_seconds))
    if dry_run:
        there = source.Source(os.path.join(build.cache(), f"llama.cpp-b{number}"), f"b{number}")
        tree = source.local_source(directory) if directory else there
        if not os.path.isdir(tree.path):
            _report(f"the source of {tree.version} is fetched to {tree.path} first")
        commands = [build.configuration(tree, choice, machine), build.compilation(tree, choice, machine, jobs)]
        if as_json:
            output.write_json(DryRun(choice.variant, tree.version, commands))
        else:
            output.write_text("".join(f"{shlex.join(argv)}\n" for argv in commands))
        return
    with build.lock(), output.Progress() as progress:

        def report(line: str) -> None:
            progress.say(f"{NAME}: {line}")

        try:
            if directory:
                tree = source.local_source(directory)
            else:
                tree = source.packaged_source(build.cache(), release, report, deadline)
            report(f"building {tree.version} for {choice.variant}; the log is {build.log_of(tree, choice)}")
            made = build.build(tree, choice, machine, jobs=jobs, report=report, show=progress.show, deadline=deadline)
        except (Ended, DeadlineError):
            report("run this again and it goes on where it stopped")
            raise
        if not directory:
            shutil.rmtree(tree.path, ignore_errors=True)
    _report(f"{made.name} answers, {made.tokens_per_second:,.0f} tokens a second with tiny-chat")
    _tell(made, as_json)


def _tell(made: builds.Build, as_json: bool) -> None:
    if as_json:
        output.write_json(Made(made.name, made.server, made.version, made.variant, made.tokens_per_second))
    else:
        output.write_text(f"{made.server}\n")


def _list(as_json: bool) -> None:
    rows: list[Listed] = []
    for number, (name, binary) in enumerate(locate.engines()):
        problem, speed = "", None
        try:
            speed = build.measure(binary)
        except Ended:
            raise
        except PipesError as error:
            problem = str(error)
        rows.append(Listed(name, binary.version, binary.backend, speed, binary.argv[0], number == 0, problem))
    if as_json:
        output.write_json(rows)
        return
    if not rows:
        _report(f"no engine on this machine: {locate.GET_ONE}")
    shown = [
        (
            f"{'*' if row.is_used else ' '} {row.name}",
            row.version,
            row.backend,
            f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "–",
            row.path,
        )
        for row in rows
    ]
    output.write_table(
        shown, ["  engine", "version", "backend", "tokens/s", "path"], output.width(), right=("tokens/s",)
    )
    for row in rows:
        if row.problem:
            _report(f"{row.name}: {row.problem}")


def _report(line: str) -> None:
    output.say(f"{NAME}: {line}")
