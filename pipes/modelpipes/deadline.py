"""A moment that must not pass: computed once, handed down, never re-made."""

from __future__ import annotations

from math import ceil, inf
from time import monotonic

from modelpipes.errors import DeadlineError

LONGEST_POLL_S = 2e6  # 23 days; milliseconds have 31 bits


class Deadline:
    """A moment on the monotonic clock; `Deadline.never()` does not come."""

    __slots__ = ("_moment_s",)

    def __init__(self, moment_s: float) -> None:
        self._moment_s = moment_s

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The moment `seconds` from now; None: never."""
        return cls(inf if seconds is None else monotonic() + seconds)

    @classmethod
    def never(cls) -> Deadline:
        return cls(inf)

    def earlier(self, other: Deadline) -> Deadline:
        """Whichever of the two comes first."""
        return self if self._moment_s <= other._moment_s else other

    def remaining_s(self) -> float:
        """Seconds left, never negative; infinity for never."""
        return max(0.0, self._moment_s - monotonic())

    def has_passed(self) -> bool:
        return monotonic() >= self._moment_s

    def poll_ms(self) -> int | None:
        """The time left as `select.poll` takes it: whole milliseconds rounded up, None for never."""
        left_s = self._moment_s - monotonic()
        if left_s <= 0:
            return 0
        if left_s < LONGEST_POLL_S:
            return ceil(left_s * 1000)
        return None if left_s == inf else int(LONGEST_POLL_S) * 1000

    def check(self, waiting_for: str) -> None:
        """Raise DeadlineError, naming what was waited for, if the moment has passed."""
        if self.has_passed():
            raise DeadlineError(f"no {waiting_for} before the deadline")
