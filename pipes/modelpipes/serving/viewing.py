"""GET /events: what happens, as server-sent events, to whoever looks on.

A stream begins with a snapshot, or, where the reader tells the last id that it has (`Last-Event-ID`, `?since=ID`), with
what came after it. One that is too slow is told and ended; at our own end all are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.routing import Route

from modelpipes.errors import ServingError
from modelpipes.events import Leaving, Missed
from modelpipes.gateway.wire import ModelList, Snapshot
from modelpipes.serving.exchange import CONNECTION, Endpoint, Exchange, Headers
from modelpipes.serving.grant import EnginePool
from modelpipes.serving.ring import Entry, Ring

MAX_VIEWERS = 256  # at once, apart from the connections of those who ask models
PING_S = 15.0  # a proxy closes what is silent for a minute
RETRY_AFTER_S = 5.0
MAX_ID_DIGITS = 18  # microseconds since 1970 have 16
PING = b": ping\n\n"
# nginx passes a stream on at once without the last one, as measured; others may not.
STREAM: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
TOO_SLOW = "this reader is slower than events come; ask again with the last id"
NOT_KEPT = "they are no longer kept"
ANOTHER_DAEMON = "the last one read is of another daemon"


class Viewing:
    """The streams of all who look on."""

    def __init__(
        self,
        pool: EnginePool,
        ring: Ring,
        models: Callable[[], ModelList],
        closing: asyncio.Event,
        ping_s: float = PING_S,
    ) -> None:
        self._pool = pool
        self._ring = ring
        self._models = models
        self._closing = closing
        self._ping_s = ping_s
        self._viewers = 0

    def route(self) -> Route:
        """The way to it."""
        return Route("/events", Endpoint(self._events), methods=["GET"])

    def close(self) -> None:
        """Tell all that we end, which ends their streams."""
        self._ring.put(Leaving())

    async def _events(self, exchange: Exchange) -> None:
        after, follows = _asked(Request(exchange.scope))
        if self._closing.is_set():
            raise ServingError("the gateway is shutting down", 503, "shutting_down", RETRY_AFTER_S)
        if self._viewers >= MAX_VIEWERS:
            raise ServingError(f"{self._viewers} look on already", 503, "too_many_viewers", RETRY_AFTER_S)
        if exchange.scope["method"] == "HEAD":
            await exchange.start(200, STREAM)
            await exchange.finish()
            return
        connection = exchange.scope.get(CONNECTION)
        self._viewers += 1
        if connection is not None:
            connection.look_on(is_viewer=True)
        try:
            await exchange.start(200, STREAM)
            await self._stream(exchange, after, follows=follows)
            await exchange.finish()
        finally:
            self._viewers -= 1
            if connection is not None:
                connection.look_on(is_viewer=False)

    async def _stream(self, exchange: Exchange, after: int | None, *, follows: bool) -> None:
        ring = self._ring
        begins_at = ring.last_id
        with ring.reader(begins_at) as reader:
            if after is None:
                await exchange.write(self._snapshot(begins_at))
            else:
                await exchange.write(self._since(after, begins_at, follows=follows))
            while follows:
                found, lost = await reader.next(self._ping_s)
                if lost:
                    await exchange.write(_missed(found[0].id - 1, lost, TOO_SLOW))
                    return
                await exchange.write(b"".join([entry.sse() for entry in found]) or PING)
                if found and any(isinstance(entry.event, Leaving) for entry in found):
                    return

    def _since(self, after: int, until: int, *, follows: bool) -> bytes:
        """What came after an id, and what is missing before it; where something is, the state as well."""
        ring = self._ring
        is_ours = after == 0 or ring.first_id - 1 <= after <= until
        found, lost = ring.after(after if is_ours else ring.first_id - 1)
        found = [entry for entry in found if entry.id <= until]
        parts = [entry.sse() for entry in found]
        if lost or not is_ours:
            first_id = found[0].id if found else until + 1
            told = _missed(first_id - 1, lost, NOT_KEPT) if is_ours else _missed(first_id - 1, None, ANOTHER_DAEMON)
            parts = [told, *parts, *([self._snapshot(until)] if follows else [])]
        return b"".join(parts)

    def _snapshot(self, id_: int) -> bytes:
        return Entry(id_, time.time(), Snapshot(self._pool.residency(), self._models().data)).sse()


def _missed(id_: int, count: int | None, why: str) -> bytes:
    return Entry(id_, time.time(), Missed(count, why)).sse()


def _asked(request: Request) -> tuple[int | None, bool]:
    """After which id, None: none is told; and whether what is to come is wanted as well."""
    follow = request.query_params.get("follow", "1")
    if follow not in ("0", "1"):
        raise ServingError("follow is 0 or 1", 400, "bad_query")
    # A browser that comes back sends the header, and has the query of its first request still.
    given = request.headers.get("last-event-id") or request.query_params.get("since", "")
    if not given:
        return (None if follow == "1" else 0), follow == "1"
    if not (given.isascii() and given.isdecimal() and len(given) <= MAX_ID_DIGITS):
        raise ServingError("since, and Last-Event-ID, are the id of an event", 400, "bad_query")
    return int(given), follow == "1"
