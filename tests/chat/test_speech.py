from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelpipes.chat.speech import LabelCutter, NameStripper


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


# --- LabelCutter


def cut_labels(text: str, cuts: list[int]) -> tuple[str, bool]:
    cutter = LabelCutter(["bob", "carol", "hub"])
    said = "".join(cutter.feed(piece) for piece in pieces(text, cuts))
    return said + cutter.flush(), cutter.is_cut


LABEL_LIKE = st.lists(
    st.sampled_from(["bob", "Carol", "hub", "alice", ":", " :", "**", "*", " ", "\n", "\n\n", "b", "hi"])
).map("".join)


@given(LABEL_LIKE, CUTS)
def test_cuts_in_the_stream_do_not_matter_to_labels(text: str, cuts: list[int]) -> None:
    assert cut_labels(text, cuts) == cut_labels(text, [])


@pytest.mark.parametrize(
    "label", ["bob:", "Bob: ", "CAROL :", "**hub:** ", "**Bob**: ", "*carol:* ", "  bob: ", "\tbob:"]
)
@given(cuts=CUTS)
def test_words_that_are_put_into_anothers_mouth_are_cut(label: str, cuts: list[int]) -> None:
    assert cut_labels(f"I am for it. \n\n{label}I am against it.\n\nhub: Stop.", cuts) == ("I am for it.", True)


@given(cuts=CUTS)
def test_an_answer_that_begins_in_anothers_name_is_none(cuts: list[int]) -> None:
    assert cut_labels("\n bob: I am against it.", cuts) == ("", True)


@pytest.mark.parametrize(
    "text",
    [
        "I told bob: no.", "bobby: x", "\nbob is here", "alice: hi", "a\nalice: hi", "- bob: he", "x\ncarol", "x\n", "",
        "**b**", "b", "x\n\n**carol** is", "hub", "  hi ",
    ],
)  # fmt: skip
@given(cuts=CUTS)
def test_an_answer_that_only_speaks_of_others_stays_as_it_is(text: str, cuts: list[int]) -> None:
    assert cut_labels(text, cuts) == (text, False)


@given(st.text(), CUTS)
def test_without_names_nothing_is_cut_nor_held_back(text: str, cuts: list[int]) -> None:
    cutter = LabelCutter([])
    assert [cutter.feed(piece) for piece in pieces(text, cuts)] == pieces(text, cuts)


@given(LABEL_LIKE, CUTS)
def test_no_line_of_an_answer_begins_with_anothers_name(text: str, cuts: list[int]) -> None:
    said, _ = cut_labels(text, cuts)
    assert not any(line.lstrip().lower().startswith(("bob:", "carol:", "hub:", "bob :")) for line in said.split("\n"))
