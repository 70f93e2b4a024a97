"""watch-gpu: GPU figures and alarms."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import click
import msgspec

from modelpipes import hostmemory, output
from modelpipes.child import Child
from modelpipes.commands import options, values
from modelpipes.deadline import Deadline
from modelpipes.errors import DeadlineError, FileError, ProgramError, RoomError, UsageError
from modelpipes.gpuwatch import (
    Alarm,
    Alarms,
    Gpu,
    Keeper,
    Sample,
    Share,
    Watch,
    check_named,
    is_named,
    name_shares,
    sparkline,
)
from modelpipes.room import Room, resolve
from modelpipes.safetext import make_line
from modelpipes.serving import record
from modelpipes.table import draw_table
from modelpipes.units import format_bytes, format_seconds

FORMATS = ("table", "json", "jsonl", "csv")
EXEC_LIMIT_S = 30.0  # a command that tells somebody takes seconds; one that hangs must not pile up
KEPT_SAMPLES = 500  # more than a terminal is wide
DEFAULT_WIDTH = 80  # where stdout is no terminal
REPAINT, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


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
@click.option("--format", "format_", type=click.Choice(FORMATS), default="table", help="How to report.  [table]")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--output", "file", metavar="FILE", type=values.FILE, help="Append there what else goes to stdout.")
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
@click.option("--timeout", type=options.SECONDS, default="10", show_default=True, help="For the driver to answer.")
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


# -- where the record goes


class Destination:
    """stdout, or a file that is appended to; a FIFO too, as long as it has a reader."""

    def __init__(self, path: str | None, timeout_s: float | None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._descriptor = output.STDOUT
        if path is None:
            return
        try:
            # Not blocking: a FIFO that nobody reads would hold us in open(2), a full one in write(2).
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(os.path.expanduser(path), flags, 0o666)
        except OSError as error:
            raise FileError(f"{path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None

    @property
    def is_screen(self) -> bool:
        """Can it be painted again and again?"""
        return self._path is None and os.isatty(self._descriptor) and os.environ.get("TERM") not in (None, "", "dumb")

    @property
    def width(self) -> int | None:
        return output.width() if self._path is None else None

    def has_content(self) -> bool:
        """Does it hold an earlier record, whose CSV header does for this one?"""
        if self._path is None:
            return False
        found = os.fstat(self._descriptor)
        return stat.S_ISREG(found.st_mode) and found.st_size > 0

    def write(self, text: str) -> None:
        """Raises BrokenPipeError when nobody reads it any more, FileError, DeadlineError for a reader that stalls."""
        if self._path is None:
            output.write_text(text)
            return
        limit = Deadline.after(self._timeout_s)
        rest = memoryview(text.encode("utf-8", "replace"))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                if not poll.poll(limit.poll_ms()):
                    raise DeadlineError(f"{self._path}: its reader takes nothing") from None
            except BrokenPipeError:
                raise
            except OSError as error:
                raise FileError(f"{self._path}: cannot be written: {error.strerror}") from None

    def wait(self, until: Deadline) -> None:
        """Return at the moment; BrokenPipeError as soon as the reader is gone."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        while not until.has_passed():
            for _, event in poll.poll(until.poll_ms()):
                if event & (select.POLLERR | select.POLLHUP):
                    raise BrokenPipeError
                poll.unregister(self._descriptor)  # closed by somebody: there is nothing to learn from it

    def __enter__(self) -> Destination:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            os.close(self._descriptor)
            self._descriptor = -1


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


# -- the record


class HostMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine's own memory."""

    host_total_bytes: int
    host_available_bytes: int


class Look(Sample, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One look as JSON says it: all GPUs at one moment, the alarms that are on, and `system` with --system.

    `time_s` counts from 1970; `problems` has a line for each reason why there are no GPUs.
    """

    alarms: Sequence[Alarm]
    system: HostMemory | None


class Report:
    """Writes a record for each look, in one of FORMATS."""

    def __init__(self, format_: str, to: Destination, given: dict[str, Any]) -> None:
        self._to = to
        self._format = format_
        self._given = given
        self._used: dict[str, deque[float | None]] = {}
        self._is_header_due = not to.has_content()
        self._is_first = True

    def write(self, sample: Sample, alarms: Sequence[Alarm]) -> None:
        memory = HostMemory(hostmemory.total_bytes(), hostmemory.available_bytes()) if self._given["system"] else None
        if self._format == "table":
            self._write_view(sample, alarms, memory)
        elif self._format == "csv":
            self._to.write(self._csv(sample, alarms, memory))
        else:
            look = Look(**msgspec.structs.asdict(sample), alarms=alarms, system=memory)
            self._to.write(msgspec.json.encode(look).decode() + "\n")
        self._is_first = False

    def _csv(self, sample: Sample, alarms: Sequence[Alarm], memory: HostMemory | None) -> str:
        """As RFC 4180 has it; a row for each GPU, with --per-process for each process, without any for the machine."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n")
        gpu_fields = [name for name in Gpu.__struct_fields__ if name != "processes"]
        share_fields = list(Share.__struct_fields__) if self._given["per_process"] else []
        if self._is_header_due:
            named = [f"process_{name}" if name == "used_bytes" else name for name in share_fields]
            writer.writerow(["time_s", *gpu_fields, "alarms", *HostMemory.__struct_fields__, *named])
            self._is_header_due = False
        sizes = [getattr(memory, name, None) for name in HostMemory.__struct_fields__]
        for each in sample.gpus:
            kinds = " ".join(alarm.kind for alarm in alarms if (alarm.index, alarm.uuid) == (each.index, each.uuid))
            cells = [_csv_cell(getattr(each, name)) for name in gpu_fields]
            shares = (each.processes or (None,)) if share_fields else (None,)
            for share in shares:
                rest = [_csv_cell(getattr(share, name, None)) for name in share_fields]
                writer.writerow([sample.time_s, *cells, kinds, *sizes, *rest])
        if not sample.gpus:
            writer.writerow([sample.time_s, *[None] * (len(gpu_fields) + 1), *sizes, *[None] * len(share_fields)])
        return text.getvalue()

    def _write_view(self, sample: Sample, alarms: Sequence[Alarm], memory: HostMemory | None) -> None:
        """The tables, one after another; in the continuous view under the time, each painted over the last."""
        parts = []
        if self._given["continuous"]:
            every = format_seconds(self._given["interval"])
            parts.append(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(sample.time_s))}, every {every}\n")
        width = self._to.width
        if sample.gpus:
            rows = [[cell(each) for cell in COLUMNS.values()] for each in sample.gpus]
            parts.append(draw_table(rows, list(COLUMNS), width, right=NUMBERS, spare=SPARE))
        if self._given["per_process"]:
            parts += _share_tables(sample.gpus, width)
        if self._given["continuous"]:
            parts += self._history(sample.gpus)
        if memory:
            available, total = format_bytes(memory.host_available_bytes), format_bytes(memory.host_total_bytes)
            parts.append(f"host memory: {available} of {total} available\n")
        if alarms:
            parts.append("".join(f"alarm: {make_line(each.message)}\n" for each in alarms))
        text = "\n".join(parts)
        if self._given["continuous"] and self._to.is_screen:
            first = TO_SCREEN_END if self._is_first else ""
            text = REPAINT + first + text.replace("\n", f"{TO_LINE_END}\n") + TO_SCREEN_END
        elif not self._is_first:
            text = "\n" + text
        self._to.write(text)

    def _history(self, gpus: Sequence[Gpu]) -> list[str]:
        """Memory over time: a character a look, the latest at the right end."""
        for each in gpus:
            self._used.setdefault(each.key, deque(maxlen=KEPT_SAMPLES)).append(each.memory_used_percent)
        lines = []
        for each in gpus:
            label, now = f"memory of {each.index}  ", _figure(each.memory_used_percent, "%")
            room = (self._to.width or DEFAULT_WIDTH) - len(label) - len(now) - 2
            lines.append(f"{label}{sparkline(list(self._used[each.key]), room)}  {now}\n")
        return ["".join(lines)] if lines else []


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(value) if isinstance(value, tuple) else value
    return make_line(text) if isinstance(text, str) else text


def _figure(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.0f}{unit}"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)


def _power(each: Gpu) -> str:
    limit = "" if each.power_limit_watts is None else f"/{each.power_limit_watts:.0f}"
    return "-" if each.power_watts is None else f"{each.power_watts:.0f}{limit} W"


def _clocks(each: Gpu) -> str:
    clocks = each.graphics_clock_mhz, each.memory_clock_mhz
    return "-" if clocks == (None, None) else f"{'/'.join(map(_figure, clocks))} MHz"


def _throttle(each: Gpu) -> str:
    if not each.is_present:
        return "absent"
    return "-" if each.throttle_reasons is None else " ".join(each.throttle_reasons) or "none"


def _share_tables(gpus: Sequence[Gpu], width: int | None) -> list[str]:
    rows = [
        (share.program or "-", share.pid, each.index, _size(share.used_bytes), share.model or "-",
         share.seat or share.server or "-")
        for each in gpus
        for share in each.processes or ()
    ]  # fmt: skip
    headers = ["program", "pid", "gpu", "memory", "model", "seat or server"]
    return [draw_table(rows, headers, width, right=("memory",))] if rows else []


COLUMNS: dict[str, Callable[[Gpu], object]] = {
    "gpu": lambda each: f"{each.index} {(each.name or '-').removeprefix('NVIDIA ')}",
    "temp": lambda each: _figure(each.temperature_celsius, " °C"),
    "load": lambda each: _figure(each.utilization_percent, "%"),
    "used": lambda each: _size(each.memory_used_bytes),
    "free": lambda each: _size(each.memory_free_bytes),
    "total": lambda each: _size(each.memory_total_bytes),
    "full": lambda each: _figure(each.memory_used_percent, "%"),
    "power": _power,
    "clocks": _clocks,
    "throttled by": _throttle,
}
NUMBERS = ("temp", "load", "used", "free", "total", "full", "power", "clocks")
SPARE = ("clocks", "full", "power", "free", "load")  # in a narrow terminal, the least needed first
