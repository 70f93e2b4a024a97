"""How measurements spread, and whether two of them differ; pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean, median
from typing import Literal, NamedTuple, TypeAlias

Verdict: TypeAlias = Literal["better", "worse", "same", "unknown"]

LEAST_RUNS = 3  # of which a spread can be told
NOISE_DEVIATIONS = 3  # two medians closer than so many deviations of both are taken for the same
LEAST_CHANGE = 0.05  # and so are two that differ by less: one machine is not the same from day to day
SLOPE_ERRORS = 3  # a slope within so many standard errors of 0 is none


class Slope(NamedTuple):
    """A straight line's slope by least squares, and its standard error."""

    slope: float
    error: float

    def is_noise(self) -> bool:
        return abs(self.slope) <= SLOPE_ERRORS * self.error


def deviation(values: Sequence[float]) -> float:
    """The median absolute deviation from the median: one outlier does not move it."""
    middle = median(values)
    return median(abs(value - middle) for value in values)


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """The slope of ys over xs, of which there are at least three, not all the same."""
    x_mean, y_mean = fmean(xs), fmean(ys)
    x_squares = sum((x - x_mean) ** 2 for x in xs)
    rise = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / x_squares
    rest = sum((y - y_mean - rise * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Slope(rise, sqrt(rest / (len(xs) - 2) / x_squares))


def blocks(values: Sequence[float], count: int) -> list[float]:
    """The medians of `count` blocks of neighbours, as even as can be: these depend less on each other."""
    bounds = [len(values) * number // count for number in range(count + 1)]
    return [median(values[low:high]) for low, high in pairwise(bounds) if high > low]


def judge(old: Sequence[float], new: Sequence[float], *, lower_is_better: bool) -> Verdict:
    """Did it get better or worse? The same where the medians differ by less than

    - NOISE_DEVIATIONS times the sum of both median absolute deviations, or
    - LEAST_CHANGE of the smaller median;

    unknown where either has fewer than LEAST_RUNS runs.
    """
    if min(len(old), len(new)) < LEAST_RUNS:
        return "unknown"
    change = median(new) - median(old)
    noise = NOISE_DEVIATIONS * (deviation(old) + deviation(new))
    if abs(change) <= max(noise, LEAST_CHANGE * min(abs(median(old)), abs(median(new)))):
        return "same"
    return "better" if (change < 0) == lower_is_better else "worse"
