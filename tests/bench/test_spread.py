from __future__ import annotations

import random
from statistics import linear_regression, median

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.bench.spread import LEAST_CHANGE, LEAST_RUNS, Slope, blocks, deviation, judge, slope

sizes = st.floats(0.01, 1e6)
runs = st.lists(sizes, min_size=LEAST_RUNS, max_size=20)
either = st.booleans()


@given(runs, st.floats(-1e3, 1e3))
def test_the_deviation_is_that_of_the_distances_and_moves_with_nothing(values: list[float], shift: float) -> None:
    assert deviation(values) >= 0
    assert deviation([value + shift for value in values]) == pytest.approx(deviation(values), abs=1e-6)
    assert deviation(values) <= max(values) - min(values)


def test_one_outlier_does_not_move_the_deviation() -> None:
    assert deviation([1, 2, 3, 4, 5]) == deviation([1, 2, 3, 4, 5000]) == 1


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=30))
@example([0.0, 0.0, 0.0])
def test_the_slope_is_that_of_the_standard_library(ys: list[float]) -> None:
    xs = [float(x) for x in range(len(ys))]
    assert slope(xs, ys).slope == pytest.approx(linear_regression(xs, ys).slope, abs=1e-9)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(3, 40))
def test_a_straight_line_has_its_slope_and_no_error(start: float, rise: float, count: int) -> None:
    xs = [float(x) for x in range(count)]
    found = slope(xs, [start + rise * x for x in xs])
    assert found.slope == pytest.approx(rise, abs=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_that_of_the_textbook() -> None:
    # x 1..5, y 2 4 5 4 5: slope 0.6, residual squares 2.4, s^2 = 0.8, Sxx = 10.
    assert slope([1, 2, 3, 4, 5], [2, 4, 5, 4, 5]) == pytest.approx((0.6, 0.08**0.5))


def test_noise_has_no_slope_and_growth_in_it_has() -> None:
    rng = random.Random(4)
    xs = [float(x) for x in range(50)]
    noise = [rng.gauss(100, 5) for _ in xs]
    assert slope(xs, noise).is_noise()
    assert not slope(xs, [y + x for x, y in zip(xs, noise, strict=True)]).is_noise()
    assert Slope(0.0, 0.0).is_noise()


@given(st.lists(sizes, min_size=1, max_size=300), st.integers(1, 60))
def test_blocks_are_medians_of_all_neighbours_in_order(values: list[float], count: int) -> None:
    found = blocks(values, count)
    assert len(found) == min(count, len(values))
    if count == 1:
        assert found == [median(values)]
    assert blocks(sorted(values), count) == sorted(blocks(sorted(values), count))


@given(runs, either)
def test_a_run_is_the_same_as_itself(values: list[float], lower: bool) -> None:
    assert judge(values, values, lower_is_better=lower) == "same"


@given(runs, runs, either)
def test_what_got_better_has_got_worse_the_other_way_round(old: list[float], new: list[float], lower: bool) -> None:
    opposite = {"better": "worse", "worse": "better", "same": "same"}
    verdict = judge(old, new, lower_is_better=lower)
    assert judge(new, old, lower_is_better=lower) == opposite[verdict]
    assert judge(old, new, lower_is_better=not lower) == opposite[verdict]


@given(sizes, st.floats(1.1, 100), st.integers(LEAST_RUNS, 20))
def test_a_steady_change_is_seen(value: float, times: float, count: int) -> None:
    assert judge([value] * count, [value * times] * count, lower_is_better=True) == "worse"
    assert judge([value] * count, [value * times] * count, lower_is_better=False) == "better"


@given(sizes, st.floats(1 - LEAST_CHANGE / 2, 1 + LEAST_CHANGE / 2), st.integers(LEAST_RUNS, 20), either)
def test_a_small_change_is_none(value: float, times: float, count: int, lower: bool) -> None:
    assert judge([value] * count, [value * times] * count, lower_is_better=lower) == "same"


@given(runs, st.floats(0.01, 0.99), either)
def test_a_change_within_the_spread_is_none(values: list[float], part: float, lower: bool) -> None:
    assume(deviation(values) > 0)
    moved = [value + part * deviation(values) for value in values]
    assert judge(values, moved, lower_is_better=lower) == "same"


@given(runs, st.lists(sizes, min_size=1, max_size=LEAST_RUNS - 1), either)
def test_of_too_few_runs_nothing_is_known(many: list[float], few: list[float], lower: bool) -> None:
    assert judge(many, few, lower_is_better=lower) == "unknown"
    assert judge(few, many, lower_is_better=lower) == "unknown"
