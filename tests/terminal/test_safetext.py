from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelpipes.terminal.safetext import MAX_SEQUENCE_CHARS, SafeText, make_line, make_safe

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
RISKY = st.text(
    st.sampled_from(
        "\x1b\x1b\x1b[]P_^Xk\\;:0123m@~?# \x07\x18\x1a\x00\r\n\t\x7f\x85\x90\x9b\x9c\x9d\u202e\u200faé🙂\ud800"
    )
)
HARMLESS = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cf")) | st.sampled_from("\n\t"))


def feed_cut(text: str, cuts: list[int]) -> str:
    safe = SafeText()
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return "".join(safe.feed(text[a:b]) for a, b in itertools.pairwise(bounds)) + safe.flush()


@given(RISKY | st.text(), st.lists(st.integers(min_value=0)))
@example("\x1b]0;title\x1b\\after", [12])
@example("\r\n", [1])
def test_nothing_that_commands_a_terminal_comes_out_however_the_text_is_cut(text: str, cuts: list[int]) -> None:
    assert not CONTROLS.search(feed_cut(text, cuts))


@given(RISKY | st.text(), st.lists(st.integers(min_value=0)))
@example("\x1b]" + "x" * (MAX_SEQUENCE_CHARS * 2), [MAX_SEQUENCE_CHARS - 1, MAX_SEQUENCE_CHARS, MAX_SEQUENCE_CHARS + 1])
@example("\x1b[" + "1" * (MAX_SEQUENCE_CHARS * 2), [MAX_SEQUENCE_CHARS - 1, MAX_SEQUENCE_CHARS, MAX_SEQUENCE_CHARS + 1])
@example("\x1b]" + "x" * (MAX_SEQUENCE_CHARS - 3) + "\x1b\\y", [MAX_SEQUENCE_CHARS - 1, MAX_SEQUENCE_CHARS])
def test_the_cuts_do_not_matter(text: str, cuts: list[int]) -> None:
    assert feed_cut(text, cuts) == make_safe(text)


@given(HARMLESS)
def test_harmless_text_stays_as_it_is_and_is_never_held_back(text: str) -> None:
    assert SafeText().feed(text) == text


@given(RISKY)
def test_safe_text_is_as_safe_the_second_time(text: str) -> None:
    assert make_safe(make_safe(text)) == make_safe(text)


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[31m",
        "\x1b[2J",
        "\x1b[?25l",
        "\x1b[0 q",
        "\x1b]0;title\x07",
        "\x1b]52;c;aGk=\x1b\\",
        "\x1b]8;;http://example.org\x9c",
        "\x1bP+q\x1b\\",
        "\x1b_hidden\x1b\\",
        "\x1bc",
        "\x1b(0",
        "\x1b#8",
        "\x9b31m",
        "\x9d0;title\x9c",
        "\u202e",
        "\u2066",
    ],
)
def test_a_whole_sequence_is_dropped(sequence: str) -> None:
    assert make_safe(f"be{sequence}fore") == "before"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x07b", "a␇b"),
        ("a\x00b", "a␀b"),
        ("a\x7fb", "a␡b"),
        ("a\x85b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("a\r\nb", "a\nb"),
        ("a\r\r\nb", "a␍\nb"),
        ("a\rb", "a␍b"),
        ("a\r", "a␍"),
        ("a\x1b", "a␛"),
        ("a\x1b[31", "a␛[31"),
        ("a\x1b[31\nb", "a␛[31\nb"),
        ("a\x1b]0;ti\nb", "a␛]0;ti\nb"),
        ("a\x1b]0;ti\x1b[31mb", "a␛]0;tib"),
    ],
)
def test_what_is_no_whole_sequence_is_made_visible(text: str, shown: str) -> None:
    assert make_safe(text) == shown


@pytest.mark.parametrize("introducer", ["\x1b]", "\x1bP", "\x9d", "\x1b[", "\x1b "])
def test_a_sequence_that_never_ends_does_not_swallow_the_answer(introducer: str) -> None:
    inside = " " if introducer == "\x1b " else "1"
    out = SafeText().feed(introducer + inside * MAX_SEQUENCE_CHARS + "the answer")
    assert out.endswith("the answer")


def test_a_line_is_one_line() -> None:
    assert make_line("one\ntwo\tthree\r\nfour\x1b[2J") == "one two three four"
