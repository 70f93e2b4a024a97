"""What ping-pipes measured as it shows it: a table, for the screen or as a document, histograms, JSON."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import asdict, astuple, replace

from modelpipes.pipe.ping import Flood, Flow, RoundTrips
from modelpipes.terminal import output
from modelpipes.terminal.drawing import SCREEN
from modelpipes.terminal.table import Table, draw_table
from modelpipes.values.percentiles import histogram, summarize
from modelpipes.values.units import format_bytes

Measured: TypeAlias = RoundTrips | Flood

MIN_BAR = 8
EIGHTHS = " ▏▎▍▌▋▊▉"  # of a column, for the end of a bar
# In a narrow terminal, the least needed first.
SPARE = ("p90", "min", "p99.9", "count", "msg/s", "lost", "seconds", "bytes/s")
TEXT = ("size", "end")  # columns; the others are numbers
TIMES = ("min", "p50", "p90", "p99", "p99.9", "max")


class End(Struct, frozen=True):
    """The process at one end, and the CPUs that it may run on; None: it could not be asked."""

    name: str
    cpus: list[int] | None

    @classmethod
    def of(cls, seat: str, pid: int | None) -> End:
        with contextlib.suppress(OSError):  # it has gone
            if pid is not None:
                return cls(f"{seat} (pid {pid})", sorted(os.sched_getaffinity(pid)))
        return cls(seat, None)


def write(
    measured: Sequence[Measured], ends: tuple[End, End], format_: str, *, as_list: bool = False, draws: bool = False
) -> None:
    """Write what was measured to stdout, of each size that came to anything; a histogram of each if it `draws`."""
    begun = [each for each in measured if each.count]
    if not begun:
        return
    if format_ == "json":
        reports = [_report(each, ends) for each in begun]
        output.write_json(reports if as_list else reports[0])
        return
    table = _table([row for each in begun for row in _rows(each)])
    if format_ != SCREEN:
        headers = [f"{name} µs" if name in TIMES else name for name in table.headers]
        output.write_table(replace(table, headers=headers, right=set(headers).difference(TEXT)), format_)
        return
    output.write_text(draw_table(table, output.width()))
    where = [f"{end.name} on {'a CPU unknown' if end.cpus is None else f'CPU {cpu_ranges(end.cpus)}'}" for end in ends]
    note = [] if isinstance(begun[0], Flood) else ["round trips in µs"]
    output.write_text("".join(f"{line}\n" for line in [*note, *where]))
    for each in begun:
        if draws and isinstance(each, RoundTrips) and each.times_ns:
            output.write_text(_drawn(each, output.columns()))


def cpu_ranges(cpus: Iterable[int]) -> str:
    """CPUs as taskset lists them: 0-3,8."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][-1] + 1:
            ranges[-1][1:] = [cpu]
        else:
            ranges.append([cpu])
    return ",".join("-".join(map(str, each)) for each in ranges)


# -- JSON


class Spread(Struct, frozen=True, forbid_unknown_fields=True):
    """How round trips spread, in microseconds; each is one of them (the nearest rank)."""

    min: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


class Affinity(Struct, frozen=True, forbid_unknown_fields=True):
    """The CPUs that each process may run on; null: it could not be asked."""

    ours: list[int] | None
    peer: list[int] | None


class PingReport(Struct, frozen=True, forbid_unknown_fields=True):
    """Round trips of one size, which is that of the content; `round_trip_us` is null where all were lost."""

    size_bytes: int
    count: int
    lost: int
    messages_per_second: float
    round_trip_us: Spread | None
    affinity: Affinity


class Rates(Struct, frozen=True, forbid_unknown_fields=True):
    """How fast messages went at one end; bytes are those of the content."""

    seconds: float
    messages_per_second: float
    bytes_per_second: float


class FloodReport(Struct, frozen=True, forbid_unknown_fields=True):
    """A flood of one size. The rates outside `receiver` are the sender's; null is what a flood broken off hides."""

    size_bytes: int
    sent: int
    received: int | None
    lost: int | None
    seconds: float
    messages_per_second: float
    bytes_per_second: float
    receiver: Rates | None
    affinity: Affinity


def _report(measured: Measured, ends: tuple[End, End]) -> PingReport | FloodReport:
    affinity = Affinity(ends[0].cpus, ends[1].cpus)
    if isinstance(measured, RoundTrips):
        spread = astuple(summarize(measured.times_ns)) if measured.times_ns else None
        return PingReport(
            measured.size_bytes,
            measured.count,
            measured.lost,
            _per_second(len(measured.times_ns), measured.seconds),
            Spread(*(round(time_ns / 1000, 1) for time_ns in spread)) if spread else None,
            affinity,
        )
    sent, received = _rates(measured.sent), measured.received
    return FloodReport(
        measured.size_bytes,
        measured.sent.messages,
        received.messages if received else None,
        measured.lost,
        sent.seconds,
        sent.messages_per_second,
        sent.bytes_per_second,
        _rates(received) if received else None,
        affinity,
    )


def _rates(flow: Flow) -> Rates:
    return Rates(
        round(flow.seconds, 3),
        _per_second(flow.messages, flow.seconds),
        _per_second(flow.content_bytes, flow.seconds),
    )


def _per_second(amount: int, seconds: float) -> float:
    return round(amount / seconds, 1) if seconds else 0.0


# -- the table


def _rows(measured: Measured) -> list[dict[str, str]]:
    return _flood_rows(measured) if isinstance(measured, Flood) else [_round_trips_row(measured)]


def _round_trips_row(trips: RoundTrips) -> dict[str, str]:
    spread = asdict(summarize(trips.times_ns)) if trips.times_ns else {}
    times = {name.replace("_", "."): _micros(time_ns) for name, time_ns in spread.items()}
    return {
        "size": format_bytes(trips.size_bytes),
        "count": str(trips.count),
        "lost": str(trips.lost),
        "msg/s": f"{_per_second(len(trips.times_ns), trips.seconds):.0f}",
        **(times or dict.fromkeys(TIMES, "-")),
    }


def _flood_rows(flood: Flood) -> list[dict[str, str]]:
    lost = "?" if flood.lost is None else str(flood.lost)
    return [
        {
            "size": format_bytes(flood.size_bytes),
            "end": end,
            "messages": str(flow.messages) if flow else "?",
            "lost": lost,
            "seconds": f"{flow.seconds:.2f}" if flow else "?",
            "msg/s": f"{_per_second(flow.messages, flow.seconds):.0f}" if flow else "?",
            "bytes/s": format_bytes(round(_per_second(flow.content_bytes, flow.seconds))) if flow else "?",
        }
        for end, flow in (("sent", flood.sent), ("received", flood.received))
    ]


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    headers = list(rows[0])
    numbers = [name for name in headers if name not in TEXT]
    return Table(headers, [list(row.values()) for row in rows], numbers, SPARE)


# -- the histogram


def _drawn(trips: RoundTrips, width: int) -> str:
    """How many round trips took at least so long, each line less than the next one's."""
    buckets = histogram(trips.times_ns)
    lows = [_micros(bucket.low) for bucket in buckets]
    low_width, count_width = max(4, *map(len, lows)), max(5, *(len(str(bucket.count)) for bucket in buckets))
    bar_width = max(MIN_BAR, width - low_width - count_width - 4)
    most = max(bucket.count for bucket in buckets)
    lines = ["", format_bytes(trips.size_bytes), f"{'≥ µs':>{low_width}}  {'count':>{count_width}}"]
    for number, (low, bucket) in enumerate(zip(lows, buckets, strict=True)):
        if number and bucket.low > buckets[number - 1].high:
            lines.append(f"{'⋮':>{low_width}}")
        bar = _bar(bucket.count, most, bar_width)
        lines.append(f"{low:>{low_width}}  {bucket.count:>{count_width}}  {bar}".rstrip())
    return "".join(f"{line}\n" for line in lines)


def _bar(count: int, most: int, width: int) -> str:
    """In proportion; what is there at all is an eighth of a column at least."""
    whole, eighths = divmod(-(-count * width * 8 // most), 8)
    return "█" * whole + EIGHTHS[eighths].strip()


def _micros(time_ns: int) -> str:
    """Microseconds to four digits or better."""
    return f"{time_ns / 1000:.1f}" if time_ns < 999_950 else f"{time_ns / 1000:.0f}"
