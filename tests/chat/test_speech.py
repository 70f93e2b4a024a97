from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelpipes.chat.speech import NameStripper


def pieces(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def strip_name(text: str, cuts: list[int]) -> str:
    stripper = NameStripper("bob")
    return "".join(stripper.feed(piece) for piece in pieces(text, cuts)) + stripper.flush()


CUTS = st.lists(st.integers(min_value=0))
NAME_LIKE = st.lists(st.sampled_from(["bob", "BOB", "alice", ":", "*", "**", " ", "\n", "b", "hi"])).map("".join)


@pytest.mark.parametrize(
    "label", ["bob:", "Bob: ", "BOB :", "\n bob:\n", "**bob:** ", "**Bob**: ", "*bob:* ", "bob:   \n\n"]
)
@given(cuts=CUTS)
def test_ones_own_name_before_an_answer_is_stripped(label: str, cuts: list[int]) -> None:
    assert strip_name(label + "Hello **there**", cuts) == "Hello **there**"


@pytest.mark.parametrize("text", ["Hello", "bobby: x", "bob is here", "alice: hi", "  hi", "", "bob", "**bold**", "b"])
@given(cuts=CUTS)
def test_an_answer_without_ones_own_name_stays_as_it_is(text: str, cuts: list[int]) -> None:
    assert strip_name(text, cuts) == text


@given(NAME_LIKE, CUTS)
@example(" " * 65 + "bob: x", [64, 65])
@example(" " * 64 + "bob: x", [64, 65])
def test_cuts_do_not_matter_to_the_name(text: str, cuts: list[int]) -> None:
    assert strip_name(text, cuts) == strip_name(text, [])


def test_only_the_first_name_is_stripped_and_bold_words_stay() -> None:
    assert strip_name("bob: **bob:** x", []) == "**bob:** x"
