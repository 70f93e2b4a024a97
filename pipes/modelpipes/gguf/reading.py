"""One attempt at a header: a window that moves over its file, and the bounds of what it may cost."""

from __future__ import annotations

import os
import struct
from typing import Final

from modelpipes.gguf.layout import LITTLE, Layout

# The largest header of real life has 16 MB (gemma 4: 262,144 tokens, 514,906 merges).
MAX_HEADER_BYTES: Final = 32 << 20
# In texts walked past, of about 45 ns each; the largest real header has 780,000. What else takes time is
# charged in the same coin.
_MAX_WORK: Final = 850_000

# A header without a vocabulary fits in the first. Later ones stay below malloc's threshold for a mapping of
# its own, whose fresh pages would cost more than the reading.
_FIRST_WINDOW_BYTES: Final = 64 << 10
_WINDOW_BYTES: Final = 120 << 10
# More than any entry that is kept: 1,024 texts of 1,024 bytes.
_LARGEST_WINDOW_BYTES: Final = 2 << 20


class Flaw(Exception):
    """What is wrong with a header, and at which byte."""

    def __init__(self, reason: str, offset: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


# What reading beyond the window raises: `struct.unpack_from`, and it again where the position is no size_t.
OUTSIDE: Final = struct.error, OverflowError


class Reading:
    """Reads forward in a file: `buf` holds the bytes from `base` on; positions count within `buf`.

    Not a memory map: a file that shrinks while it is mapped kills its reader with SIGBUS.
    """

    __slots__ = (
        "_fd",
        "base",
        "buf",
        "has_searched",
        "is_at_end",
        "layout",
        "search_ends_s",
        "searches",
        "size",
        "work",
    )

    def __init__(self, fd: int, size: int, searches: bool) -> None:
        self._fd = fd
        self.size = size
        self.base = 0
        self.buf = os.pread(fd, _FIRST_WINDOW_BYTES, 0)
        self.is_at_end = len(self.buf) < _FIRST_WINDOW_BYTES
        self.layout: Layout = LITTLE
        self.searches = searches
        """Whether the ends of long arrays of texts are searched for; else these are walked."""
        self.has_searched = False
        self.search_ends_s = 0.0
        """In `time.thread_time`."""
        self.work = _MAX_WORK

    def flaw(self, reason: str, pos: int) -> Flaw:
        """What to raise for something at `pos`."""
        return Flaw(reason, self.base + pos)

    def charge(self, work: int, pos: int) -> None:
        """Raise Flaw once the header costs more than any real one."""
        self.work -= work
        if self.work < 0:
            raise self.flaw("damaged: more entries than any real header has", pos)

    def move(self, pos: int) -> None:
        """Let the window begin at `pos`, because it ended too early; positions count from there on.

        Raises Flaw where the file, or what a header may be, ends as well.
        """
        start = self.base + pos
        if start > MAX_HEADER_BYTES:
            raise Flaw(f"damaged: a header of more than {MAX_HEADER_BYTES >> 20} MiB", start)
        if start >= self.size or (pos == 0 and self.is_at_end):
            raise Flaw("incomplete download: the file ends inside its header", self.size)
        wanted = _WINDOW_BYTES
        if pos == 0 and len(self.buf) >= wanted:  # one entry fills a window
            wanted = _LARGEST_WINDOW_BYTES
            if len(self.buf) >= wanted:
                raise Flaw(f"damaged: an entry of more than {wanted >> 20} MiB", start)
        self._read(start, wanted)

    def cover(self, start: int, end: int) -> None:
        """Have the bytes from `start` to `end` of the file in the window, as far as the file has them."""
        if start < self.base or (end > self.base + len(self.buf) and not self.is_at_end):
            self._read(start, _WINDOW_BYTES)

    def _read(self, start: int, wanted: int) -> None:
        self.buf = b""  # first, so that its memory serves again
        self.buf = os.pread(self._fd, wanted, start)
        self.is_at_end = len(self.buf) < wanted
        self.base = start
