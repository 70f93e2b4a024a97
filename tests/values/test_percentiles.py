from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.values.percentiles import MOST_BUCKETS, histogram, percentile, summarize

samples = st.lists(st.integers(1, 10**10), min_size=1, max_size=200)
per_mille = st.integers(0, 1000)


@given(samples, per_mille)
def test_a_percentile_is_that_of_the_reference(samples: list[int], q: int) -> None:
    # Not np.percentile: it divides by 100, and takes the 1000th of 1000 samples for the 99.9th percentile.
    assert percentile(sorted(samples), q / 10) == np.quantile(samples, q / 1000, method="inverted_cdf")


@given(samples, st.integers(0, 100_000))
def test_a_percentile_is_the_smallest_sample_that_the_share_does_not_exceed(samples: list[int], q: int) -> None:
    found = percentile(sorted(samples), q / 1000)
    share = Fraction(q, 100_000)
    assert found in samples
    assert Fraction(sum(each <= found for each in samples), len(samples)) >= share
    smaller = [each for each in samples if each < found]
    assert not smaller or Fraction(len(smaller), len(samples)) < share


@given(samples, st.lists(per_mille, min_size=2, max_size=2).map(sorted))
def test_a_larger_share_never_has_a_smaller_percentile(samples: list[int], shares: list[int]) -> None:
    low, high = (percentile(sorted(samples), q / 10) for q in shares)
    assert min(samples) <= low <= high <= max(samples)


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [(1000, 99.9, 999), (1001, 99.9, 1000), (1000, 50, 500), (3, 50, 2), (1, 99.9, 1), (1000, 0, 1), (1000, 100, 1000)],
)
def test_the_rank_is_exact_where_a_float_would_be_one_too_high(count: int, percent: float, rank: int) -> None:
    assert percentile(range(1, count + 1), percent) == rank


def test_a_summary_of_a_thousand() -> None:
    summary = summarize(range(1000, 0, -1))
    assert (summary.min, summary.p50, summary.p90, summary.p99, summary.p99_9, summary.max) == (
        1,
        500,
        900,
        990,
        999,
        1000,
    )


@given(samples.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_the_order_of_samples_changes_nothing(both: tuple[list[int], list[int]]) -> None:
    found, shuffled = both
    assert summarize(found) == summarize(shuffled)
    assert histogram(found) == histogram(shuffled)


@given(samples, st.integers(11, 40))
def test_a_histogram_has_every_sample_once_between_its_buckets_bounds(samples: list[int], most: int) -> None:
    buckets = histogram(samples, most)
    assert len(buckets) <= most  # a bucket to a decade always does, of which ten digits have ten
    assert [bucket.count for bucket in buckets] == [
        sum(bucket.low <= each < bucket.high for each in samples) for bucket in buckets
    ]
    assert sum(bucket.count for bucket in buckets) == len(samples)
    assert all(bucket.count for bucket in buckets)
    assert all(one.high <= other.low for one, other in pairwise(buckets))


@given(st.integers(1, 10**9), st.integers(0, MOST_BUCKETS - 1))
def test_what_lies_close_together_is_cut_fine(start: int, spread: int) -> None:
    bounds = {(bucket.low, bucket.high) for bucket in histogram(range(start, start + spread + 1))}
    assert all(high - low == 1 or high / low < 1.12 for low, high in bounds)


def test_the_bounds_of_a_coarse_histogram_are_decades() -> None:
    assert [(b.low, b.high, b.count) for b in histogram([1, 9, 10, 99, 5000], most=4)] == [
        (1, 10, 2), (10, 100, 2), (1000, 10000, 1),
    ]  # fmt: skip
