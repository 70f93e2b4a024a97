"""Get past an array of strings, such as a vocabulary: by walking it, or by searching ahead for its end.

Only the walk is exact: who has not looked at each string's length cannot know that none of them spans the
rest of the file. The search looks at little and is quick. `end_of_strings` says what it proves.
"""

from __future__ import annotations

from itertools import repeat
from typing import Final

from modelpipes.gguf.layout import LITTLE, MAX_HEADER_BYTES, Flaw, Reading, Short, Unsure

# What follows an array of strings: as a rule another key of the vocabulary; where keys are sorted
# (Ollama's writer), the tensors.
_NEXT_KEY: Final = b"tokenizer.ggml.", b"tokenizer.", b"general."
_NEXT_TENSOR: Final = b"token_embd.weight", b"blk.0.", b"output"
# Strings of real vocabularies have 10 bytes on average: beyond that an end is not searched for.
_MAX_MEAN_BYTES = 64
_SIX_ZEROS = bytes(6)
# The last strings that must end where the next begins: at least 9 bytes each, and so more than any string
# shorter than 256 bytes with its length.
_STRINGS_LOOKED_AT = 64
_u64 = LITTLE.u64
_u32 = LITTLE.u32


def end_of_strings(reading: Reading, pos: int, count: int, is_last: bool) -> int:
    """Where an array of `count` strings that begins at `pos` ends; `is_last` if no key follows it.

    A search takes the first thing that looks like a key (or a tensor) of the usual name, and demands that
    the strings just before it end there, and that it cannot be a string of the array itself. So if no
    string is as long as 256 bytes, and the array is followed by a `tokenizer.ggml.` key, no file that can be
    walked is misread: nothing inside the array, however made, passes. What does not pass raises Unsure.
    """
    if not reading.searches:
        return _walk(reading, pos, count)
    end = _search(reading.buf, pos, count, is_last)
    reading.searched_from = reading.searched_from or end
    return end


def _walk(reading: Reading, pos: int, count: int) -> int:
    reading.charge(count, pos)
    buf, u64, start = reading.buf, reading.layout.u64, pos
    for _ in repeat(None, count):
        pos += u64(buf, pos)[0] + 8
    if pos - start > MAX_HEADER_BYTES:
        raise Flaw(f"damaged: {count} texts of {pos - start} bytes", start)
    return pos


def _search(buf: bytes, pos: int, count: int, is_last: bool) -> int:
    least_end, last_end = pos + 8 * count, pos + _MAX_MEAN_BYTES * count
    for name in _NEXT_TENSOR if is_last else _NEXT_KEY:
        at = buf.find(name, least_end, last_end)
        while at >= 0:
            if _looks_like_an_entry(buf, at - 8):
                if _strings_end_at(buf, pos, at - 8) and not _may_be_a_string(buf, at - 8):
                    return at - 8
                raise Unsure
            at = buf.find(name, at + 1, last_end)
        if last_end > len(buf):
            raise Short
    raise Unsure


def _looks_like_an_entry(buf: bytes, pos: int) -> bool:
    """Whether a key or a tensor's name, and after it a small number (a type, dimensions), begin at `pos`."""
    length = _u64(buf, pos)[0]
    return 0 < length < 256 and buf[pos + 8 : pos + 8 + length].isascii() and _u32(buf, pos + 8 + length)[0] <= 12


def _strings_end_at(buf: bytes, first: int, end: int) -> bool:
    """Whether the last strings before `end` each reach exactly to the next, as found by their lengths' zeros.

    As none of them is empty and no zeros lie between, nothing else in their bytes can be the length, below
    256, of a string that reaches over `end`.
    """
    for _ in range(_STRINGS_LOOKED_AT):
        start = buf.rfind(_SIX_ZEROS, first, end) - 2
        if start < first:
            return False
        length = _u64(buf, start)[0]
        if not length or start + 8 + length != end:
            return False
        end = start
    return True


def _may_be_a_string(buf: bytes, pos: int) -> bool:
    """Whether what looks like an entry at `pos` may be one more string of the array.

    Then a string, or the true next key, begins behind its name: four bytes of type and four of value would
    be its length.
    """
    pos += 8 + _u64(buf, pos)[0]
    for _ in range(4):
        length = _u64(buf, pos)[0]
        if length > MAX_HEADER_BYTES:
            return False
        if buf[pos + 8 : pos + 8 + length].decode("utf-8", "replace").isprintable():
            return True
        pos += 8 + length
    return True
