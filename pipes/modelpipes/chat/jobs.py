"""The messages that a member has yet to answer: each asker's in order, askers side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from modelpipes.chat.voices import Work
from modelpipes.pipe.message import Say


class Job:
    """One message to answer, from its arrival to its answer."""

    def __init__(self, asker: str, say: Say, *, is_plain: bool = False) -> None:
        self.asker = asker
        self.say = say
        self.is_plain = is_plain
        self.line = asker, is_plain  # where it queues: a typed asker never waits behind its seat's plain lines
        self.arrived_s = time.monotonic()
        self.started_s = 0.0
        self.work: Work | None = None  # None: it still waits
        self.is_abandoned = False  # its asker has gone: nobody wants the answer
        self.pieces: deque[tuple[str, str]] = deque()  # (content, thinking) that the voice emitted, still to be posted
        self.is_posting = False  # somebody was told to post them
        self.posted_s = 0.0  # when pieces last went out


class Jobs:
    """At most `parallel` jobs work at a time, at most `limit` wait."""

    def __init__(self, parallel: int, limit: int) -> None:
        self.parallel = parallel
        self.limit = limit
        self.waiting: list[Job] = []
        self.working: list[Job] = []

    def add(self, job: Job) -> bool:
        """Let a job wait its turn; False where the queue is full."""
        if len(self.waiting) >= self.limit:
            return False
        self.waiting.append(job)
        return True

    def next_to_start(self, may_start: Callable[[Job], bool]) -> Job | None:
        """Move the oldest job whose asker has none before it, and that may start, to the working ones."""
        if len(self.working) >= self.parallel:
            return None
        blocked = {job.line for job in self.working}
        for job in self.waiting:
            if job.line not in blocked and may_start(job):
                self.waiting.remove(job)
                self.working.append(job)
                job.started_s = time.monotonic()
                return job
            blocked.add(job.line)
        return None

    def find(self, say_id: str) -> Job | None:
        return next((job for job in (*self.working, *self.waiting) if job.say.id == say_id), None)

    def of(self, asker: str) -> list[Job]:
        return [job for job in (*self.working, *self.waiting) if job.asker == asker]

    def remove(self, job: Job) -> None:
        """Forget a job, wherever it stands."""
        for jobs in (self.working, self.waiting):
            if job in jobs:
                jobs.remove(job)
