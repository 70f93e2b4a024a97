"""Which runs of zeros are damage.

Zeros are legitimate: rows of a vocabulary that was padded, biases, layers that were switched off. They are made of
whole rows. What an interrupted download or a lost write leaves is made of pages, and begins and ends wherever those do.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from modelpipes.gguf.data.zeros import PAGE_BYTES, Run
from modelpipes.gguf.tensors import Tensor

# Zero bytes beside a run of zeros that say nothing: those of a small or round number, of a block that is all zero.
SLACK_BYTES = 64
# In a tensor of one row: a float that begins with zero bytes is what a run may take with it.
_FLOAT_BYTES = 8


class Laid(NamedTuple):
    """A tensor as it lies in its file, in bytes, from `start` up to `end`."""

    tensor: Tensor
    start: int
    end: int
    row_bytes: int

    @property
    def has_one_row(self) -> bool:
        return self.row_bytes == self.end - self.start

    def part(self, run: Run) -> Run:
        """What of a run lies in this tensor; where nothing does, it ends before it starts."""
        return Run(max(run.start, self.start), min(run.end, self.end))

    def has(self, run: Run) -> bool:
        """Whether more of a run lies in this tensor than says nothing; of a smaller tensor, all of it."""
        return self.part(run).size_bytes >= min(SLACK_BYTES, self.end - self.start)


def is_cut(run: Run, laid: Laid) -> bool:
    """Whether zeros begin or end inside a row of a tensor, as no legitimate ones do.

    A tensor of one row, as a bias, may have a part that is zero (the keys' in a joint bias of queries, keys and
    values): there it has to be at the end of a page, too.
    """
    part = laid.part(run)
    if part.size_bytes < SLACK_BYTES:
        return False
    if laid.has_one_row:
        begins_inside = part.start - laid.start >= SLACK_BYTES
        ends_inside = laid.end - part.end >= SLACK_BYTES
        return (begins_inside and _is_at_page(part.start)) or (ends_inside and _is_at_page(part.end))
    before = (laid.start - part.start) % laid.row_bytes
    after = (part.end - laid.start) % laid.row_bytes
    return before + after > part.size_bytes or max(before, after) >= SLACK_BYTES


def is_unwritten(descriptor: int, run: Run) -> bool:
    """Whether zeros begin or end where a hole of the file does: they are there because nothing was written.

    A file that was copied sparsely has holes, too, but only the whole pages of longer runs: those begin before the hole
    and end behind it.
    """
    pos = run.start
    while pos < run.end:
        try:
            hole = os.lseek(descriptor, pos, os.SEEK_HOLE)
        except OSError:  # a file system without, or a file that has just been cut
            return False
        if hole >= run.end:
            return False
        try:
            pos = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError:  # ENXIO: the hole goes to the file's end
            return True
        if hole - run.start < SLACK_BYTES or run.end - pos < SLACK_BYTES:
            return True
    return False


def _is_at_page(pos: int) -> bool:
    return (pos + _FLOAT_BYTES) % PAGE_BYTES < 2 * _FLOAT_BYTES
