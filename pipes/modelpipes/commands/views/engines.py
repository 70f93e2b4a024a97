"""Engines as build-engine shows them: one that was made, the commands that would make it, all of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable

from msgspec import Struct

from modelpipes.engine import locate
from modelpipes.engine.build import Tried
from modelpipes.engine.builds import Build
from modelpipes.engine.making import Commands
from modelpipes.terminal import output
from modelpipes.terminal.drawing import DOCUMENTS
from modelpipes.terminal.table import Table


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


def write_made(made: Build, format_: str) -> None:
    """Write to stdout what was made: the path of its server."""
    if format_ == "json":
        output.write_json(Made(made.name, made.server, made.version, made.variant, made.tokens_per_second))
    else:
        output.write_text(f"{made.server}\n")


def write_commands(found: Commands, format_: str) -> None:
    """Write to stdout what would be run, a line each for a shell."""
    if format_ == "json":
        output.write_json(DryRun(found.variant, found.version, found.commands))
    else:
        output.write_text("".join(f"{shlex.join(argv)}\n" for argv in found.commands))


def write_list(tried: Iterable[Tried], report: Callable[[str], None], format_: str) -> None:
    """Write to stdout the engines, the first of which is used; `report` gets what is wrong with one."""
    rows = [
        Listed(
            each.name,
            each.binary.version,
            each.binary.backend,
            each.tokens_per_second,
            each.binary.argv[0],
            number == 0,
            each.problem,
        )
        for number, each in enumerate(tried)
    ]
    if format_ == "json":
        output.write_json(rows)
        return
    if not rows:
        report(f"no engine on this machine: {locate.GET_ONE}")
    if format_ in DOCUMENTS:
        headers, drawn = (
            ["used", "engine", *FACTS],
            [["*" if row.is_used else "", row.name, *_facts(row)] for row in rows],
        )
    else:
        headers = ["  engine", *FACTS]
        drawn = [[f"{'*' if row.is_used else ' '} {row.name}", *_facts(row)] for row in rows]
    output.write_table(Table(headers, drawn, right=("tokens/s",)), format_)
    for row in rows:
        if row.problem:
            report(f"{row.name}: {row.problem}")


FACTS = ("version", "backend", "tokens/s", "path")


def _facts(row: Listed) -> tuple[str, ...]:
    speed = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "–"
    return row.version, row.backend, speed, row.path
