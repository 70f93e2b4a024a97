"""A moment that must not pass: computed once, handed down, never re-made."""

from __future__ import annotations

from math import ceil, inf
from time import monotonic

import msgspec

from modelpipes.errors import DeadlineError

LONGEST_POLL_MS = 2**31 - 1  # 25 days


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """A moment on the monotonic clock: `Deadline.after(30)` comes in 30 seconds, `Deadline.never()` does not."""

    _moment_s: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The moment `seconds` from now; None: never."""
        return cls(inf if seconds is None else monotonic() + seconds)

    @classmethod
    def never(cls) -> Deadline:
        """A moment that does not come."""
        return cls(inf)

    def earlier(self, other: Deadline) -> Deadline:
        """Whichever of the two comes first."""
        return self if self._moment_s <= other._moment_s else other

    def remaining_s(self) -> float:
        """Seconds left, never negative; infinity for never."""
        return max(0.0, self._moment_s - monotonic())

    def has_passed(self) -> bool:
        """Is it over?"""
        return monotonic() >= self._moment_s

    def poll_ms(self) -> int | None:
        """The time left as `select.poll` takes it: whole milliseconds rounded up, None for never."""
        if self._moment_s == inf:
            return None
        left_ms = (self._moment_s - monotonic()) * 1000
        if left_ms < LONGEST_POLL_MS:
            return ceil(left_ms) if left_ms > 0 else 0
        return LONGEST_POLL_MS

    def check(self, waiting_for: str) -> None:
        """Raise DeadlineError, naming what was waited for, if the moment has passed."""
        if self.has_passed():
            raise DeadlineError(f"no {waiting_for} before the deadline")
