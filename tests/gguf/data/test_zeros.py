"""Runs of zeros, found by one word of each half a page, beside a search of every byte."""

from __future__ import annotations

import itertools
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.gguf.data.zeros import PAGE_BYTES, Run, ZeroRuns

# Lengths around the bounds of cells, of pages, and of what a word has.
LENGTHS = st.one_of(
    st.integers(0, 40),
    st.builds(lambda half, more: 2048 * half + more, st.integers(1, 5), st.integers(-9, 9)),
    st.integers(0, 9000),
)


def exact(data: bytes, start: int) -> list[Run]:
    return [Run(start + found.start(), start + found.end()) for found in re.finditer(b"\0{%d,}" % PAGE_BYTES, data)]


def fed(pieces: list[bytes], start: int) -> list[Run]:
    zeros = ZeroRuns()
    found: list[Run] = []
    for piece in pieces:
        found += zeros.feed(np.frombuffer(piece, np.uint8), start)
        start += len(piece)
    return [*found, *zeros.flush()]


@st.composite
def mixtures(draw: st.DrawFn) -> bytes:
    """Zeros and others in turn."""
    lengths = draw(st.lists(LENGTHS, max_size=12))
    return b"".join(bytes(length) if number % 2 else b"\x01" * length for number, length in enumerate(lengths))


@given(mixtures(), st.lists(st.integers(0, 60_000), max_size=5), st.integers(0, 1 << 40))
def test_every_run_of_a_page_is_found_whole_however_the_bytes_are_cut(data: bytes, cuts: list[int], start: int) -> None:
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[low:high] for low, high in itertools.pairwise(bounds)]
    assert fed(pieces, start) == exact(data, start)


def test_a_run_of_a_page_is_found_at_every_place() -> None:
    for before in range(0, 4200, 13):
        data = b"\x01" * before + bytes(PAGE_BYTES) + b"\x01" * 5000
        assert fed([data], 7) == [Run(7 + before, 7 + before + PAGE_BYTES)]


def test_a_run_of_a_byte_less_is_none() -> None:
    assert fed([b"\x01" + bytes(PAGE_BYTES - 1) + b"\x01"], 0) == []


def test_a_run_ends_where_the_next_piece_does_not_follow() -> None:
    zeros = ZeroRuns()
    page = np.zeros(PAGE_BYTES, np.uint8)
    assert list(zeros.feed(page, 0)) == []
    assert list(zeros.feed(page, PAGE_BYTES + 1)) == [Run(0, PAGE_BYTES)]
    assert list(zeros.flush()) == [Run(PAGE_BYTES + 1, 2 * PAGE_BYTES + 1)]
    assert list(zeros.flush()) == []
