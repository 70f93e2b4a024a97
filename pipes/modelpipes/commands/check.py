"""check-system: what is here, what is missing, what to do about it."""

from __future__ import annotations

import click
import msgspec

from modelpipes.commands.checkup.whole import NEEDED, can_talk, check_all
from modelpipes.commands.checkup.written import WrittenFolder, judge_written
from modelpipes.commands.cli import options
from modelpipes.commands.cli.configured import in_force
from modelpipes.commands.views.check import write
from modelpipes.machine.checks import Check
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline


@click.command(context_settings=options.settings)
@click.option("--timeout", type=options.SECONDS, default="5", show_default=True,
              help="How long engines, cards and folders may take to answer, or none.")  # fmt: skip
@options.formats("table", "json")
@options.lenient
@click.pass_context
def command(ctx: click.Context, /, timeout: float, format_: str) -> int:
    """Tell what is here for models to talk, what is missing, what to do about it.

    Each line is ok, warning or missing; the last ones are the folders that are
    written to, with their size and bound, and how to empty them. The exit code
    is 1 where two models could not talk: no engine, or no place for rooms.

    \b
    Examples:
      check-system
      check-system --json | jq -r '.checks[] | select(.state != "ok") | .advice'
    """
    found, folders = check_all(Deadline.after(options.bounded(timeout)), in_force(ctx))
    is_able = can_talk(found)
    if format_ == "json":
        output.write_json(SystemReport(found, is_able, folders))
    else:
        write([*found, *judge_written(folders)], format_)
    if not is_able:
        first = next(check for check in found if check.state == "missing" and check.name in NEEDED)
        output.say(f"check-system: two models could not talk here: {first.found}; {first.advice}")
    return 0 if is_able else 1


class SystemReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All checks; `ok` where two models can talk here; and each folder that we write to."""

    checks: list[Check]
    ok: bool
    folders: list[WrittenFolder]
