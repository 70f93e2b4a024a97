"""A moment that must not pass: computed once, handed down, never re-made."""

from __future__ import annotations

import math
import time

from modelpipes.errors import DeadlineError


class Deadline:
    """A moment on the monotonic clock; `Deadline.never()` does not come."""

    __slots__ = ("_moment_s",)

    def __init__(self, moment_s: float) -> None:
        self._moment_s = moment_s

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The moment `seconds` from now; None: never."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds)

    @classmethod
    def never(cls) -> Deadline:
        return cls(math.inf)

    def earlier(self, other: Deadline) -> Deadline:
        """Whichever of the two comes first."""
        return self if self._moment_s <= other._moment_s else other

    def remaining_s(self) -> float:
        """Seconds left, never negative; infinity for never."""
        return max(0.0, self._moment_s - time.monotonic())

    def has_passed(self) -> bool:
        return time.monotonic() >= self._moment_s

    def poll_ms(self) -> int | None:
        """The time left as `select.poll` takes it: whole milliseconds rounded up, None for never."""
        left_s = self._moment_s - time.monotonic()
        if left_s == math.inf:
            return None
        return min(math.ceil(left_s * 1000), 2**31 - 1) if left_s > 0 else 0

    def check(self, waiting_for: str) -> None:
        """Raise DeadlineError, naming what was waited for, if the moment has passed."""
        if self.has_passed():
            raise DeadlineError(f"no {waiting_for} before the deadline")
