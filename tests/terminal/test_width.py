from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import iter_graphemes, wcwidth

from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.width import WIDEST_CELL, clip, columns_of, fit, fold, without_beginning, without_middle

ACCENTED = "e\u0301"
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
THUMB = "\U0001f44d\U0001f3fd"  # with the colour of a skin
FLAG = "\U0001f1e9\U0001f1ea"
HANGUL = "\u1100" * 9  # one cluster, 18 columns wide
LINES = (st.text() | st.lists(st.sampled_from([*"ab  日\u0301\u200d", FAMILY, FLAG, HANGUL])).map("".join)).map(
    make_line
)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("a…c", 3),
        ("日本", 4),
        (ACCENTED, 1),
        (FAMILY, 2),
        (THUMB, 2),
        (FLAG, 2),
        ("\u263a\ufe0f", 2),  # a face, told to be a picture
        ("a\u200bb", 2),
        ("\u0938\u094d", 1),
        (HANGUL, 18),
    ],
)
def test_a_text_takes_the_columns_of_what_a_reader_sees(text: str, columns: int) -> None:
    assert columns_of(text) == columns


@given(st.characters())
def test_a_character_alone_takes_what_wcwidth_says(char: str) -> None:
    assert columns_of(char) == (max(wcwidth(char), 0) if not char.isascii() else 1)


@pytest.mark.parametrize(
    ("text", "columns", "middle", "beginning"),
    [
        ("abcdef", 6, "abcdef", "abcdef"),
        ("abcdef", 5, "ab…ef", "…cdef"),
        ("abcdef", 4, "a…ef", "…def"),
        ("abcdef", 1, "…", "…"),
        ("abcdef", 0, "…", "…"),
        ("日本語語", 7, "日本…語", "…本語語"),
        (f"a{ACCENTED}b{ACCENTED}", 3, f"a…{ACCENTED}", f"…b{ACCENTED}"),
        (f"{FAMILY}ab{FAMILY}", 5, f"{FAMILY}…{FAMILY}", f"…ab{FAMILY}"),
        (f"ab{FAMILY}", 2, "a…", "…"),
    ],
)
def test_a_text_is_cut_between_what_a_reader_sees_as_one(text: str, columns: int, middle: str, beginning: str) -> None:
    assert (without_middle(text, columns), without_beginning(text, columns)) == (middle, beginning)


@given(LINES, st.integers(1, 30))
def test_a_text_that_is_cut_is_no_wider_and_one_that_fits_stays(text: str, columns: int) -> None:
    for cut in (without_middle, without_beginning):
        made = cut(text, columns)
        assert columns_of(made) <= columns
        if columns_of(text) <= columns:
            assert made == text
    assert columns_of(clip(text, columns)) <= columns
    assert text.startswith(clip(text, columns))


@given(LINES, st.integers(WIDEST_CELL, 20))
def test_a_line_is_folded_into_pieces_that_fit_and_loses_nothing_but_spaces(line: str, columns: int) -> None:
    pieces = list(fold(line, columns))
    assert all(columns_of(piece) <= columns for piece in pieces)
    assert "".join(pieces).replace(" ", "") == line.replace(" ", "")


@given(LINES, st.integers(WIDEST_CELL, 20))
def test_no_mark_is_folded_away_from_its_letter(line: str, columns: int) -> None:
    if all(columns_of(cluster) <= WIDEST_CELL for cluster in iter_graphemes(line)) and " " not in line:
        clusters = list(iter_graphemes(line))
        assert [cluster for piece in fold(line, columns) for cluster in iter_graphemes(piece)] == clusters


def test_a_folded_line_keeps_its_prefix_and_what_has_none_is_indented() -> None:
    lines = [("", "a heading of six words"), ("| ", "日本語日本")]
    assert list(fit(lines, 12)) == ["a heading\n", "  of six\n", "  words\n", "| 日本語日本\n"]
    assert list(fit(lines, 8))[-2:] == ["| 日本語\n", "| 日本\n"]
    assert list(fit(lines, None)) == ["a heading of six words\n", "| 日本語日本\n"]


def test_text_of_ascii_is_measured_cut_and_folded_without_wcwidth() -> None:
    code = (
        "import sys; from modelpipes.terminal.width import fold;"
        "from modelpipes.terminal.table import Table, draw_table;"
        "print(draw_table(Table(['name', 'path'], [['a' * 99, 'b' * 99]]), 40), *fold('a b c ' * 20, 10));"
        "assert 'wcwidth' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL)
