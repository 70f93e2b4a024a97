"""Vocabularies made to mislead the search for their end: what is read is what a walk reads."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpipes.gguf import strings
from modelpipes.gguf.header import ArrayInfo, Header, read_header
from tests.gguf.make import (
    Entry,
    File,
    TensorSpec,
    entry,
    llama_entries,
    llama_tensors,
    padded,
    tensor_table,
    text,
    texts,
)

COUNT = 3000
WORDS = [f"word{index % 211}" for index in range(COUNT)]
AFTER: list[Entry] = [("tokenizer.ggml.bos_token_id", "u32", 1), ("tokenizer.ggml.add_bos_token", "bool", True)]
FALSE_ENTRIES: list[Entry] = [("tokenizer.ggml.bos_token_id", "u32", 0), ("llama.expert_count", "u32", 99)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def with_tokens(tokens: Sequence[str | bytes], after: Sequence[Entry] = AFTER) -> File:
    return File([*llama_entries(), ("tokenizer.ggml.tokens", "[string]", tokens), *after], llama_tensors())


def walks(path: Path) -> int:
    """How many arrays a reading walks; what it gives must be what the strict reading gives."""
    with patch.object(strings, "_walk", wraps=strings._walk) as walk:
        header = read_header(path)
    strict = read_header(path, strict=True)
    assert header == strict
    assert strict.metadata["tokenizer.ggml.tokens"] == ArrayInfo("string", COUNT)
    return walk.call_count


@pytest.mark.parametrize(
    "after",
    [
        AFTER,
        [("tokenizer.ggml.scores", "[f32]", [0.0] * COUNT), *AFTER],
        [("tokenizer.chat_template", "string", "x" * 9000)],
        [("general.quantization_version", "u32", 2)],
        [("tokenizer.ggml.bos_token_id", "u32", 0), ("tokenizer.ggml.eos_token_id", "u32", 0)],
        [("tokenizer.ggml.merges", "[string]", ["a b"] * COUNT), *AFTER],
        [("tokenizer.ggml.merges", "[string]", ["a b"] * COUNT)],
        [],
    ],
)
def test_a_vocabulary_in_the_usual_order_is_not_walked(path: Path, after: list[Entry]) -> None:
    path.write_bytes(bytes(with_tokens(WORDS, after)))
    assert walks(path) == 0


@pytest.mark.parametrize(
    "after",
    [
        [("llama.vocab_size", "u32", 3)],
        [("zzz", "u8", 3), *AFTER],
        [("zzz", "[string]", ["y"]), ("tokenizer.ggml.merges", "[string]", ["a b"] * COUNT), *AFTER],
    ],
)
def test_a_vocabulary_before_a_key_of_an_unusual_name_is_walked(path: Path, after: list[Entry]) -> None:
    path.write_bytes(bytes(with_tokens(WORDS, after)))
    assert walks(path) > 0


def test_a_long_token_is_no_reason_to_walk(path: Path) -> None:
    tokens: list[str | bytes] = [*WORDS]
    tokens[COUNT - 20] = " " * 700
    path.write_bytes(bytes(with_tokens(tokens)))
    assert walks(path) == 0


@pytest.mark.parametrize("place", [0, COUNT // 2, COUNT - 70, COUNT - 3, COUNT - 1])
@pytest.mark.parametrize(
    "token",
    [
        b"tokenizer.ggml.bos_token_id",
        entry("tokenizer.ggml.bos_token_id", "u32", 1),
        b"".join(entry(*each) for each in AFTER),
        texts(["a", "b", "c"]) + b"".join(entry(*each) for each in AFTER),
        entry("tokenizer.ggml.bos_token_id", "string", "x" * 40),
        entry("general.architecture", "string", "gemma"),
        struct.pack("<Q", 27) + b"tokenizer.ggml.bos_token_id",
        bytes(100),
        b"",
        b"\x1b\0\0\0\0\0\0\0",
    ],
)
def test_a_token_that_looks_like_a_key_misleads_nobody(path: Path, token: bytes, place: int) -> None:
    tokens: list[str | bytes] = [*WORDS]
    tokens[place] = token
    path.write_bytes(bytes(with_tokens(tokens)))
    walks(path)


def test_tokens_that_are_keys_with_values_as_texts_mislead_nobody(path: Path) -> None:
    # Read as entries: a key, of type array (9) of u8 (0), and a length that spans the tokens after it.
    for place in (COUNT - 4, COUNT - 100):
        tokens: list[str | bytes] = [*WORDS]
        tokens[place : place + 2] = [b"tokenizer.ggml.eos_token_id", struct.pack("<Q", 30) + b"x"]
        path.write_bytes(bytes(with_tokens(tokens)))
        assert walks(path) == 1


def forged(fakes: int, place: int = COUNT - 5, hidden_bytes: int = 0) -> bytes:
    """A whole file, one of whose tokens holds false texts and the rest of another header that closes."""

    def build(claimed: int) -> tuple[bytes, int]:
        # The false header has the same counts: two more entries, as many tensors, to the file's last byte.
        specs = [TensorSpec("token_embd.weight", (claimed,), 24)]
        specs += [TensorSpec(f"false{index}", (1,), 24) for index in range(len(llama_tensors()) - 1)]
        token = texts(["false"] * fakes) + b"".join(entry(*each) for each in FALSE_ENTRIES) + tensor_table(specs)[0]
        token += bytes(hidden_bytes)
        tokens: list[str | bytes] = [*WORDS]
        tokens[place] = token
        whole = bytes(with_tokens(tokens))
        end = whole.index(b"false%d" % (len(specs) - 2)) + len(b"false7") + 24
        return whole, len(padded(whole[:end])) + (len(specs) - 1) * 32

    whole, used = build(32)
    rest = (len(whole) - used) // 32 * 32
    whole, _ = build(rest)
    return whole


def read_forged(path: Path, whole: bytes) -> Header:
    path.write_bytes(whole)
    strict = read_header(path, strict=True)
    assert strict.metadata["tokenizer.ggml.bos_token_id"] == 1
    assert len(strict.tensors) == len(llama_tensors())
    return strict


@pytest.mark.parametrize("fakes", [0, 1, 5, 63, 64, 300])
def test_a_token_that_holds_a_whole_header_misleads_nobody(path: Path, fakes: int) -> None:
    strict = read_forged(path, forged(fakes))
    assert read_header(path) == strict


def test_the_forged_header_would_close_if_its_place_were_believed(path: Path) -> None:
    strict = read_forged(path, forged(300))
    with patch("modelpipes.gguf.header._TOKEN_EMBEDDING", b"not looked for"):
        assert read_header(path) != strict


def test_only_the_strict_reading_sees_through_a_file_made_by_hand_for_the_search(path: Path) -> None:
    # What no reading can exclude that does not look at each text's length: see read_header.
    strict = read_forged(path, forged(300, hidden_bytes=300_000))
    assert read_header(path) != strict


short_texts = st.binary(max_size=60) | st.sampled_from(
    [
        b"tokenizer.ggml.x",
        b"general.x",
        *(
            entry(f"tokenizer.{size}", kind, value)
            for size, kind, value in [(1, "u32", 0), (22, "u8", 1), (3, "string", "")]
        ),
        entry("tokenizer.y", "[u8]", [0] * 100),
        text("a") * 6 + entry("tokenizer.z", "u64", 1 << 40),
        struct.pack("<Q", 4),
        struct.pack("<QQ", 9, 1),
    ]
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.lists(short_texts, max_size=12), after=st.sampled_from([AFTER, FALSE_ENTRIES, [*FALSE_ENTRIES[:1]], []]))
def test_no_short_texts_mislead_the_search(path: Path, tail: list[bytes], after: list[Entry]) -> None:
    tokens: list[str | bytes] = [*WORDS[: COUNT - len(tail)], *tail]
    path.write_bytes(bytes(with_tokens(tokens, after)))
    walks(path)
