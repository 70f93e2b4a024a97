"""Find long runs of zeros in bytes that come in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from modelpipes.gguf.data.values import Bytes

# A page, and a block of the usual file systems: the least that a hole has, or a write that got lost.
PAGE_BYTES = 4096
# A run of a page covers at least one whole cell, wherever it begins: only cells that begin with a zero word are read.
_CELL_BYTES = PAGE_BYTES // 2
_WORD_BYTES = 8


class Run(NamedTuple):
    """Zeros from byte `start` up to `end`."""

    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


_NONE = Run(0, 0)


class ZeroRuns:
    """Finds every run of PAGE_BYTES or more, also where it goes from one piece into the next."""

    def __init__(self) -> None:
        self._open = _NONE  # the zeros that the last piece ended with
        self._end = 0  # of the last piece

    def feed(self, piece: Bytes, start: int) -> Iterator[Run]:
        """The runs known to have ended by this piece, not empty, of bytes from `start` on.

        Where what came before does not reach up to it, a run ends there.
        """
        if start != self._end or piece[0]:
            yield from self.flush()
        self._end = end = start + len(piece)
        for first, last in _runs(piece):
            run = Run(start + first, start + last)
            if first == 0 and self._open.size_bytes:
                run = Run(self._open.start, run.end)
                self._open = _NONE
            if run.end == end:
                self._open = run
            elif run.size_bytes >= PAGE_BYTES:
                yield run

    def flush(self) -> Iterator[Run]:
        """The run that the last piece ended with, if it was one: nothing goes on from there."""
        run, self._open = self._open, _NONE
        if run.size_bytes >= PAGE_BYTES:
            yield run


def _runs(piece: Bytes) -> Iterator[tuple[int, int]]:
    """Runs of zeros, in order: all that cover a cell, and those at both ends, however short."""
    size = len(piece)
    edge = _zeros_after(piece, 0)
    if 0 < edge < _CELL_BYTES:
        yield 0, edge
    end = 0
    for first, last in _zero_cells(piece):
        start = first * _CELL_BYTES
        start -= _zeros_before(piece, start)
        end = last * _CELL_BYTES
        end += _zeros_after(piece, end)
        yield start, end
    edge = _zeros_before(piece, size)
    if end != size and 0 < edge < size:
        yield size - edge, size


def _zero_cells(piece: Bytes) -> list[tuple[int, int]]:
    """Groups of cells that are all zero: the number of the first, and that after the last."""
    n_cells = len(piece) // _CELL_BYTES
    words = piece[: n_cells * _CELL_BYTES].view(np.uint64).reshape(n_cells, _CELL_BYTES // _WORD_BYTES)
    begins_with_zero = np.flatnonzero(words[:, 0] == 0)
    if not len(begins_with_zero):
        return []
    cells = begins_with_zero[~words[begins_with_zero].any(axis=1)]
    if not len(cells):
        return []
    breaks = np.flatnonzero(np.diff(cells) != 1) + 1
    firsts, lasts = cells[[0, *breaks]], cells[[*(breaks - 1), -1]] + 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _zeros_after(piece: Bytes, pos: int) -> int:
    """Zeros from `pos` on, at most a cell."""
    near = piece[pos : pos + _CELL_BYTES]
    others = np.flatnonzero(near)
    return int(others[0]) if len(others) else len(near)


def _zeros_before(piece: Bytes, pos: int) -> int:
    """Zeros up to `pos`, at most a page: what cells leave over at the end, and the cell before, are less."""
    near = piece[max(0, pos - PAGE_BYTES) : pos]
    others = np.flatnonzero(near)
    return len(near) - 1 - int(others[-1]) if len(others) else len(near)
