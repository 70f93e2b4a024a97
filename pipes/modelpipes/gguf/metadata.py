"""Read a header's metadata: keep what says how a model is made, pass over the rest."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from modelpipes.gguf.layout import ARRAY, NUMBERS, STRING, U32, is_key
from modelpipes.gguf.reading import MAX_HEADER_BYTES, OUTSIDE, Reading
from modelpipes.gguf.strings import end_of_texts

# Enough for anything about layers; vocabularies are longer.
MAX_KEPT_ITEMS: Final = 1024
# Names, licences and addresses are shorter; chat templates are longer.
MAX_KEPT_TEXT_BYTES: Final = 1024

ALIGNMENT_KEY: Final = "general.alignment"
# What a rating may look at under prefixes that otherwise only describe.
_RATED: Final = frozenset(
    (
        ALIGNMENT_KEY,
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
_NOT_KEPT: Final = ArrayInfo, TextInfo


def read_metadata(reading: Reading, pos: int, count: int) -> tuple[dict[str, Value], list[bytes], int]:
    """Read `count` entries from `pos`: what they say, the bytes of those that ratings rest on, the end.

    Raises Flaw, and Unsure if the reading searches.
    """
    buf = reading.buf
    u32, u64, numbers = reading.layout.u32, reading.layout.u64, reading.layout.numbers
    metadata: dict[str, Value] = {}
    rated_bytes: list[bytes] = []
    while len(metadata) < count:
        start = pos
        try:
            (length,) = u64(buf, pos)
            pos += 8 + length
            (kind,) = u32(buf, pos)
            key, is_rated = _key(buf[start + 8 : pos])
            if not key or key in metadata:
                raise reading.flaw(f"damaged: {f'two values for {key}' if key else 'a key that is no name'}", start)
            pos += 4
            head = buf[start : pos + 12]
            number = numbers.get(kind)
            value: Value
            if number:
                (value,) = number[0](buf, pos)
                pos += number[1]
            elif kind == STRING:
                value, pos = _read_text(reading, pos)
            elif kind == ARRAY:
                value, pos = _read_array(reading, pos, key, is_last=len(metadata) + 1 == count)
            else:
                raise reading.flaw(f"damaged: {key} has a value of type {kind}, which GGUF has not", pos - 4)
        except OUTSIDE:
            reading.move(start)
            buf, pos = reading.buf, 0
            continue
        metadata[key] = value
        if is_rated:
            # What is not kept cannot count, but for its type and length.
            rated_bytes.append(head if type(value) in _NOT_KEPT else buf[start:pos])
            if key == ALIGNMENT_KEY and kind != U32:
                raise reading.flaw(f"damaged: {key} is not of type u32", start)
        buf = reading.buf  # an array may have moved it
    return metadata, rated_bytes, pos


@lru_cache(maxsize=4096)  # the same few hundred keys in all files
def _key(raw: bytes) -> tuple[str, bool]:
    """A key, and whether ratings rest on it; "" for what can be none."""
    if not is_key(raw):
        return "", False
    key = raw.decode("ascii")
    return key, key in _RATED or not key.startswith(("general.", "tokenizer."))


def _read_text(reading: Reading, pos: int) -> tuple[str | TextInfo, int]:
    buf = reading.buf
    (length,) = reading.layout.u64(buf, pos)
    pos += 8
    end = pos + length
    if length > MAX_KEPT_TEXT_BYTES:
        if length > MAX_HEADER_BYTES:
            raise reading.flaw(f"damaged: a text of {length} bytes", pos - 8)
        return TextInfo(length), end  # where the window ends before, the next thing read says so
    if end > len(buf):
        raise struct.error
    reading.charge(length >> 2, pos)
    return str(buf[pos:end], "utf-8", "replace"), end


def _read_array(reading: Reading, pos: int, key: str, is_last: bool) -> tuple[Value, int]:
    kind, length = reading.layout.array_head(reading.buf, pos)
    start = pos + 12
    number = reading.layout.numbers.get(kind)
    least = length * (number[1] if number else 8)
    if least > MAX_HEADER_BYTES:
        raise reading.flaw(f"damaged: {key} claims {length} items", pos)
    if number:
        name, letter = NUMBERS[kind]
        end = start + least
        if length > MAX_KEPT_ITEMS:
            return ArrayInfo(name, length), end
        reading.charge(length, pos)
        return list(struct.unpack_from(f"{reading.layout.sign}{length}{letter}", reading.buf, start)), end
    if kind != STRING:
        what = "an array of arrays" if kind == ARRAY else f"an array of type {kind}, which GGUF has not"
        raise reading.flaw(f"damaged: {key} is {what}", pos)
    if length > MAX_KEPT_ITEMS:
        return ArrayInfo("string", length), end_of_texts(reading, start, length, is_last)
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
