"""watch-gpu: GPU figures and alarms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import click
import msgspec

from modelpipes.commands.cli import options, values
from modelpipes.commands.keepers import find_keepers
from modelpipes.commands.views.destination import Destination
from modelpipes.commands.views.gpu import FORMATS, WHOLE, GpuReport
from modelpipes.errors import UsageError
from modelpipes.machine.alarms import Alarms
from modelpipes.machine.keepers import name_shares
from modelpipes.machine.reactions import Reactions
from modelpipes.machine.watch import Watch, check_named, is_named
from modelpipes.pipe.room import Room
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline


class Threshold(click.ParamType[float]):
    """A limit of an alarm; `none` is infinity, which nothing reaches."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            limit = math.inf if value == "none" else float(value)
        except ValueError:
            limit = math.nan
        if not limit >= 0 or (math.isinf(limit) and value != "none"):
            self.fail(f"{value!r} is no limit: write a number, or none", param, ctx)
        return limit


@click.command(context_settings=options.settings)
@options.option(
    "--interval",
    key="watch-gpu.interval",
    type=options.SECONDS,
    default="5",
    metavar="TIME",
    help="From a look to the next.  [5]",
)
@click.option("--continuous/--once", help="Look again and again, until Ctrl-C, or once.  [once]")
@click.option("--count", type=click.IntRange(1), metavar="N", help="With --continuous: end after N looks.")
@options.formats(*FORMATS)
@click.option("--output", "file", metavar="FILE", type=values.FILE, help="Append to it what else goes to stdout.")
@options.option("--alert-vram", key="watch-gpu.alert_vram", type=Threshold(), default="95", metavar="PERCENT",
                help="Alarm at so much memory in use, or none.  [95]")  # fmt: skip
@options.option("--alert-temp", key="watch-gpu.alert_temp", type=Threshold(), default="85", metavar="CELSIUS",
                help="Alarm at this temperature, or none.  [85]")  # fmt: skip
@click.option("--gpu", "wanted", multiple=True, metavar="INDEX|UUID", help="Only this GPU; may be repeated.")
@click.option("--per-process", is_flag=True, help="Also whose the memory is: a line for each process.")
@options.option(
    "--exec-on-alert",
    "command_line",
    key="watch-gpu.exec_on_alert",
    metavar="COMMAND",
    help="Run by sh when an alarm begins.",
)
@click.option("--system", is_flag=True, help="Also the machine's own memory.")
@click.option("-d", "--dir", "directory", metavar="DIR", type=values.DIRECTORY,
              help="Name the seats of this room too.  [$PIPE_DIR]")  # fmt: skip
@click.option("--timeout", type=options.SECONDS, default="10", show_default=True, help="Longest silence of the driver.")
@options.common
def command(directory: str | None, **given: Any) -> int:
    """Show what the GPUs do: temperature, load, memory, power, clocks, and whose
    the memory is, by the names of our models, seats and servers.

    An alarm is said on stderr when it begins and when it is over, and stands in
    every record as long as it lasts. COMMAND has 30 s; $MODELPIPES_ALARM is vram,
    temperature or lost, and there are _MESSAGE, _GPU, _GPU_UUID, _VALUE, _LIMIT.

    \b
    Examples:
      watch-gpu --per-process
      watch-gpu --continuous --interval 2
      watch-gpu --continuous --format csv --output gpu.csv
      watch-gpu --json | jq '.gpus[].memory_free_bytes'
      watch-gpu --continuous --exec-on-alert 'notify-send "$MODELPIPES_MESSAGE"'
    """
    _check(given)
    if directory is not None:
        Room.open(directory)
    timeout_s = options.bounded(given["timeout"])
    with (
        Destination(given["file"], timeout_s) as to,
        Reactions(given["command_line"], output.say) as reactions,
        Watch(timeout_s) as watch,
    ):
        report = GpuReport(
            given["format_"],
            to,
            per_process=given["per_process"],
            has_system=given["system"],
            every_s=given["interval"] if given["continuous"] else None,
        )
        alarms = Alarms(given["alert_vram"], given["alert_temp"])
        told: tuple[str, ...] = ()
        for look in itertools.count(1):
            next_look = Deadline.after(options.bounded(given["interval"]))
            sample = watch.read()
            if look == 1 and sample.gpus:
                check_named(sample.gpus, given["wanted"])
            named = [each for each in sample.gpus if is_named(each, given["wanted"])]
            gpus = name_shares(named, find_keepers(directory))
            on, begun, over = alarms.judge(gpus)
            if gpus or given["system"]:
                report.write(msgspec.structs.replace(sample, gpus=gpus), on)
            news = [problem for problem in sample.problems if problem not in told]
            for line in [*(alarm.message for alarm in begun), *over, *news]:
                output.say(line)
            told = sample.problems
            for alarm in begun:
                reactions.start(alarm)
            if not gpus or not given["continuous"] or look == given["count"]:
                break
            to.wait(next_look)
            reactions.collect()
        reactions.finish()
    return 0 if any(each.is_present for each in gpus) else 1


def _check(given: dict[str, Any]) -> None:
    """Raise UsageError for what does not go together."""
    if given["continuous"] and given["format_"] in WHOLE:
        instead = "jsonl with --continuous, a line" if given["format_"] == "json" else "tsv with --continuous, a row"
        raise UsageError(f"{given['format_']} is one document: write --format {instead} for each look")
    if given["count"] and not given["continuous"]:
        raise UsageError("--count is for --continuous: without it there is one look")
    if given["interval"] == math.inf:
        raise UsageError("--interval none: there would be no second look")
