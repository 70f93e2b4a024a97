"""Get past an array of texts, such as a vocabulary: by walking it, or by searching ahead for its end.

Only the walk is exact: who has not looked at each text's length cannot know that none of them spans the rest
of the file. The search looks at little and is quick; `end_of_texts` says what it proves.
"""

from __future__ import annotations

from itertools import repeat
from operator import length_hint
from time import thread_time
from typing import Final

from modelpipes.gguf.layout import LITTLE, is_key
from modelpipes.gguf.reading import MAX_HEADER_BYTES, OUTSIDE, Reading

# What follows: as a rule another key of the vocabulary; where keys are sorted (Ollama's writer), the tensors.
_NEXT_KEY: Final = b"tokenizer.", b"general."
_NEXT_TENSOR: Final = b"token_embd.weight", b"blk.0.", b"output"
# The texts of real vocabularies have 10 bytes on average: an end is not searched for beyond this.
_MAX_MEAN_BYTES: Final = 64
# The last texts that must end where the next begins. With at least 9 bytes each they reach back further than
# any text shorter than 256 bytes.
_TEXTS_LOOKED_AT: Final = 64
_BEHIND_BYTES: Final = 16 << 10
_AHEAD_BYTES: Final = 4 << 10
# Some patterns are found slowly, 2.5 ms a MiB. Where that happens walking is as good.
_MAX_SEARCH_S: Final = 0.006
_SIX_ZEROS: Final = bytes(6)
_u32 = LITTLE.u32
_u64 = LITTLE.u64


class Unsure(Exception):
    """Where an array of texts ends was not proven: it has to be walked."""


def end_of_texts(reading: Reading, pos: int, count: int, is_last: bool) -> int:
    """Where an array of `count` texts that begins at `pos` ends; `is_last` if no key follows it.

    A search takes the first thing that looks like a key (or tensor) of a usual name. The texts just before
    it must end there, each reaching exactly to the next, and it must not be able to be a text itself. So
    nothing in a text shorter than 256 bytes passes for the end, however it is made. Raises Unsure.
    """
    if not reading.searches:
        return _walk(reading, pos, count)
    if not reading.has_searched:
        reading.has_searched = True
        reading.search_ends_s = thread_time() + _MAX_SEARCH_S
    try:
        return _search(reading, pos, count, is_last)
    except OUTSIDE:
        raise Unsure from None


def _walk(reading: Reading, pos: int, count: int) -> int:
    reading.charge(count, pos)
    steps = repeat(None, count)
    u64 = reading.layout.u64
    while True:
        buf = reading.buf
        try:
            for _ in steps:
                pos += u64(buf, pos)[0] + 8
            return pos
        except OUTSIDE:
            steps = repeat(None, length_hint(steps) + 1)  # this one was taken, but not done
            reading.move(pos)
            pos = 0


def _search(reading: Reading, pos: int, count: int, is_last: bool) -> int:
    first = reading.base + pos
    stop = min(first + _MAX_MEAN_BYTES * count, MAX_HEADER_BYTES)
    for name in _NEXT_TENSOR if is_last else _NEXT_KEY:
        at = first + 8 * count
        while at < stop and thread_time() < reading.search_ends_s:
            reading.cover(max(first, at - _BEHIND_BYTES), at + _AHEAD_BYTES)
            buf = reading.buf
            hit = buf.find(name, at - reading.base, stop - reading.base)
            if hit < 0:
                if reading.is_at_end:
                    break
                at = reading.base + len(buf) - len(name) + 1
            elif hit + _AHEAD_BYTES > len(buf) and not reading.is_at_end:
                at = reading.base + hit
            elif not _looks_like_an_entry(buf, hit - 8):
                at = reading.base + hit + 1
            elif _texts_end_at(buf, max(first - reading.base, 0), hit - 8) and not _may_be_a_text(
                buf, hit - 8, is_last
            ):
                return hit - 8
            else:
                raise Unsure
    raise Unsure


def _looks_like_an_entry(buf: bytes, pos: int) -> bool:
    """Whether a key or a tensor's name, and after it a small number (a type, dimensions), begin at `pos`."""
    (length,) = _u64(buf, pos)
    return length < 256 and is_key(buf[pos + 8 : pos + 8 + length]) and _u32(buf, pos + 8 + length)[0] <= 12


def _texts_end_at(buf: bytes, first: int, end: int) -> bool:
    """Whether each of the last texts before `end`, as the zeros of their lengths show them, reaches the next.

    As none of them is empty and there are no such zeros elsewhere between, nothing else in these bytes can
    be the length, below 256, of a text that reaches over `end`.
    """
    for _ in range(_TEXTS_LOOKED_AT):
        start = buf.rfind(_SIX_ZEROS, first, end) - 2
        if start < first:
            return False
        (length,) = _u64(buf, start)
        if not length or start + 8 + length != end:
            return False
        end = start
    return True


def _may_be_a_text(buf: bytes, pos: int, is_last: bool) -> bool:
    """Whether what looks like an entry at `pos` may be one more text of the array.

    Then another text, or the true entry, begins behind its name, and what are four bytes of type and four of
    value are a length.
    """
    pos += 8 + _u64(buf, pos)[0]
    for _ in range(4):
        (length,) = _u64(buf, pos)
        if length > MAX_HEADER_BYTES:
            return False
        if is_last or is_key(buf[pos + 8 : pos + 8 + length]):
            return True
        pos += 8 + length
    return True
