"""Models that could not be loaded, or died: how often in a row, why, and when each may be loaded again.

A failure is one of the model's files as they were: once they are others, the model is as good as new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modelpipes.errors import ServingError
from modelpipes.gguf.identity import Stamp, stamp_of

BACKOFF_S = 10.0  # before the second attempt; the first follows at once, for most deaths are accidents
LONGEST_BACKOFF_S = 300.0


def backoff_s(failures: int) -> float:
    """How long to wait after the last of so many failures in a row: 0, 10, 20, 40 … 300 s."""
    if failures <= 1:
        return 0.0
    return float(min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 2, 10)))


@dataclass(frozen=True)
class FailedLoads:
    """The last one of a model, of files with this stamp; with `is_lasting`, the cause is in them or the settings."""

    why: str
    in_a_row: int
    pause_s: float
    retry_at: float
    stamp: Stamp
    is_lasting: bool


class Failures:
    """Of each model by name; moments in seconds on one clock."""

    def __init__(self) -> None:
        self._last: dict[str, FailedLoads] = {}

    def count(self, name: str, why: str, now: float, stamp: Stamp, *, is_lasting: bool = False) -> FailedLoads:
        """One more, of the files with this stamp; where it lasts only a change helps: there is no other attempt."""
        before = self._last.get(name)
        in_a_row = before.in_a_row + 1 if before is not None and before.stamp == stamp else 1
        pause_s = backoff_s(in_a_row)
        failure = self._last[name] = FailedLoads(why, in_a_row, pause_s, now + pause_s, stamp, is_lasting)
        return failure

    def forget(self, name: str) -> None:
        """It lived."""
        self._last.pop(name, None)

    def forget_all(self) -> None:
        """What made them fail was mended, perhaps."""
        self._last.clear()

    def allow(self, name: str) -> None:
        """Somebody wants it loaded all the same, unchanged; not before its pause has passed."""
        if name in self._last:
            self._last[name] = replace(self._last[name], is_lasting=False)

    def check(self, name: str, files: Sequence[str], now: float) -> None:
        """Raise ServingError where the model must not be loaded now; with other files it is as good as new."""
        failure = self._last.get(name)
        if failure is None:
            return
        if failure.stamp != stamp_of(*files):
            self.forget(name)
            return
        text = f"{name} could not be loaded: {failure.why}"
        if failure.is_lasting:
            again = "tried again when the file or the configuration has changed, or by serve-models load"
            raise ServingError(f"{text}; {again}", 503, "model_load_failed")
        if failure.retry_at > now:
            raise ServingError(text, 503, "model_load_failed", failure.retry_at - now)

    def retry_moments(self) -> Mapping[str, float]:
        """From when each may be loaded again."""
        return {name: failure.retry_at for name, failure in self._last.items()}
