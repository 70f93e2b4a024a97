"""What the last uses of models tell of those to come."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.serving.situation import Use
from modelpipes.serving.uses import last_answer, next_uses

MOMENTS = st.integers(0, 30).map(float)
USES = st.lists(st.builds(Use, st.just("a"), MOMENTS, MOMENTS, st.none() | MOMENTS), max_size=5)


def test_a_rhythm_is_seen_only_where_the_last_two_intervals_are_equal() -> None:
    uses = [Use(name, float(n), float(n)) for n, name in enumerate("abcaba")]
    assert next_uses(uses, 6.0) == {}


def test_who_has_asked_again_is_not_away() -> None:
    answered = [Use("a", 1.0, 1.0, 5.0)]
    assert last_answer(answered, []) == 5.0
    assert last_answer(answered, [6.0]) == -math.inf
    assert last_answer(answered, [4.0]) == 5.0


@given(USES, st.lists(MOMENTS, max_size=12).map(sorted))
def test_no_more_of_the_last_arrivals_count_than_there_are_answers(uses: list[Use], arrivals: list[float]) -> None:
    some = arrivals[-len(uses) :] if uses else []
    assert last_answer(uses, some) == last_answer(uses, arrivals)
