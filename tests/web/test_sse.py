"""Server-sent events from bytes, by values and by properties; the rules are those of the HTML standard, 9.2.6."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.web.sse import BOM, EventParser, ServerEvent

ENDS = ("\n", "\r\n", "\r")


def parsed(*pieces: bytes, alone: Sequence[str] = ()) -> list[ServerEvent]:
    parser = EventParser(alone)
    return [event for piece in pieces for event in parser.feed(piece)]


def data(*pieces: bytes) -> list[bytes]:
    return [event.data for event in parsed(*pieces)]


@pytest.mark.parametrize("end", ENDS)
def test_each_of_three_line_ends_ends_a_line(end: str) -> None:
    text = "data: a\n: a comment\ndata: b\n\ndata: c\n\n".replace("\n", end)
    assert data(text.encode()) == [b"a\nb", b"c"]


def test_line_ends_may_be_mixed() -> None:
    assert data(b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\r") == [b"a\nb\nc", b"d"]


def test_a_cr_lf_that_comes_in_two_pieces_is_one_line_end() -> None:
    assert data(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [b"a\nb"]


def test_an_event_is_there_as_soon_as_its_blank_line_is_though_a_line_feed_may_follow() -> None:
    parser = EventParser()
    assert [event.data for event in parser.feed(b"data: a\r\r")] == [b"a"]
    assert parser.feed(b"\n") == []


@pytest.mark.parametrize("cut", range(4))
def test_one_bom_at_the_beginning_is_dropped_wherever_it_is_cut(cut: int) -> None:
    text = BOM + b"data: a\n\n"
    assert data(text[:cut], text[cut:]) == [b"a"]


def test_a_second_bom_and_one_further_on_are_text() -> None:
    assert data(BOM + BOM + b"data: a\n\ndata: b\n\n") == [b"b"]
    assert data(b"data: a\n\n" + BOM + b"data: b\n\n") == [b"a"]


def test_what_begins_like_a_bom_and_is_none_is_kept() -> None:
    assert data(BOM[:2], b"x: y\ndata: a\n\n") == [b"a"]


def test_data_lines_of_one_event_are_joined_with_a_newline() -> None:
    assert data(b'data: {"a":\ndata: 1}\n\n') == [b'{"a":\n1}']
    assert data(b"data:\ndata:\n\n") == [b"\n"]


def test_one_space_after_the_colon_belongs_to_it() -> None:
    assert data(b"data:a\n\ndata: a\n\ndata:  a\n\n") == [b"a", b"a", b" a"]


def test_a_field_without_a_colon_has_an_empty_value() -> None:
    assert data(b"data\n\ndata\ndata\n\n") == [b"", b"\n"]


def test_comments_and_unknown_fields_and_blank_lines_say_nothing() -> None:
    assert data(b"\n\n: ping\n\nwhat: ever\nData: a\n data: b\n\n") == []


def test_an_event_has_its_type_once_and_keeps_its_id() -> None:
    assert parsed(b"event: news\nid: 7\ndata: a\n\ndata: b\n\nid\ndata: c\n\n") == [
        ServerEvent(b"a", "news", "7"),
        ServerEvent(b"b", "message", "7"),
        ServerEvent(b"c", "message", ""),
    ]


def test_an_event_without_data_is_none_and_its_type_is_forgotten() -> None:
    assert parsed(b"event: news\n\ndata: a\n\n") == [ServerEvent(b"a", "message")]


def test_an_id_with_a_nul_is_no_id() -> None:
    assert parsed(b"id: 7\nid: 8\0\ndata: a\n\n") == [ServerEvent(b"a", id="7")]


@pytest.mark.parametrize(
    ("value", "told"), [("3000", 3000), ("3 s", None), ("-1", None), ("٣", None), ("", None), ("9" * 5000, None)]
)
def test_retry_is_a_number_of_milliseconds_or_nothing(value: str, told: int | None) -> None:
    parser = EventParser()
    parser.feed(f"retry: {value}\n".encode())
    assert parser.retry_ms == told


def test_an_event_that_is_not_ended_is_none_and_can_be_asked_for() -> None:
    parser = EventParser()
    assert parser.feed(b"event: news\ndata: a\ndata: [DO") == []
    assert parser.rest() == ServerEvent(b"a", "news")
    assert parser.feed(b"NE]\n") == []
    assert parser.rest() == ServerEvent(b"a\n[DONE]", "news")
    assert len(parser.feed(b"\n")) == 1
    assert parser.rest() is None


def test_a_field_that_was_asked_for_counts_line_by_line() -> None:
    events = parsed(b"data: a\nerror: no\nerror: more", b"\n\n", alone=["error"])
    assert events == [
        ServerEvent(b"no", field="error"),
        ServerEvent(b"more", field="error"),
        ServerEvent(b"a"),
    ]


LINES = st.lists(
    st.one_of(
        st.sampled_from(["", "", "data", "data:", "id: 1", "id: 2\0", "event: x", ": y", "retry: 5", "error: z"]),
        st.text(max_size=12).map(lambda text: "data: " + text.replace("\r", "").replace("\n", "")),
    ),
    max_size=30,
)


def cut_at(text: bytes, places: Sequence[int]) -> list[bytes]:
    cuts = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(cuts)]


@given(LINES, st.lists(st.sampled_from(ENDS), min_size=30, max_size=30), st.booleans(), st.lists(st.integers(0, 2000)))
def test_any_way_of_cutting_the_bytes_gives_the_same_events(
    lines: list[str], ends: list[str], with_bom: bool, places: list[int]
) -> None:
    text = "".join(line + end for line, end in zip(lines, ends, strict=False)).encode()
    text = BOM + text if with_bom else text
    whole, cut = EventParser(["error"]), EventParser(["error"])
    assert [event for piece in cut_at(text, places) for event in cut.feed(piece)] == whole.feed(text)
    assert (cut.rest(), cut.retry_ms) == (whole.rest(), whole.retry_ms)


@given(LINES, st.sampled_from(ENDS))
def test_every_line_end_says_the_same(lines: list[str], end: str) -> None:
    said = [parsed("".join(line + each for line in lines).encode()) for each in ("\n", end)]
    assert said[0] == said[1]


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_no_bytes_are_too_odd(pieces: list[bytes]) -> None:
    assert data(*pieces) == data(b"".join(pieces))
