"""A model's files while it is in memory: whether they are still those that it was loaded from. Pure."""

from __future__ import annotations

from modelpipes.gguf.identity import Stamp, are_others


class Watched:
    """The files of one engine, by their stamps: as they were before it read them, and as they are at each look.

    A file that is being written changes from look to look, and is no model yet: only others that are the same at two
    looks in a row are at rest.
    """

    def __init__(self, stamp: Stamp) -> None:
        self.loaded = stamp
        self._last = stamp
        self._found = stamp

    @property
    def are_replaced(self) -> bool:
        """Whether others lay there at the last look, or none."""
        return are_others(self.loaded, self._last)

    def look(self, stamp: Stamp) -> bool:
        """Whether others have come to rest there since the last look: true once for each that do."""
        is_at_rest = stamp == self._last
        self._last = stamp
        if not is_at_rest or stamp == self._found:
            return False
        self._found = stamp
        return self.are_replaced
