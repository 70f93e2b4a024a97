"""Order statistics and histograms of whole numbers; pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

MOST_BUCKETS = 16  # of a histogram: with the gaps between them a terminal shows them at once
_PER_DECADE = (50, 20, 10, 5, 2, 1)  # how finely a histogram may be cut, the finest first
_EXACT = 1000  # a percentage is taken to a thousandth: 99.9 / 100 is no exact float


class Summary(Struct, frozen=True):
    """How samples spread, in their own unit."""

    min: int
    p50: int
    p90: int
    p99: int
    p99_9: int
    max: int


class Bucket(Struct, frozen=True):
    """How many samples are at least `low` and below `high`."""

    low: int
    high: int
    count: int


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The smallest sample that at least `percent` percent of all do not exceed; 0 gives the smallest of all.

    This is the nearest rank: always one of the samples, never between two. The samples are sorted, at least
    one; `percent` is from 0 to 100, exact to a thousandth.
    """
    rank = -(-round(percent * _EXACT) * len(ordered) // (100 * _EXACT))  # in whole numbers, rounded up
    return ordered[max(rank, 1) - 1]


def summarize(samples: Iterable[int]) -> Summary:
    """The summary of at least one sample, in any order."""
    ordered = sorted(samples)
    p50, p90, p99, p99_9 = (percentile(ordered, percent) for percent in (50, 90, 99, 99.9))
    return Summary(ordered[0], p50, p90, p99, p99_9, ordered[-1])


def histogram(samples: Iterable[int], most: int = MOST_BUCKETS) -> list[Bucket]:
    """The buckets that hold any of the samples, in order; empty ones between them are left out.

    Their bounds are even on a logarithmic scale, with 50 to a decade, or 20, 10, 5, 2 or 1: the first of these
    that leaves at most `most` buckets, or else the last. Samples are above 0, at least one.
    """
    counts = Counter(samples)
    for per_decade in _PER_DECADE:
        bounds = _bounds(max(counts), per_decade)
        held: Counter[int] = Counter()
        for sample, count in counts.items():
            held[bisect_right(bounds, sample) - 1] += count
        if len(held) <= most:
            break
    return [Bucket(bounds[at], bounds[at + 1], held[at]) for at in sorted(held)]


def _bounds(largest: int, per_decade: int) -> list[int]:
    """Whole numbers from 1 to beyond `largest`, as evenly on the logarithmic scale as whole numbers can be."""
    steps = len(str(largest)) * per_decade
    return sorted({round(10 ** (step / per_decade)) for step in range(steps + 1)})
