"""Bytes by place: sums, whether they fit, and how they are told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.serving.bytes import NOTHING, Bytes, amount

GIB = 1 << 30
SOME = st.dictionaries(st.sampled_from(("card", "host", "card 1", "box")), st.integers(-9, 9)).map(Bytes)


@given(SOME, SOME)
def test_what_is_added_can_be_taken_away_again(one: Bytes, other: Bytes) -> None:
    assert one + other - other == one
    assert one + other == other + one == Bytes.total((one, other))
    assert one - one == NOTHING


@given(SOME, SOME)
def test_bytes_fit_where_they_fit_at_every_place_and_a_place_without_a_name_has_none(one: Bytes, other: Bytes) -> None:
    places = {*one.by_place, *other.by_place}
    assert (one <= other) == all(one[place] <= other[place] for place in places)


@given(SOME)
def test_a_place_with_no_bytes_is_as_one_without_a_name(some: Bytes) -> None:
    same = some + Bytes({"nowhere": 0})
    assert same == some
    assert hash(same) == hash(some)
    assert some["nowhere"] == 0


def test_the_card_and_the_host_are_the_places_of_the_daemon() -> None:
    assert (Bytes.of(3, 5).card, Bytes.of(3, 5).host) == (3, 5)
    assert Bytes.of(3) == Bytes({"card": 3})


def test_the_host_is_told_where_its_memory_is_asked_for_and_the_card_always() -> None:
    assert amount(Bytes.of(5 * GIB, GIB), Bytes.of(1, 1)) == "5.0 GiB and 1.0 GiB of host memory"
    assert amount(Bytes.of(5 * GIB, GIB), Bytes.of(1)) == "5.0 GiB"
    assert amount(Bytes.of(-5, GIB), Bytes.of(0, 1)) == "0 B and 1.0 GiB of host memory"


def test_other_places_are_told_by_name() -> None:
    size = Bytes({"box": GIB, "card 1": 2 * GIB, "card": 3 * GIB, "host": 4 * GIB})
    assert amount(size, Bytes({"box": 1})) == "1.0 GiB of box"
    assert amount(size, size) == "3.0 GiB of the card, 1.0 GiB of box, 2.0 GiB of card 1 and 4.0 GiB of host memory"
