"""The messages that a member has yet to answer: askers side by side, what of one belongs together in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from modelpipes.chat.voices import Work
from modelpipes.pipe.message import Say


class Pending:
    """One message to answer, from its arrival to its answer."""

    def __init__(self, asker: str, say: Say, *, is_plain: bool = False) -> None:
        self.asker = asker
        self.say = say
        self.is_plain = is_plain
        # Where it queues: a typed asker never waits behind its seat's plain lines; what stands alone queues nowhere.
        self.line = (asker, is_plain) if is_plain or say.conversation else None
        self.arrived_s = time.monotonic()
        self.started_s = 0.0
        self.work: Work | None = None  # None: it still waits
        self.is_abandoned = False  # its asker has gone: nobody wants the answer
        self.pieces: deque[tuple[str, str, bool]] = deque()  # content, thinking, anew: emitted, still to be posted
        self.is_posting = False  # somebody was told to post them
        self.posted_s = 0.0  # when pieces last went out


class PendingQueue:
    """Messages to answer: at most `parallel` are in work at a time, at most `limit` wait."""

    def __init__(self, parallel: int, limit: int) -> None:
        self.parallel = parallel
        self.limit = limit
        self.waiting: list[Pending] = []
        self.working: list[Pending] = []

    def add(self, pending: Pending) -> bool:
        """Let one wait its turn; False where the queue is full."""
        if len(self.waiting) >= self.limit:
            return False
        self.waiting.append(pending)
        return True

    def next_to_start(self, may_start: Callable[[Pending], bool]) -> Pending | None:
        """Move the oldest that waits for none before it, and that may start, to those in work.

        Of an asker that has one in work already only where nobody else waits.
        """
        if len(self.working) >= self.parallel:
            return None
        served = {pending.asker for pending in self.working}
        blocked = {pending.line for pending in self.working if pending.line}
        for pending in sorted(self.waiting, key=lambda pending: pending.asker in served):
            if pending.line not in blocked and may_start(pending):
                self.waiting.remove(pending)
                self.working.append(pending)
                pending.started_s = time.monotonic()
                return pending
            if pending.line:
                blocked.add(pending.line)
        return None

    def find(self, say_id: str) -> Pending | None:
        return next((pending for pending in (*self.working, *self.waiting) if pending.say.id == say_id), None)

    def of(self, asker: str) -> list[Pending]:
        return [pending for pending in (*self.working, *self.waiting) if pending.asker == asker]

    def remove(self, pending: Pending) -> None:
        """Forget one, wherever it stands."""
        for some in (self.working, self.waiting):
            if pending in some:
                some.remove(pending)
