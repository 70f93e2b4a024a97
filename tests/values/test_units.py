from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelpipes.errors import UsageError
from modelpipes.values.units import (
    MAX_CPU,
    MAX_SECONDS,
    format_bytes,
    format_cpus,
    format_elapsed,
    format_seconds,
    format_share,
    parse_bytes,
    parse_cpus,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("30s", 30.0),
        (" 30 S ", 30.0),
        ("0.5", 0.5),
        (".5s", 0.5),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
    ],
)
def test_a_duration_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["none", "None", " NONE "])
def test_none_means_no_limit(text: str) -> None:
    assert parse_seconds(text) is None


@pytest.mark.parametrize(
    "text", ["", "s", "0", "0s", "0.0ms", "-1", "inf", "nan", "1e3", "1 2", "30x", "1h30m", "٣", "1" + "0" * 400]
)
def test_what_is_no_duration_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        parse_seconds(text)


@given(st.floats(min_value=1e-6, max_value=MAX_SECONDS / 2))
@example(0.99999)
@example(999.7)
def test_a_formatted_duration_reads_back_as_about_itself(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.006)


@given(st.integers(min_value=1, max_value=10**6))
def test_whole_seconds_below_a_thousand_and_whole_minutes_read_back_exactly(count: int) -> None:
    assert parse_seconds(format_seconds(count * 60.0)) == count * 60.0
    assert parse_seconds(format_seconds(float(count % 999 + 1))) == count % 999 + 1


def test_no_limit_is_formatted_as_none() -> None:
    assert format_seconds(None) == "none"


@given(st.text(max_size=12))
def test_any_text_is_a_finite_positive_duration_or_wrong_usage(text: str) -> None:
    try:
        seconds = parse_seconds(text)
    except UsageError:
        return
    assert seconds is None or (seconds > 0 and math.isfinite(seconds))


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("17B", 17),
        ("0", 0),
        ("1k", 1024),
        ("1KB", 1000),
        ("512MiB", 512 * 2**20),
        ("1G", 2**30),
        ("1GiB", 2**30),
        ("14GB", 14 * 10**9),
        ("1.5G", 3 * 2**29),
        ("7.99 gb", 7_990_000_000),
        ("2T", 2**41),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_read_as_coreutils_does(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "1X", "1Bi", "1GGB", "1e9", "inf", "1 G B", "1,5G", "9" * 5000])
def test_what_is_no_size_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=2**63))
def test_a_formatted_size_reads_back_as_about_itself(size_bytes: int) -> None:
    text = format_bytes(size_bytes)
    assert parse_bytes(text) == pytest.approx(size_bytes, rel=0.06)
    assert not text.startswith("1024")


def test_sizes_are_formatted_with_binary_suffixes() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 1536 * 1024, 16 * 2**30)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "16.0 GiB",
    ]  # fmt: skip


def test_cpus_are_read_as_taskset_takes_them() -> None:
    assert parse_cpus("0-3, 8,2") == (0, 1, 2, 3, 8)


@given(st.sets(st.integers(0, MAX_CPU), min_size=1, max_size=40))
def test_cpus_that_are_written_are_read_as_the_same(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == tuple(sorted(cpus))


@pytest.mark.parametrize("text", ["", ",", "3-1", "-1", "0-", "a", "0x1", "٣", "8192", "0--2"])
def test_what_is_no_list_of_cpus_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is no list of CPUs: write 0-3,8"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (3_328_600_000, 5_046_586_573, "3.1 of 4.7 GiB"),
        (0, 5_046_586_573, "0.0 of 4.7 GiB"),
        (7, 900, "7 of 900 B"),
        (2**20, 2**20, "1.0 of 1.0 MiB"),
        (1023, 1_048_500, "1.0 of 1023.9 KiB"),
    ],
)
def test_a_part_is_told_in_the_unit_of_the_whole(done: int, total: int, text: str) -> None:
    assert format_share(done, total) == text


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_a_whole_part_reads_as_the_whole(done: int, total: int) -> None:
    number, _, whole = format_share(min(done, total), total).partition(" of ")
    assert whole == format_bytes(total)
    assert 0 <= float(number) <= float(whole.split()[0])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.98, "1 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3723, "62 min 3 s")]
)
def test_what_something_took_is_told_in_whole_seconds(seconds: float, text: str) -> None:
    assert format_elapsed(seconds) == text
