"""Files of a model in memory, by their stamps: replaced, at rest, or as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.gguf.identity import Stamp
from modelpipes.serving.files import Watched

A: Stamp = ((1, 2, 3, 4, 5),)
TOUCHED: Stamp = ((1, 2, 3, 4, 99),)
B: Stamp = ((1, 2, 3, 9, 9),)
C: Stamp = ((1, 7, 3, 4, 5),)
GONE: Stamp = ((),)


def test_another_file_is_told_once_when_it_was_the_same_at_two_looks() -> None:
    watched = Watched(A)
    assert [watched.look(stamp) for stamp in (A, B, B, B)] == [False, False, True, False]
    assert watched.are_replaced
    assert [watched.look(stamp) for stamp in (C, C)] == [False, True]


def test_a_file_that_is_being_written_is_not_told_before_it_rests() -> None:
    watched = Watched(A)
    for size in range(9):
        assert not watched.look(((1, 2, size, 9, 9),))
        assert watched.are_replaced
    assert watched.look(((1, 2, 8, 9, 9),))


def test_what_is_put_back_or_only_touched_is_not_replaced() -> None:
    watched = Watched(A)
    assert [watched.look(stamp) for stamp in (B, A, A, TOUCHED, TOUCHED)] == [False] * 5
    assert not watched.are_replaced


def test_a_file_that_is_gone_is_another_state() -> None:
    watched = Watched(A)
    assert [watched.look(GONE), watched.look(GONE)] == [False, True]
    assert watched.are_replaced


@given(st.lists(st.sampled_from((A, B, C, GONE, TOUCHED))))
def test_what_is_told_is_another_file_at_rest_and_never_the_same_twice_in_a_row(looks: list[Stamp]) -> None:
    watched, before, told = Watched(A), A, A
    for stamp in looks:
        is_told = watched.look(stamp)
        assert not is_told or (stamp == before != told and stamp not in (A, TOUCHED))
        if stamp == before:
            told = stamp
        before = stamp
        assert watched.are_replaced == (stamp not in (A, TOUCHED))
