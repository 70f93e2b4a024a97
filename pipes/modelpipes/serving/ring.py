"""The last events, numbered and timed, and those who wait for the next: each reader has a place in it and no queue.

A reader that is slower than events come loses its place, and is told; nobody waits for it, and nothing is kept for it.
Ids are consecutive. They begin at the microseconds of the daemon's start, so that a later daemon's are higher: a reader
that comes back after a restart is understood.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from modelpipes.events import Event
from modelpipes.gateway.wire import EventLine, Snapshot

KEPT_EVENTS = 4096  # some 2 MiB; more than an hour of a daemon at whose events somebody looks
MICROSECONDS = 1_000_000


class Entry:
    """An event with its id and its time; made the wire's bytes once, when the first asks for them."""

    __slots__ = ("_sse", "at_s", "event", "id")

    def __init__(self, id_: int, at_s: float, event: Event | Snapshot) -> None:
        self.id = id_
        self.at_s = at_s
        self.event = event
        self._sse = b""

    def json(self) -> bytes:
        """An EventLine, without a newline."""
        return msgspec.json.encode(EventLine(self.id, moment(self.at_s), self.event))

    def sse(self) -> bytes:
        """The same as a server-sent event."""
        self._sse = self._sse or b"id: %d\ndata: %b\n\n" % (self.id, self.json())
        return self._sse


class Ring:
    """A Sink (`put`), and what was put into it last."""

    def __init__(self, kept: int = KEPT_EVENTS) -> None:
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._lock = threading.Lock()
        self.first_id = int(time.time() * MICROSECONDS)
        self._next_id = self.first_id
        self._readers: dict[Reader, None] = {}
        self._takers: list[Callable[[Entry], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_waking = False

    def put(self, event: Event) -> None:
        """Keep it, and wake who reads; from any thread."""
        with self._lock:
            entry = Entry(self._next_id, time.time(), event)
            self._next_id += 1
            self._entries.append(entry)
            for take in self._takers:
                take(entry)
            if self._readers and not self._is_waking and self._loop is not None and not self._loop.is_closed():
                self._is_waking = True
                self._loop.call_soon_threadsafe(self._wake)

    def add_taker(self, take: Callable[[Entry], None]) -> None:
        """Have each entry given to it as it comes, in order and from any thread; it returns at once."""
        with self._lock:
            self._takers.append(take)

    @property
    def is_read(self) -> bool:
        """Whether anybody waits for events."""
        return bool(self._readers or self._takers)

    @property
    def last_id(self) -> int:
        """Of the last event; the one before `first_id` where there was none."""
        return self._next_id - 1

    def reader(self, after: int) -> Reader:
        """Whoever wants what comes after this id; to be closed, by `with`. In an event loop, one for all readers."""
        self._loop = asyncio.get_running_loop()
        return Reader(self, after)

    def after(self, id_: int) -> tuple[list[Entry], int]:
        """What is kept of what came after, and how many are no longer kept. An id to come counts as the last."""
        with self._lock:
            id_ = min(max(id_, self.first_id - 1), self._next_id - 1)
            count = self._next_id - 1 - id_
            kept = len(self._entries)
            if count <= 0:
                return [], 0
            if count >= kept:
                return list(self._entries), count - kept
            # From the right: who reads wants the last few, and a deque's middle is far from both of its ends.
            some = [entry for _, entry in zip(range(count), reversed(self._entries), strict=False)]
            return some[::-1], 0

    def _wake(self) -> None:
        self._is_waking = False
        for reader in list(self._readers):
            reader.wake()


class Reader:
    """A place in the ring, moved by `next`."""

    def __init__(self, ring: Ring, after: int) -> None:
        self._ring = ring
        self._after = after
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None

    async def next(self, limit_s: float) -> tuple[list[Entry], int]:
        """What has come since, waited for; nothing after `limit_s`. With how many were lost before it."""
        found, lost = self._ring.after(self._after)
        if not found:
            self._news = self._loop.create_future()
            timer = self._loop.call_later(limit_s, self.wake)
            try:
                await self._news
            finally:
                timer.cancel()
                self._news = None
            found, lost = self._ring.after(self._after)
        if found:
            self._after = found[-1].id
        return found, lost

    def wake(self) -> None:
        """Have `next` look again."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def __enter__(self) -> Reader:
        self._ring._readers[self] = None
        return self

    def __exit__(self, *given: object) -> None:
        self._ring._readers.pop(self, None)


def moment(at_s: float) -> str:
    """A time as it is told: ISO 8601 in UTC."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
