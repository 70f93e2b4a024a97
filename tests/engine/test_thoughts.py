"""Thoughts and words parted: by tags, by an end without a beginning, however the pieces are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from modelpipes.engine.thoughts import CLOSE, OPEN, Parted, ThoughtSplitter

CUTS = st.lists(st.integers(min_value=0))
SCRAPS = ["<think>", "</think>", "<", "</", "think", ">", " ", "\n", "hm", "`", "```\n", '"', "'"]
THOUGHT_LIKE = st.lists(st.sampled_from(SCRAPS)).map("".join)


def pieces(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def told(parts: list[Parted]) -> tuple[str, str]:
    """What stands at the end."""
    content = thinking = ""
    for part in parts:
        if part.anew:
            content = thinking = ""
        content += part.content
        thinking += part.thinking
    return content, thinking


def split(
    text: str, cuts: list[int] | None = None, *, known: bool = False, is_whole: bool = True
) -> tuple[str, str, bool]:
    """Words, thoughts, and whether the next answer is taken to begin with thoughts."""
    splitter = ThoughtSplitter(begins_in_thoughts=known)
    parts = [splitter.feed(piece) for piece in pieces(text, cuts or [])]
    parts.append(splitter.flush(is_whole=is_whole))
    return (*told(parts), splitter.begins_in_thoughts)


@given(THOUGHT_LIKE, CUTS, st.booleans(), st.booleans())
@example(" " * 65 + "<think>x", [64, 65], False, True)
@example("a\n</think> \n b", [3, 5, 11, 13], False, True)
def test_cuts_do_not_matter(text: str, cuts: list[int], known: bool, is_whole: bool) -> None:
    whole = split(text, known=known, is_whole=is_whole)
    assert split(text, cuts, known=known, is_whole=is_whole) == whole
    assert split(text, list(range(len(text))), known=known, is_whole=is_whole) == whole


@given(THOUGHT_LIKE, st.booleans(), st.booleans())
def test_words_are_told_once_and_only_tags_and_space_are_lost(text: str, known: bool, is_whole: bool) -> None:
    def bare(text: str) -> str:
        return "".join(text.replace(OPEN, "").replace(CLOSE, "").split())

    content, thinking, _ = split(text, known=known, is_whole=is_whole)
    assert bare(thinking + content) == bare(text)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("text", "content", "thinking"),
    [
        ("<think>hm</think>yes", "yes", "hm"),
        ("\n<think>\nhm\n</think>\n\nyes\n", "yes\n", "hm\n"),
        ("<think></think>yes", "yes", ""),
        ("<think>a < b </thin </think>c", "c", "a < b </thin "),
        ("<think>never ends </thi", "", "never ends </thi"),
        ("<think>hm</think>the tag is </think> and no other", "the tag is </think> and no other", "hm"),
        ("<thinking>x", "<thinking>x", ""),
        ("  hi ", "  hi ", ""),
        ("<thi", "<thi", ""),
        ("", "", ""),
    ],
)
def test_leading_thoughts_are_parted_from_the_answer(text: str, content: str, thinking: str, known: bool) -> None:
    assert split(text, known=known)[:2] == (content, thinking)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("text", "content", "thinking"),
    [
        ("The user asks.\n</think>\n\nIt is blue.", "It is blue.", "The user asks.\n"),
        ("\nThe user asks.</think>It is blue.", "It is blue.", "The user asks."),
        ('Is it "blue" or `green`?</think>Blue.', "Blue.", 'Is it "blue" or `green`?'),
        ("Try:\n```\nx = 1\n```\n</think>\nDone.", "Done.", "Try:\n```\nx = 1\n```\n"),
        ("It's the users'</think>Theirs.", "Theirs.", "It's the users'"),
        ("hm</think>So </think> it is", "So </think> it is", "hm"),
    ],
)
def test_an_end_without_a_beginning_ends_thoughts(text: str, content: str, thinking: str, known: bool) -> None:
    assert split(text, known=known) == (content, thinking, True)


@pytest.mark.parametrize(
    "text",
    [
        "It ends with `</think>` always.",
        "Write:\n```\n</think>\n```\nafter it.",
        'Split at "</think>" and go on.',
        "text.split('</think>') gives two.",
        "x <think>y</think> z",
        "`a` and `b </think> c` are code",
    ],
)
def test_a_tag_that_the_answer_quotes_eats_nothing_of_it(text: str) -> None:
    assert split(text) == (text, "", False)


def test_a_tag_behind_nothing_but_space_is_dropped_and_teaches_nothing() -> None:
    assert split("\n</think>\n\nYes.") == ("Yes.", "", False)


@pytest.mark.parametrize("text", ["Yes.</think>", "Yes.</think>\n\n"])
def test_words_before_a_stray_tag_at_the_end_are_the_answer(text: str) -> None:
    assert split(text) == ("Yes.", "", False)


def test_a_model_known_to_think_may_end_with_its_thoughts() -> None:
    assert split("Hm.</think>", known=True) == ("", "Hm.", True)


def test_of_a_model_known_to_think_nothing_is_told_as_words_before_the_end_of_its_thoughts() -> None:
    splitter = ThoughtSplitter(begins_in_thoughts=True)
    parts = [splitter.feed(piece) for piece in ("\nThe user", " asks.\n", "</thi", "nk>\n", "\nBlue", ".")]
    assert [part.content for part in parts] == ["", "", "", "", "Blue", "."]
    assert [part.thinking for part in parts] == ["The user", " asks.\n", "", "", "", ""]
    assert not any(part.anew for part in parts)


def test_an_answer_without_thoughts_of_a_model_known_to_think_is_told_anew_at_its_end() -> None:
    splitter = ThoughtSplitter(begins_in_thoughts=True)
    assert splitter.feed(" Blue.") == Parted(thinking="Blue.")
    assert splitter.flush() == Parted(" Blue.", anew=True)
    assert not splitter.begins_in_thoughts


def test_thoughts_cut_for_their_length_stay_thoughts() -> None:
    assert split("The user asks of", known=True, is_whole=False) == ("", "The user asks of", True)


def test_what_was_told_as_words_is_told_anew_as_thoughts() -> None:
    splitter = ThoughtSplitter()
    assert splitter.feed("The user asks.") == Parted("The user asks.")
    assert splitter.feed("\n</think>") == Parted("\n")
    assert splitter.feed("\n\n") == Parted()
    assert splitter.feed("Blue") == Parted("Blue", "The user asks.\n", anew=True)
    assert splitter.feed(".") == Parted(".")


def test_where_the_server_parts_the_thoughts_a_tag_is_a_word() -> None:
    splitter = ThoughtSplitter(begins_in_thoughts=True)
    splitter.pass_content()
    assert splitter.feed("The tag </think> is a word.") == Parted("The tag </think> is a word.")
    assert not splitter.begins_in_thoughts


def test_an_answer_that_quotes_the_tag_without_end_is_read_in_time() -> None:
    text = "`</think>` " * 20_000
    assert split(text) == (text, "", False)


@given(st.text(min_size=1))
def test_an_answer_without_thoughts_is_not_held_back(text: str) -> None:
    assume(text[0] != "<" and not text[0].isspace() and not any(text.endswith(CLOSE[:size]) for size in range(1, 9)))
    assert ThoughtSplitter().feed(text) == Parted(text)
