"""A model that the daemon can serve, as its configuration and its files have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelpipes.engine.lifecycle import Engine
from modelpipes.fit.shares import Estimate
from modelpipes.gguf.identity import Stamp, are_others
from modelpipes.serving.bytes import Bytes
from modelpipes.values.timeouts import DRAIN_TIMEOUT_S, LOAD_TIMEOUT_S


@dataclass(frozen=True)
class Servable:
    """A model that can be asked for; `start` makes its engine, `needs` is what that will take.

    All of it is of the model's files as they were with this `stamp`, () where nobody has looked. Once they are others,
    it is no longer true: `renew` finds it out anew.
    """

    name: str
    file: str
    start: Callable[[str | None], Engine]  # given the folder in which it may keep conversations
    needs: Bytes
    file_bytes: int
    created: int  # seconds since the epoch
    context_length: int
    sequences: int = 1
    aliases: tuple[str, ...] = ()
    is_pinned: bool = False
    idle_unload_s: float | None = None
    measure: Callable[[int], Bytes] | None = None  # of a process that runs, by pid: what it has taken
    advise: Callable[[Bytes], str] | None = None  # what would fit into a budget into which it does not
    estimate: Estimate = "exact"  # how `needs` is known
    load_timeout_s: float = LOAD_TIMEOUT_S
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    other_files: tuple[str, ...] = ()  # that its engine reads beside `file`
    stamp: Stamp = ()
    renew: Callable[[], Servable] | None = None  # the same, of the files as they are now; PipesError

    @property
    def files(self) -> tuple[str, ...]:
        """All that its engine reads."""
        return self.file, *self.other_files

    def is_same(self, other: Servable) -> bool:
        """Whether an engine of the one is an engine of the other."""
        has_others = self.stamp and other.stamp and are_others(self.stamp, other.stamp)
        return (self.start, self.needs) == (other.start, other.needs) and not has_others
