"""What watch-gpu writes: a record for each look, as a view for a person, JSON or CSV, and where it goes."""

from __future__ import annotations

import csv
import io
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import msgspec

from modelpipes.errors import DeadlineError, FileError
from modelpipes.machine import memory as hostmemory
from modelpipes.machine.watch import Alarm, Gpu, Sample, Share, sparkline
from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.table import draw_table
from modelpipes.values.deadline import Deadline
from modelpipes.values.units import format_bytes, format_seconds

FORMATS = ("table", "json", "jsonl", "csv")
KEPT_SAMPLES = 500  # more than a terminal is wide
DEFAULT_WIDTH = 80  # where stdout is no terminal
REPAINT, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


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

    def needs_header(self, header: str) -> bool:
        """Is there no earlier record? FileError where that has another CSV header, which this one would not go by."""
        if self._path is None or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return True
        with open(os.path.expanduser(self._path), "rb") as file:
            there = file.read(len(header)).decode("utf-8", "replace")
        if there not in ("", header):
            raise FileError(
                f"{self._path}: it has other columns: name another file, or give the options that it began with"
            )
        return not there

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
        if self._is_first:
            named = [f"process_{name}" if name == "used_bytes" else name for name in share_fields]
            writer.writerow(["time_s", *gpu_fields, "alarms", *HostMemory.__struct_fields__, *named])
            if not self._to.needs_header(text.getvalue()):
                text.seek(0)
                text.truncate()
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
