"""Bytes to messages and back, whatever the bytes and however they are cut."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

from modelpipes.errors import MessageError, Reason
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES, LineSplitter, decode, encode, encode_plain
from modelpipes.pipe.message import Delta, Failure, Heard, Malformed, Message, Plain, Reply, Say

texts = st.text(st.characters(codec="utf-8"))
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Say, texts, texts, texts, texts, st.none() | texts, st.none() | st.integers(0, 9)),
    st.builds(Say, texts, texts, texts, heard=st.lists(st.builds(Heard, st.integers(0, 9), texts, texts)).map(tuple)),
    st.builds(Delta, texts, texts, texts, texts, texts),
    st.builds(Reply, texts, texts, texts, texts, texts, st.sampled_from(["end", "length", "died"])),
    st.builds(Failure, texts, texts, st.sampled_from(get_args(Reason)), texts, st.none() | texts),
)
ENVELOPE_BYTES = len(encode(Say("i", "hub", "bob", "x"))) - 2  # without the x and the line's end
OVERSIZE = b'{"type":"say","id":"big","from":"hub","to":"bob","content":"' + b"x" * MAX_MESSAGE_BYTES


def fed(splitter: LineSplitter, data: bytes, cuts: list[int]) -> list[Message | Plain | Malformed]:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    starts = [0, *ends]
    return [item for start, end in zip(starts, ends, strict=False) for item in splitter.feed(data[start:end])]


@given(messages)
def test_what_is_encoded_is_one_line_and_decodes_to_the_same(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line[:-1]) == message


def test_a_failure_has_one_of_the_reasons_that_an_error_may_have() -> None:
    failure = Failure("bob", "hub", "voice")
    for reason in get_args(Reason):
        assert decode(encode(failure).strip().replace(b'"voice"', f'"{reason}"'.encode())) == replace(
            failure, reason=reason
        )
    assert isinstance(decode(encode(failure).strip().replace(b'"voice"', b'"mood"')), Malformed)


@given(st.lists(st.one_of(messages.map(encode), st.binary(max_size=40).map(lambda b: b + b"\n"))), st.data())
def test_how_a_stream_is_cut_does_not_change_what_it_says(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(lines)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    assert fed(LineSplitter(), stream, cuts) == LineSplitter().feed(stream)
    assert fed(LineSplitter(), stream, list(range(len(stream)))) == LineSplitter().feed(stream)


def test_what_is_one_message_on_several_lines_is_none() -> None:
    # The newlines would be white space to a parser of JSON, and the cuts decide what it is given.
    pretty = json.format(encode(Say("i", "hub", "bob", "x")).strip(), indent=1) + b"\n"
    at_once, in_bytes = LineSplitter(), LineSplitter()
    assert at_once.whole(pretty) is None
    items = at_once.feed(pretty)
    assert not any(isinstance(item, Say) for item in items)
    assert items == fed(in_bytes, pretty, list(range(len(pretty))))


@given(messages, st.binary(max_size=40))
def test_a_message_alone_is_whole_and_one_that_ends_a_line_begun_before_is_not(message: Message, before: bytes) -> None:
    line = encode(message)
    assert LineSplitter().whole(line) == message
    assert LineSplitter().whole(line[:-1]) is None
    assert LineSplitter().whole(line + line) is None
    splitter = LineSplitter()
    splitter.feed(before)
    if before and not before.endswith(b"\n"):
        assert splitter.whole(line) is None


@given(st.binary())
def test_no_line_is_beyond_an_answer(line: bytes) -> None:
    item = decode(line)
    assert item is None or line not in (b"", b"\r")


@pytest.mark.parametrize("character", ["x", "é", "\n", "\0", "𝄞", '"'])
def test_a_message_of_exactly_the_limit_travels_and_one_byte_more_does_not(character: str) -> None:
    width = len(encode(Say("i", "hub", "bob", character))) - 1 - ENVELOPE_BYTES
    room_bytes = MAX_MESSAGE_BYTES - ENVELOPE_BYTES
    content = character * (room_bytes // width) + "x" * (room_bytes % width)
    line = encode(Say("i", "hub", "bob", content))
    assert len(line) == MAX_MESSAGE_BYTES + 1
    [item] = LineSplitter().feed(line)
    assert isinstance(item, Say)
    assert item.content == content
    with pytest.raises(MessageError, match=f"{MAX_MESSAGE_BYTES + 1} bytes encoded; at most {MAX_MESSAGE_BYTES}"):
        encode(Say("i", "hub", "bob", content + "x"))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc80"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(MessageError, match="not Unicode text"):
        encode(Say("i", "hub", "bob", text))


def test_a_lone_surrogate_that_comes_escaped_is_no_message() -> None:
    item = decode(rb'{"type":"say","id":"i","from":"hub","to":"bob","content":"\ud800"}')
    assert isinstance(item, Malformed)
    assert item.reply_to == "i"


def test_a_line_that_is_too_long_is_reported_with_its_id_and_the_next_one_survives() -> None:
    next_one = encode(Say("i", "hub", "bob", "still here"))
    for cut in (1, 65536, len(OVERSIZE)):
        splitter = LineSplitter()
        head, rest = OVERSIZE[:100], OVERSIZE[100:]
        assert [item for i in range(0, 100, cut) for item in splitter.feed(head[i : i + cut])] == []
        assert splitter.feed(rest) == []
        reported, survivor = splitter.feed(b'"}\n' + next_one)
        assert reported == Malformed(f"a line longer than {MAX_MESSAGE_BYTES} bytes", "big")
        assert survivor == Say("i", "hub", "bob", "still here")
    reported, _ = LineSplitter().feed(OVERSIZE + b'"}\n' + next_one)
    assert isinstance(reported, Malformed)
    assert reported.reply_to == "big"


def test_a_line_without_end_takes_no_more_memory_than_the_longest_message() -> None:
    splitter, piece = LineSplitter(), b"x" * 65536
    tracemalloc.start()
    try:
        for _ in range(4 * MAX_MESSAGE_BYTES // len(piece)):
            assert splitter.feed(piece) == []
        assert tracemalloc.get_traced_memory()[1] < 1.5 * MAX_MESSAGE_BYTES
    finally:
        tracemalloc.stop()


def test_a_line_that_drips_takes_no_more_memory_than_its_bytes() -> None:
    # Kept as a list of pieces, each byte took eight.
    splitter = LineSplitter()
    tracemalloc.start()
    try:
        for _ in range(200_000):
            splitter.feed(b"x")
        assert tracemalloc.get_traced_memory()[0] < 2 * 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"type":"say","id":"one","from":"hub"', "one"),
        (b'{"type":"say", "id" : "two"}', "two"),
        (b'{"type":"unheard of","id":"three"}', "three"),
        (b'{"type":"say","id":"\xff"}', "�"),
        (b'{"type":"delta","reply_to":"four"}', None),
        (b'{"type":"sa', None),
        (b"{}", None),
        (b"{" + b" " * 300 + b'"id":"far"}', None),
    ],
)
def test_a_line_that_cannot_be_read_keeps_its_id_where_it_has_one(line: bytes, found: str | None) -> None:
    item = decode(line)
    assert isinstance(item, Malformed)
    assert item.reply_to == found


def test_brackets_in_brackets_without_end_are_malformed_and_not_a_crash() -> None:
    item = decode(b'{"type":"say","id":"deep","from":"hub","to":"bob","extra":' + b"[" * 100_000 + b"}")
    assert isinstance(item, Malformed)
    assert item.reply_to == "deep"


def test_unknown_fields_are_ignored() -> None:
    item = decode(b'{"type":"say","mood":{"good":[1,2]},"id":"i","from":"hub","to":"bob","content":"x"}')
    assert item == Say("i", "hub", "bob", "x")


@pytest.mark.parametrize(
    ("line", "content"),
    [(b"hi", "hi"), (b"hi\r", "hi"), (b" {", " {"), (b"  ", "  "), (b"\xff!", "�!"), ("é".encode(), "é")],
)
def test_a_line_that_does_not_begin_with_a_brace_is_plain(line: bytes, content: str) -> None:
    assert decode(line) == Plain(content)


@pytest.mark.parametrize("line", [b"", b"\r"])
def test_an_empty_line_means_nothing(line: bytes) -> None:
    assert decode(line) is None


def test_a_half_line_is_cut_off_by_an_empty_one() -> None:
    half = encode(Say("old", "hub", "bob", "x" * 5000))[:4096]
    stale, fresh = LineSplitter().feed(half + b"\n" + encode(Say("new", "hub", "bob", "hi")))
    assert isinstance(stale, Malformed)
    assert stale.reply_to == "old"
    assert fresh == Say("new", "hub", "bob", "hi")


@settings(max_examples=50)
@given(st.text())
def test_plain_words_are_one_line_of_utf_8_whatever_they_were(text: str) -> None:
    line = encode_plain(text)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    line.decode("utf-8")


def test_plain_words_of_exactly_the_limit_travel_and_one_byte_more_do_not() -> None:
    [item] = LineSplitter().feed(encode_plain("x" * MAX_MESSAGE_BYTES))
    assert isinstance(item, Plain)
    with pytest.raises(MessageError, match=f"{MAX_MESSAGE_BYTES + 1} bytes"):
        encode_plain("x" * (MAX_MESSAGE_BYTES + 1))


@given(st.binary(max_size=40).filter(lambda line: b"\n" not in line), st.binary(max_size=9).map(lambda b: b + b"\n"))
def test_a_line_without_an_end_can_be_ended_and_the_next_one_is_its_own(half: bytes, line: bytes) -> None:
    splitter = LineSplitter()
    assert splitter.feed(half) == []
    assert (splitter.is_amid_line, splitter.unended) == (bool(half), half)
    assert splitter.end() == decode(half)
    assert (splitter.is_amid_line, splitter.unended, splitter.end()) == (False, b"", None)
    assert splitter.feed(line) == LineSplitter().feed(line)


def test_of_a_long_line_without_an_end_the_beginning_is_shown() -> None:
    splitter = LineSplitter()
    splitter.feed(OVERSIZE + b"x")
    assert OVERSIZE.startswith(splitter.unended)
    assert isinstance(splitter.end(), Malformed)
