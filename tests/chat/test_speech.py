from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from modelpipes.chat.speech import NameStripper, ThoughtSplitter


def pieces(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def strip_name(text: str, cuts: list[int]) -> str:
    stripper = NameStripper("bob")
    return "".join(stripper.feed(piece) for piece in pieces(text, cuts)) + stripper.flush()


def split_thoughts(text: str, cuts: list[int]) -> tuple[str, str]:
    splitter = ThoughtSplitter()
    parts = [splitter.feed(piece) for piece in pieces(text, cuts)] + [splitter.flush()]
    return "".join(content for content, _ in parts), "".join(thinking for _, thinking in parts)


CUTS = st.lists(st.integers(min_value=0))
NAME_LIKE = st.lists(st.sampled_from(["bob", "BOB", "alice", ":", "*", "**", " ", "\n", "b", "hi"])).map("".join)
THOUGHT_LIKE = st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", " ", "\n", "hm"])).map("".join)


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


@given(THOUGHT_LIKE, CUTS)
@example(" " * 65 + "<think>x", [64, 65])
def test_cuts_do_not_matter_to_thoughts(text: str, cuts: list[int]) -> None:
    assert split_thoughts(text, cuts) == split_thoughts(text, [])


@pytest.mark.parametrize(
    ("text", "content", "thinking"),
    [
        ("<think>hm</think>yes", "yes", "hm"),
        ("\n<think>\nhm\n</think>\n\nyes\n", "yes\n", "hm\n"),
        ("<think></think>yes", "yes", ""),
        ("<think>a < b </thin </think>c", "c", "a < b </thin "),
        ("<think>never ends </thi", "", "never ends </thi"),
        ("<thinking>x", "<thinking>x", ""),
        ("x <think>y</think>", "x <think>y</think>", ""),
        ("  hi ", "  hi ", ""),
        ("<thi", "<thi", ""),
        ("", "", ""),
    ],
)
def test_leading_thoughts_are_parted_from_the_answer(text: str, content: str, thinking: str) -> None:
    assert split_thoughts(text, []) == (content, thinking)


@given(st.text(min_size=1))
def test_an_answer_without_thoughts_is_not_held_back(text: str) -> None:
    assume(text[0] != "<" and not text[0].isspace())
    assert ThoughtSplitter().feed(text) == (text, "")
