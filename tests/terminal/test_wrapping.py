"""Lines broken as words come, looked at on the screen of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.terminal.width import columns_of
from modelpipes.terminal.wrapping import Wrapper

ROWS = 400
WORDS = st.lists(st.text("abcdé日本👍", min_size=1, max_size=30), max_size=20)
COLUMNS = st.integers(5, 30)


def shown(pieces: Sequence[str], columns: int, used: int = 0) -> list[str]:
    """What a terminal shows of the pieces."""
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.Stream(screen)
    wrapper = Wrapper(used)
    stream.feed("\x1b[20h" + ">" * used)  # a newline begins a line
    for piece in pieces:
        stream.feed(wrapper.feed(piece, columns))
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n").split("\n")


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["a bb ccc dddd"], ["a bb ccc", "dddd"]),
        (["a bb ccc d", "d", "d", "d"], ["a bb ccc", "dddd"]),  # the word that grows is taken along
        (["abcdefghijklmno"], ["abcdefghi", "jklmno"]),  # no line holds it
        (["ab abcdefghijklmno p"], ["ab abcdef", "ghijklmno", "p"]),
        (["one\n\n  two\n"], ["one", "", "  two"]),
        (["    abcdefgh ij"], ["    abcde", "fgh ij"]),  # its indentation stays
        (["\tx y z a"], ["    x y z", "a"]),
        (["日本語日本語"], ["日本語日", "本語"]),  # wide characters are words of their own
        (["日本", "語日", "本語"], ["日本語日", "本語"]),
        (["ab 日本語日本"], ["ab 日本語", "日本"]),
        (["e", "\u0301" + "x" * 8, "y"], ["e\u0301xxxxxxxx", "y"]),  # a mark of its own has no column
        ([" ", " "], [""]),
    ],
)
def test_lines_are_broken_at_spaces(pieces: list[str], lines: list[str]) -> None:
    columns_shown = [line.replace("é", "e\u0301") for line in shown(pieces, 10)]
    assert columns_shown == lines


def test_a_label_takes_its_room() -> None:
    assert shown(["aa bb cc"], 10, used=5) == [">>>>>aa", "bb cc"]


@given(WORDS, COLUMNS, st.data())
def test_no_line_is_wider_and_no_word_is_lost(words: list[str], columns: int, data: st.DataObject) -> None:
    text = " ".join(words)
    cut = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cut], [*cut, len(text)], strict=True)]
    lines = shown(pieces, columns)
    assert all(columns_of(line) < columns for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(words)


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=30), COLUMNS, st.integers(1, 7))
def test_short_words_are_never_cut_however_they_come(words: list[str], columns: int, size: int) -> None:
    text = " ".join(words)
    lines = shown([text[at : at + size] for at in range(0, len(text), size)], columns)
    assert " ".join(lines).split() == words
    assert lines == shown([text], columns)


def test_the_width_may_change_between_pieces() -> None:
    wrapper = Wrapper()
    assert wrapper.feed("one two ", 20) == "one two "
    assert wrapper.feed("three four", 10) == "\nthree \nfour"
