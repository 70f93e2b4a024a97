"""Read a header's metadata: keep what says how a model is made, pass over the rest."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from modelpipes.gguf.layout import ARRAY, MAX_HEADER_BYTES, NUMBERS, STRING, U32, Flaw, Reading, Short
from modelpipes.gguf.strings import end_of_strings

# Enough for anything about layers; vocabularies are longer.
MAX_KEPT_ITEMS = 1024
# Names, licences and addresses are shorter; chat templates are longer.
MAX_KEPT_TEXT_BYTES = 1024
# The specification's own bound.
MAX_KEY_BYTES = 65535

ALIGNMENT_KEY = "general.alignment"
# What a rating may look at under prefixes that otherwise only describe.
_RATED = frozenset(
    (
        "general.architecture",
        "general.file_type",
        "general.quantization_version",
        "general.type",
        "tokenizer.ggml.tokens",
    )
)


class ArrayInfo(NamedTuple):
    """An array that was not kept; `type` is that of its items as GGUF calls it: "string", "i32"."""

    type: str
    length: int


class TextInfo(NamedTuple):
    """A string that was not kept."""

    length: int
    """In bytes."""


Value: TypeAlias = int | float | bool | str | list[int] | list[float] | list[bool] | list[str] | ArrayInfo | TextInfo


def read_metadata(reading: Reading, pos: int, count: int) -> tuple[dict[str, Value], list[bytes], int]:
    """Read `count` entries from `pos`: what they say, the bytes of those that ratings rest on, the end.

    Raises Flaw, or Short (as struct.error, too) where the bytes read so far do not suffice.
    """
    buf = reading.buf
    u32, u64, numbers = reading.layout.u32, reading.layout.u64, reading.layout.numbers
    metadata: dict[str, Value] = {}
    rated_bytes: list[bytes] = []
    for index in range(count):
        start = pos
        (length,) = u64(buf, pos)
        pos += 8 + length
        (kind,) = u32(buf, pos)
        key, is_rated = _key(buf[start + 8 : pos])
        if not key:
            raise Flaw(f"damaged: key {index + 1} of {count} is no name", start)
        if key in metadata:
            raise Flaw(f"damaged: two values for {key}", start)
        pos += 4
        number = numbers.get(kind)
        if number:
            metadata[key] = number[0](buf, pos)[0]
            pos += number[1]
        elif kind == STRING:
            metadata[key], pos = _read_text(reading, pos)
        elif kind == ARRAY:
            metadata[key], pos = _read_array(reading, pos, key, is_last=index + 1 == count)
        else:
            raise Flaw(f"damaged: {key} has a value of type {kind}, which GGUF has not", pos - 4)
        if is_rated:
            # What is not kept cannot count either: its type and length do.
            is_kept = type(metadata[key]) not in (ArrayInfo, TextInfo)
            rated_bytes.append(buf[start : pos if is_kept else start + length + 24])
            if key == ALIGNMENT_KEY and kind != U32:
                raise Flaw(f"damaged: {key} is not of type u32", start)
    return metadata, rated_bytes, pos


@lru_cache(maxsize=4096)  # the same few hundred keys in all files
def _key(raw: bytes) -> tuple[str, bool]:
    """A key, and whether ratings rest on it; "" for what is no key (a control character, say)."""
    key = raw.decode("utf-8", "replace")
    if not 0 < len(raw) <= MAX_KEY_BYTES or not key.isprintable():
        return "", False
    return key, key in _RATED or key == ALIGNMENT_KEY or not key.startswith(("general.", "tokenizer."))


def _read_text(reading: Reading, pos: int) -> tuple[str | TextInfo, int]:
    buf = reading.buf
    (length,) = reading.layout.u64(buf, pos)
    pos += 8
    end = pos + length
    if length > MAX_KEPT_TEXT_BYTES:
        if length > MAX_HEADER_BYTES:
            raise Flaw(f"damaged: a text of {length} bytes", pos - 8)
        return TextInfo(length), end  # where it ends beyond what was read, the next thing read says so
    if end > len(buf):
        raise Short
    return str(buf[pos:end], "utf-8", "replace"), end


def _read_array(reading: Reading, pos: int, key: str, is_last: bool) -> tuple[Value, int]:
    kind, length = reading.layout.array_head(reading.buf, pos)
    start = pos + 12
    number = reading.layout.numbers.get(kind)
    least = length * (number[1] if number else 8)
    if least > MAX_HEADER_BYTES:
        raise Flaw(f"damaged: {key} claims {length} items", pos)
    if number:
        name, letter = NUMBERS[kind]
        end = start + least
        if length > MAX_KEPT_ITEMS:
            return ArrayInfo(name, length), end
        reading.charge(length, pos)
        return list(struct.unpack_from(f"{reading.layout.sign}{length}{letter}", reading.buf, start)), end
    if kind != STRING:
        what = "an array of arrays" if kind == ARRAY else f"an array of type {kind}, which GGUF has not"
        raise Flaw(f"damaged: {key} is {what}", pos)
    if length > MAX_KEPT_ITEMS:
        return ArrayInfo("string", length), end_of_strings(reading, start, length, is_last)
    texts = []
    pos = start
    is_kept = True
    for _ in range(length):
        text, pos = _read_text(reading, pos)
        if isinstance(text, str):
            texts.append(text)
        else:
            is_kept = False
    reading.charge(4 * length, start)
    return texts if is_kept else ArrayInfo("string", length), pos
