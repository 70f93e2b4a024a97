"""A moment that must not pass."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import DeadlineError
from modelpipes.values import deadline
from modelpipes.values.deadline import Deadline

seconds = st.floats(0.001, 1e9)


def test_what_never_comes_bounds_nothing() -> None:
    never = Deadline.never()
    assert not never.has_passed()
    assert never.remaining_s() == math.inf
    assert never.poll_ms() is None
    assert Deadline.after(None).poll_ms() is None
    never.check("anything")


def test_a_moment_in_the_past_leaves_no_time() -> None:
    past = Deadline.after(-1)
    assert past.has_passed()
    assert past.remaining_s() == 0
    assert past.poll_ms() == 0


def test_a_check_after_the_moment_names_what_was_waited_for() -> None:
    with pytest.raises(DeadlineError, match="no answer before the deadline") as e:
        Deadline.after(0).check("answer")
    assert e.value.exit_code == 124


@given(seconds)
def test_poll_is_never_told_less_than_is_left_and_never_more_than_it_takes(left_s: float) -> None:
    began_s = time.monotonic()
    poll_ms = Deadline.after(left_s).poll_ms()
    took_s = time.monotonic() - began_s
    assert poll_ms is not None
    assert 0 <= poll_ms <= 2**31 - 1
    assert poll_ms <= left_s * 1000 + 1
    assert poll_ms == 2**31 - 1 or poll_ms / 1000 >= left_s - took_s - 1e-6


def test_the_last_part_of_a_millisecond_is_still_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounded down, a loop would poll without waiting until the moment has passed.
    monkeypatch.setattr(deadline, "monotonic", lambda: 100.0)
    assert Deadline(100.0005).poll_ms() == 1
    assert Deadline(100.25).poll_ms() == 250


@given(seconds | st.none(), seconds | st.none())
def test_the_earlier_of_two_is_the_one_with_less_left(a_s: float | None, b_s: float | None) -> None:
    a, b = Deadline.after(a_s), Deadline.after(b_s)
    assert a.earlier(b).remaining_s() <= min(a_s or math.inf, b_s or math.inf)
    assert a.earlier(b) in (a, b)
