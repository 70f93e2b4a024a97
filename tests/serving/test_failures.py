"""Failures in a row: the pauses after them, causes that last, and what makes them forgotten."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import ServingError
from modelpipes.gguf.identity import stamp_of
from modelpipes.serving.failures import LONGEST_BACKOFF_S, Failures, backoff_s

MISSING = stamp_of("a.gguf")


def refusal(failures: Failures, now: float, file: str = "a.gguf") -> ServingError | None:
    try:
        failures.check("a", [file], now)
    except ServingError as refused:
        return refused
    return None


def test_the_back_off_doubles_from_ten_seconds_to_five_minutes() -> None:
    assert [backoff_s(failures) for failures in range(9)] == [0, 0, 10, 20, 40, 80, 160, 300, 300]


@given(st.integers(0, 10**9))
def test_the_back_off_never_falls_nor_passes_its_limit(failures: int) -> None:
    assert backoff_s(failures) <= backoff_s(failures + 1) <= LONGEST_BACKOFF_S


def test_failures_in_a_row_are_waited_out_longer_each_time() -> None:
    failures, now = Failures(), 1000.0
    for in_a_row, pause_s in ((1, 0.0), (2, 10.0), (3, 20.0)):
        failure = failures.count("a", "killed", now, MISSING)
        assert (failure.in_a_row, failure.pause_s) == (in_a_row, pause_s)
        assert failures.retry_moments() == {"a": now + pause_s}
        if pause_s:
            refused = refusal(failures, now + pause_s - 1)
            assert refused is not None
            assert (str(refused), refused.retry_after_s) == ("a could not be loaded: killed", 1)
        now += pause_s
        assert refusal(failures, now) is None


def test_the_failures_of_one_model_are_none_of_another_s() -> None:
    failures = Failures()
    for _ in range(3):
        failures.count("b", "killed", 0.0, MISSING)
    assert refusal(failures, 0.0) is None
    assert failures.count("a", "killed", 0.0, MISSING).in_a_row == 1


def test_what_lived_has_not_failed() -> None:
    failures = Failures()
    failures.count("a", "killed", 0.0, MISSING)
    failures.forget("a")
    failures.forget("a")
    assert failures.count("a", "killed", 0.0, MISSING).in_a_row == 1


def test_a_cause_that_lasts_is_refused_without_a_time_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"broken")
    failures = Failures()
    failures.count("a", "bad file", 0.0, stamp_of(str(file)), is_lasting=True)
    refused = refusal(failures, 1e9, str(file))
    assert refused is not None
    assert refused.retry_after_s is None
    assert str(refused).startswith("a could not be loaded: bad file; tried again when the file or the configuration")
    file.write_bytes(b"whole now")
    assert refusal(failures, 0.0, str(file)) is None
    assert failures.count("a", "killed", 0.0, MISSING).in_a_row == 1


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_age_has_changed(tmp_path: Path) -> None:
    file, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path in (file, other):
        path.write_bytes(b"broken")
        os.utime(path, (0, 0))
    before = stamp_of(str(file))
    other.rename(file)
    assert stamp_of(str(file)) != before


def test_a_missing_shard_that_comes_is_a_change(tmp_path: Path) -> None:
    first = tmp_path / "a-00001-of-00002.gguf"
    first.write_bytes(b"whole")
    before = stamp_of(str(first))
    (tmp_path / "a-00002-of-00002.gguf").write_bytes(b"whole")
    assert stamp_of(str(first)) != before


def test_one_that_is_wanted_all_the_same_is_loaded_once_its_pause_has_passed() -> None:
    failures = Failures()
    failures.count("a", "bad flag", 0.0, MISSING, is_lasting=True)
    assert refusal(failures, 0.0) is not None
    failures.allow("a")
    assert refusal(failures, 0.0) is None
    failures.count("a", "bad flag", 0.0, MISSING, is_lasting=True)
    failures.allow("a")
    refused = refusal(failures, 4.0)
    assert refused is not None and refused.retry_after_s == 6.0
    failures.forget_all()
    assert refusal(failures, 4.0) is None
    failures.allow("a")
    assert failures.retry_moments() == {}


def test_failures_of_a_file_are_none_of_the_one_that_replaced_it(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"crashes")
    failures = Failures()
    for in_a_row in (1, 2, 3):
        assert failures.count("a", "killed", 0.0, stamp_of(str(file))).in_a_row == in_a_row
    assert refusal(failures, 1.0, str(file)) is not None
    file.write_bytes(b"works")
    assert refusal(failures, 1.0, str(file)) is None
    assert failures.retry_moments() == {}
    failures.count("a", "killed", 0.0, MISSING)
    assert failures.count("a", "killed", 0.0, stamp_of(str(file))).in_a_row == 1
