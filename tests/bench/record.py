"""What one run of the bench is to do, and what it has found so far."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tests.bench.results import Figure, Skipped


@dataclass
class Record:
    """Passed through the parts of the bench, each of which adds its figures."""

    rounds: int
    is_quick: bool
    cpu: int  # that a pair shares where it is pinned to one core
    figures: list[Figure] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, *figures: Figure) -> None:
        self.figures += figures

    def skip(self, what: str, why: str) -> None:
        self.skipped.append(Skipped(what, why))

    def say(self, progress: str) -> None:
        """Tell the person who waits."""
        print(progress, file=sys.stderr, flush=True)
