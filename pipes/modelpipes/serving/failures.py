"""Models that could not be loaded, or died: how often in a row, why, and when each may be loaded again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from modelpipes.errors import ServingError
from modelpipes.gguf.shards import shard_names

BACKOFF_S = 10.0  # before the second attempt; the first follows at once, for most deaths are accidents
LONGEST_BACKOFF_S = 300.0

Stamp: TypeAlias = tuple[tuple[int, ...], ...]


def stamp_of(file: str) -> Stamp:
    """What changes when a model file does, or one of its shards; one that is missing has the stamp ()."""
    return tuple(map(_stamp_of_one, shard_names(file)))


def _stamp_of_one(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def backoff_s(failures: int) -> float:
    """How long to wait after the last of so many failures in a row: 0, 10, 20, 40 … 300 s."""
    if failures <= 1:
        return 0.0
    return float(min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 2, 10)))


@dataclass(frozen=True)
class Failure:
    """The last one of a model. With `stamp`, the cause is in the file or its settings: the file it is told of."""

    why: str
    in_a_row: int
    pause_s: float
    retry_at: float
    stamp: Stamp | None


class Failures:
    """Of each model by name; moments in seconds on one clock."""

    def __init__(self) -> None:
        self._last: dict[str, Failure] = {}

    def count(self, name: str, why: str, now: float, stamp: Stamp | None = None) -> Failure:
        """One more. With `stamp`, of the file before it was loaded, only a change helps: there is no other attempt."""
        in_a_row = self._last[name].in_a_row + 1 if name in self._last else 1
        pause_s = backoff_s(in_a_row)
        failure = self._last[name] = Failure(why, in_a_row, pause_s, now + pause_s, stamp)
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
            self._last[name] = replace(self._last[name], stamp=None)

    def check(self, name: str, file: str, now: float) -> None:
        """Raise ServingError where the model must not be loaded now; a file that has changed is as good as new."""
        failure = self._last.get(name)
        if failure is None:
            return
        text = f"{name} could not be loaded: {failure.why}"
        if failure.stamp is None:
            if failure.retry_at > now:
                raise ServingError(text, 503, "model_load_failed", failure.retry_at - now)
        elif failure.stamp == stamp_of(file):
            again = "tried again when the file or the configuration has changed, or by serve-models load"
            raise ServingError(f"{text}; {again}", 503, "model_load_failed")
        else:
            self.forget(name)

    def retry_moments(self) -> Mapping[str, float]:
        """From when each may be loaded again."""
        return {name: failure.retry_at for name, failure in self._last.items()}
