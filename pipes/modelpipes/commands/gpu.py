"""watch-gpu: GPU figures and alarms."""

from __future__ import annotations

import contextlib
import math
import os
from types import TracebackType
from typing import Any

import click
import msgspec

from modelpipes.child import Child
from modelpipes.commands.cli import options, values
from modelpipes.commands.views.gpu import FORMATS, Destination, Report
from modelpipes.errors import DeadlineError, ProgramError, RoomError, UsageError
from modelpipes.gateway import record
from modelpipes.machine.watch import (
    Alarm,
    Alarms,
    Keeper,
    Watch,
    check_named,
    is_named,
    name_shares,
)
from modelpipes.pipe.room import Room, resolve
from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline
from modelpipes.values.units import format_seconds

EXEC_LIMIT_S = 30.0  # a command that tells somebody takes seconds; one that hangs must not pile up


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
    format_ = "json" if given["as_json"] else given["format_"]
    with (
        Destination(given["file"], options.bounded(given["timeout"])) as to,
        Reactions(given["command_line"]) as reactions,
        Watch(options.bounded(given["timeout"])) as watch,
    ):
        report = Report(format_, to, given)
        alarms = Alarms(given["alert_vram"], given["alert_temp"])
        told: tuple[str, ...] = ()
        looks = 0
        while True:
            next_look = Deadline.after(options.bounded(given["interval"]))
            sample = watch.read()
            if not looks and sample.gpus:
                check_named(sample.gpus, given["wanted"])
            gpus = name_shares([each for each in sample.gpus if is_named(each, given["wanted"])], _keepers(directory))
            on, begun, over = alarms.judge(gpus)
            if gpus or given["system"]:
                report.write(msgspec.structs.replace(sample, gpus=gpus), on)
            for line in [
                *(each.message for each in begun),
                *over,
                *(each for each in sample.problems if each not in told),
            ]:
                output.say(line)
            told = sample.problems
            for each in begun:
                reactions.start(each)
            looks += 1
            if not gpus or not given["continuous"] or looks == given["count"]:
                reactions.finish()
                return 0 if any(each.is_present for each in gpus) else 1
            to.wait(next_look)
            reactions.collect()


def _check(given: dict[str, Any]) -> None:
    """Raise UsageError for what does not go together."""
    if given["continuous"] and (given["as_json"] or given["format_"] == "json"):
        raise UsageError("json is one document: write --format jsonl with --continuous, a line for each look")
    if given["count"] and not given["continuous"]:
        raise UsageError("--count is for --continuous: without it there is one look")
    if given["interval"] == math.inf:
        raise UsageError("--interval none: there would be no second look")


# -- whose a process is


def _keepers(directory: str | None) -> dict[int, Keeper]:
    """The members of the rooms that we know and the servers that run, by pid."""
    keepers = {daemon.pid: Keeper(server=daemon.listen) for daemon in record.running()}
    for room in _rooms(directory):
        with contextlib.suppress(RoomError):  # cleaned up in this moment
            for who in map(room.sitting, room.seats()):
                if who.pid is not None and who.state not in ("free", "died"):
                    path = os.fsencode(room.path).decode("utf-8", "replace")
                    keepers[who.pid] = Keeper(seat=who.seat, room=path)
    return keepers


def _rooms(directory: str | None) -> list[Room]:
    """The one that is named, the default one, and those beside it."""
    named = (Room(resolve(directory)), Room(resolve(None)))
    rooms = {room.path: room for room in (*named, *Room.all()) if room.is_ours()}
    return list(rooms.values())


# -- what runs on an alarm


class Reactions:
    """The runs of --exec-on-alert; each has its time, and none outlives us. What they say goes to stderr."""

    def __init__(self, command_line: str | None) -> None:
        self._command_line = command_line
        self._running: list[tuple[Child, Deadline]] = []

    def start(self, alarm: Alarm) -> None:
        """Run it for an alarm, if there is one to run; that it cannot be is said."""
        if self._command_line is None:
            return
        told = {
            "ALARM": alarm.kind, "MESSAGE": make_line(alarm.message), "GPU": alarm.index, "GPU_UUID": alarm.uuid,
            "VALUE": alarm.value, "LIMIT": alarm.limit,
        }  # fmt: skip
        env = {f"MODELPIPES_{key}": "" if value is None else str(value) for key, value in told.items()}
        try:
            child = Child(["sh", "-c", self._command_line], name="--exec-on-alert", env={**os.environ, **env})
        except ProgramError as error:
            output.say(str(error))
            return
        self._running.append((child, Deadline.after(EXEC_LIMIT_S)))

    def collect(self) -> None:
        """Be done with those that have ended, or have had their time."""
        for child, limit in list(self._running):
            code = child.exit_code()
            if code is None and not limit.has_passed():
                continue
            self._running.remove((child, limit))
            child.stop()
            for line in child.last_lines():
                output.say(f"{child.name}: {line}")
            if code is None:
                output.say(f"{child.name}: not done after {format_seconds(EXEC_LIMIT_S)}, ended")
            elif code:
                output.say(f"{child.name}: ended with {code}")

    def finish(self) -> None:
        """Wait for all of them."""
        for child, limit in list(self._running):
            with contextlib.suppress(DeadlineError):
                child.wait(limit)
        self.collect()

    def __enter__(self) -> Reactions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child, _ in self._running:
            child.stop()
