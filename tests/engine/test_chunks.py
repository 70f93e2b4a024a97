"""Chunks as servers really send them: words are not lost for figures, reasons that say nothing end nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.engine import chunks
from modelpipes.engine.chunks import Chunk, HalfJoiner, read_chunk

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("choices", "usage", "timings", "prompt_progress", "object", "id")


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}).encode()


@pytest.mark.parametrize(
    "content",
    ["The sea.", ["The ", "sea."], [{"type": "text", "text": "The sea."}], [{"type": "image"}, {"text": "The sea."}]],
)
def test_words_may_be_text_or_parts(content: Any) -> None:
    assert read_chunk(chunk({"content": content})) == Chunk(content="The sea.")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thoughts_have_either_name(key: str) -> None:
    assert read_chunk(chunk({key: "Hm.", "content": None})) == Chunk(thinking="Hm.")


@pytest.mark.parametrize("finish", [None, "", "null", "None", 0, {}, []])
def test_a_reason_that_says_nothing_ends_nothing(finish: Any) -> None:
    assert read_chunk(chunk({"content": "The sea"}, finish)) == Chunk(content="The sea")


@pytest.mark.parametrize("finish", ["stop", "length", "tool_calls", "eos"])
def test_a_reason_that_says_something_does(finish: str) -> None:
    assert read_chunk(chunk({}, finish)).finish == finish


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4, None)),
        ({"prompt_tokens": 3.0, "completion_tokens": 4.0}, (3, 4, None)),
        ({"prompt_tokens": None, "completion_tokens": 4}, (0, 4, None)),
        ({"prompt_tokens": "3", "completion_tokens": -1}, (0, 0, None)),
        ({}, (0, 0, None)),
        ({"prompt_tokens_details": {"cached_tokens": 2}}, (0, 0, 2)),
        ({"prompt_tokens_details": {"cached_tokens": "2"}}, (0, 0, None)),
        ({"prompt_tokens_details": None}, (0, 0, None)),
        (None, None),
        ("none", None),
    ],
)
def test_figures_cost_no_words(usage: Any, counted: tuple[int, int, int | None] | None) -> None:
    read = read_chunk(chunk({"content": "blue"}, usage=usage))
    assert (read.content, read.usage) == ("blue", counted)


@pytest.mark.parametrize("choices", [None, [], {}, "none", [None], [{"delta": 3}], [[]]])
def test_choices_that_are_none_add_nothing(choices: Any) -> None:
    data = json.dumps({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}).encode()
    assert read_chunk(data) == Chunk(usage=(1, 2, None))


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "out of memory", "code": 500}},
        {"error": "out of memory"},
        {"object": "error", "message": "out of memory"},
        {"text": "out of memory", "error_code": 50001},
        {"choices": [], "error": {"message": "out of memory"}},
        {"choices": None, "object": "error"},
    ],
)
def test_an_error_in_any_form_is_one(said: dict[str, Any]) -> None:
    assert read_chunk(json.dumps(said).encode()) == Chunk(is_fault=True)


@pytest.mark.parametrize("said", [b"", b"[1]", b"3", b'"text"', b"{", b"null", b"[" * 5000])
def test_what_is_no_object_is_no_chunk(said: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_chunk(said)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, ANY)))
def test_whatever_an_object_has_it_is_read(said: dict[str, Any]) -> None:
    assert isinstance(read_chunk(json.dumps(said).encode()), Chunk)


@given(
    st.text(), st.text(), st.sampled_from([None, "", "stop"]),
    st.none() | st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9), "completion_tokens": st.integers(0, 9)}),
)  # fmt: skip
def test_the_short_way_and_the_long_way_read_the_same(content: str, thinking: str, finish: Any, usage: Any) -> None:
    data = chunk({"content": content, "reasoning_content": thinking}, finish, usage=usage)
    assert chunks._read_any(data) == read_chunk(data)


@given(st.text(), st.data())
def test_pairs_that_are_cut_anywhere_come_whole(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-le")
    halves = [units[i : i + 2].decode("utf-16-le", "surrogatepass") for i in range(0, len(units), 2)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(halves)))))
    joiner = HalfJoiner()
    pieces = ["".join(halves[a:b]) for a, b in zip([0, *cuts], [*cuts, len(halves)], strict=True)]
    assert "".join(map(joiner.feed, pieces)) + joiner.rest() == text


def test_a_half_whose_other_never_comes_is_shown_as_lost() -> None:
    joiner = HalfJoiner()
    assert joiner.feed("a\ud83c") + joiner.feed("b") + joiner.feed("\udf0a") + joiner.feed("\ud83c") == "a\ufffdb\ufffd"
    assert joiner.rest() == "\ufffd"
