"""What must hold, judged by the figures of one run; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TypeAlias

from tests.bench import commands, conversation, fairness, transport
from tests.bench.results import Figure, Promise
from tests.bench.spread import SLOPE_ERRORS, Slope
from tests.bench.tables import quantity

MOST_TIMES_C = {"64 B": 2.5, "4 KiB": 3.5, "64 KiB": 6.0, "1 MiB": 8.0}
LEAST_PER_SECOND = {transport.BATCHED: 250_000, transport.SINGLE: 100_000}
AHEAD_OF = (transport.CONNECTION, transport.ASYNCIO, transport.ZMQ)
AHEAD_AT = ("64 B", "4 KiB", "64 KiB")
FAIR_FACTOR = 2.0
MOST_TIMES_CLICK = 2.0
# An allocator takes memory in steps (glibc's heap grows by 128 KiB): a growth below one is not seen, or seen as more.
STEP_KIB = 128

Found: TypeAlias = Mapping[tuple[str, str, str, str], Figure]


def judge(figures: Sequence[Figure]) -> list[Promise]:
    """Every promise that these figures tell of."""
    found = {figure.name: figure for figure in figures}
    return [
        *_round_trips(found),
        *_rates(found),
        *_ahead(found),
        *_starts(figures),
        *_growth(figures),
        *_fairness(figures),
    ]


def _of(found: Found, kind: str, row: str, column: str) -> Figure | None:
    return found.get((transport.PART, f"{transport.TABLES[kind]}, {transport.ONE_CORE}", row, column))


def _round_trips(found: Found) -> Iterator[Promise]:
    for column, most in MOST_TIMES_C.items():
        ours = _of(found, "round_trip", transport.OURS, column)
        if ours and ours.ratio is not None and ours.against == transport.C_BLOCKING:
            what = f"round trip of {column} against C, blocking"
            yield Promise(what, f"at most {most:g} times", f"{ours.ratio:.2f} times", ours.ratio <= most)


def _rates(found: Found) -> Iterator[Promise]:
    for column, least in LEAST_PER_SECOND.items():
        if ours := _of(found, "one_way", transport.OURS, column):
            yield Promise(
                f"one way, {column}",
                f"at least {quantity(least, 'per_second')}",
                quantity(ours.value, "per_second"),
                ours.value >= least,
            )


def _ahead(found: Found) -> Iterator[Promise]:
    for row in AHEAD_OF:
        for column in AHEAD_AT:
            ours = _of(found, "round_trip", transport.OURS, column)
            theirs = _of(found, "round_trip", row, column)
            if ours and theirs:
                times = median(their / our for our, their in zip(ours.runs, theirs.runs, strict=True))
                yield Promise(f"faster than {row} at {column}", "more than 1 time", f"{times:.2f} times", times > 1)


def _starts(figures: Sequence[Figure]) -> Iterator[Promise]:
    for figure in figures:
        if figure.table == commands.PROCESSOR and figure.ratio is not None:
            yield Promise(
                f"{figure.row}, processor time against {commands.CLICK}",
                f"at most {MOST_TIMES_CLICK:g} times",
                f"{figure.ratio:.2f} times",
                figure.ratio <= MOST_TIMES_CLICK,
            )


def _growth(figures: Sequence[Figure]) -> Iterator[Promise]:
    for figure in figures:
        if figure.part != conversation.PART or figure.slope is None or figure.slope_error is None:
            continue
        grown = figure.slope * conversation.TURNS / 1000
        is_noise = grown <= 0 or Slope(figure.slope, figure.slope_error).is_noise()
        is_small = figure.unit == "KiB" and grown < STEP_KIB
        yield Promise(
            f"{figure.row} does not grow with the turns",
            f"slope at most {SLOPE_ERRORS} standard errors above 0"
            + (f", or {STEP_KIB} KiB in all" if figure.unit == "KiB" else ""),
            f"{figure.slope:+.2g} ± {figure.slope_error:.1g} {figure.unit} per 1000 turns",
            is_noise or is_small,
        )


def _fairness(figures: Sequence[Figure]) -> Iterator[Promise]:
    for figure in figures:
        if figure.part != fairness.PART:
            continue
        if figure.column == fairness.LOST:
            lost = sum(figure.runs)
            yield Promise(f"nothing lost: {figure.row}", "0", f"{lost:.0f}", lost == 0)
        elif figure.column in (fairness.SERVED, fairness.SLOWEST):
            what = f"fair, {figure.column}: {figure.row}"
            yield Promise(
                what, f"at most {FAIR_FACTOR:g} times", f"{figure.value:.2f} times", figure.value <= FAIR_FACTOR
            )
