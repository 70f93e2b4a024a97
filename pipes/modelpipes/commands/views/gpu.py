"""What watch-gpu writes: a record for each look, as a view for a person, a document, JSON or CSV."""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from modelpipes.commands.views.destination import Destination
from modelpipes.machine.alarms import Alarm
from modelpipes.machine.memory import read_memory
from modelpipes.machine.watch import Gpu, GpuProcess, Sample
from modelpipes.terminal import output
from modelpipes.terminal.drawing import DOCUMENTS, SCREEN, draw
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.sparkline import sparkline
from modelpipes.terminal.table import Table
from modelpipes.values.units import format_bytes, format_seconds

FORMATS = ("table", "json", "jsonl", "csv")
WHOLE = ("json", "github", "html")  # of these nothing can be added to
KEPT_SAMPLES = 500  # more than a terminal is wide
REPAINT, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


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


class GpuReport:
    """Writes a record for each look, in one of FORMATS."""

    def __init__(
        self, format_: str, to: Destination, *, per_process: bool, has_system: bool, every_s: float | None
    ) -> None:
        """`has_system`: with the host's memory; `every_s` is the time between two looks, None where there is one."""
        self._to = to
        self._format = format_
        self._per_process = per_process
        self._has_system = has_system
        self._every_s = every_s
        self._used: dict[str, deque[float | None]] = {}
        self._is_first = True

    def write(self, sample: Sample, alarms: Sequence[Alarm]) -> None:
        memory = HostMemory(*read_memory()) if self._has_system else None
        if self._format == SCREEN:
            self._write_view(sample, alarms, memory)
        elif self._format in DOCUMENTS:
            self._to.write(self._document(sample, alarms, memory))
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
        share_fields = list(GpuProcess.__struct_fields__) if self._per_process else []
        if self._is_first:
            named = [f"process_{name}" if name == "used_bytes" else name for name in share_fields]
            writer.writerow(["time_s", *gpu_fields, "alarms", *HostMemory.__struct_fields__, *named])
            if not self._to.needs_header(text.getvalue()):
                text.seek(0)
                text.truncate()
        sizes = [getattr(memory, name, None) for name in HostMemory.__struct_fields__]
        for each in sample.gpus:
            kinds = " ".join(alarm.kind for alarm in alarms if _is_of(alarm, each))
            cells = [_csv_cell(getattr(each, name)) for name in gpu_fields]
            shares = (each.processes or (None,)) if share_fields else (None,)
            for share in shares:
                rest = [_csv_cell(getattr(share, name, None)) for name in share_fields]
                writer.writerow([sample.time_s, *cells, kinds, *sizes, *rest])
        if not sample.gpus:
            writer.writerow([sample.time_s, *[None] * (len(gpu_fields) + 1), *sizes, *[None] * len(share_fields)])
        return text.getvalue()

    def _document(self, sample: Sample, alarms: Sequence[Alarm], memory: HostMemory | None) -> str:
        """One table, with the rows of the CSV; under --continuous, where rows are added, its headers come once."""
        sizes = {}
        if memory:
            available, total = _size(memory.host_available_bytes), _size(memory.host_total_bytes)
            sizes = {"host available": available, "host total": total}
        share_headers = SHARE_HEADERS if self._per_process else ()
        nothing = ("-",) * len(share_headers)
        rows: list[list[object]] = []
        for each in sample.gpus:
            told = "; ".join(alarm.message for alarm in alarms if _is_of(alarm, each)) or "-"
            facts = [_time(sample), *(cell(each) for cell in COLUMNS.values()), told, *sizes.values()]
            shares = [_share_cells(share) for share in each.processes or ()] if share_headers else []
            rows += [[*facts, *share] for share in shares or [nothing]]
        if not sample.gpus:
            rows = [[_time(sample), *["-"] * (len(COLUMNS) + 1), *sizes.values(), *nothing]]
        headers = ["time", *COLUMNS, "alarms", *sizes, *share_headers]
        text = draw(Table(headers, rows, right=(*NUMBERS, *sizes, "pid", "memory")), self._format)
        if self._format != "tsv":
            return text
        header, _, added = text.partition("\n")
        return text if self._is_first and self._to.needs_header(f"{header}\n") else added

    def _write_view(self, sample: Sample, alarms: Sequence[Alarm], memory: HostMemory | None) -> None:
        """The tables, one after another; in the continuous view under the time, each painted over the last."""
        parts = []
        if self._every_s is not None:
            every = format_seconds(self._every_s)
            parts.append(f"{_time(sample)}, every {every}\n")
        width = self._to.width
        if sample.gpus:
            rows = [[cell(each) for cell in COLUMNS.values()] for each in sample.gpus]
            parts.append(draw(Table(list(COLUMNS), rows, right=NUMBERS, spare=SPARE), width=width))
        if self._per_process:
            parts += _share_tables(sample.gpus, width)
        if self._every_s is not None:
            parts += self._history(sample.gpus)
        if memory:
            available, total = format_bytes(memory.host_available_bytes), format_bytes(memory.host_total_bytes)
            parts.append(f"host memory: {available} of {total} available\n")
        if alarms:
            parts.append("".join(f"alarm: {make_line(each.message)}\n" for each in alarms))
        text = "\n".join(parts)
        if self._every_s is not None and self._to.is_screen:
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
            room = (self._to.width or output.DEFAULT_COLUMNS) - len(label) - len(now) - 2
            lines.append(f"{label}{sparkline(list(self._used[each.key]), room)}  {now}\n")
        return ["".join(lines)] if lines else []


def _time(sample: Sample) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(sample.time_s))


def _is_of(alarm: Alarm, gpu: Gpu) -> bool:
    return (alarm.index, alarm.uuid) == (gpu.index, gpu.uuid)


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
        (program, pid, each.index, *rest)
        for each in gpus
        for program, pid, *rest in map(_share_cells, each.processes or ())
    ]
    program, pid, *rest = SHARE_HEADERS
    return [draw(Table([program, pid, "gpu", *rest], rows, right=("memory",)), width=width)] if rows else []


def _share_cells(share: GpuProcess) -> tuple[object, ...]:
    seat = share.seat or share.server or "-"
    return share.program or "-", share.pid, _size(share.used_bytes), share.model or "-", seat


SHARE_HEADERS = ("program", "pid", "memory", "model", "seat or server")


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
