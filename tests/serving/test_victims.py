"""The set of models that goes: it makes room, and none costs less."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.serving.bytes import Bytes
from modelpipes.serving.situation import Resident
from modelpipes.serving.victims import EXACT_VICTIMS, smallest

SIZES = st.builds(Bytes.of, st.integers(0, 9), st.integers(0, 3))


@st.composite
def residents(draw: st.DrawFn, most: int) -> list[tuple[Resident, float]]:
    """Each with its cost."""
    sizes = draw(st.lists(SIZES, max_size=most))
    some = [Resident(f"r{number}", size, "ready", 0, 0.0, 0.0) for number, size in enumerate(sizes)]
    return [(one, float(draw(st.integers(1, 9)))) for one in some]


@given(residents(6), SIZES, st.booleans())
def test_no_set_that_makes_room_costs_less(
    some: list[tuple[Resident, float]], missing: Bytes, is_fewest_first: bool
) -> None:
    costs = {one.name: cost for one, cost in some}
    candidates = [one for one, _ in some]
    found = smallest(candidates, missing, lambda one: costs[one.name], is_fewest_first=is_fewest_first)
    enough = [
        (count if is_fewest_first else 0, sum(costs[one.name] for one in victims))
        for count in range(1, len(candidates) + 1)
        for victims in itertools.combinations(candidates, count)
        if missing <= Bytes.total(one.bytes for one in victims)
    ]
    if found is None:
        assert not enough
    else:
        assert missing <= Bytes.total(one.bytes for one in found)
        assert (len(found) if is_fewest_first else 0, sum(costs[one.name] for one in found)) == min(enough)


@given(residents(EXACT_VICTIMS + 6), SIZES)
def test_of_many_none_goes_that_could_stay(some: list[tuple[Resident, float]], missing: Bytes) -> None:
    costs = {one.name: cost for one, cost in some}
    found = smallest([one for one, _ in some], missing, lambda one: costs[one.name])
    for left in found or ():
        rest = [one for one in found or () if one is not left]
        assert not rest or not missing <= Bytes.total(one.bytes for one in rest)
