"""One request while the gateway works on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

Scope: TypeAlias = Any  # uvicorn's, Starlette's and our own types of a scope differ only in name
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]  # what ASGI calls an application
Headers: TypeAlias = list[tuple[bytes, bytes]]

LINGER_BYTES = 64 * 1024 * 1024  # read and dropped after a refusal: closing at once would destroy its answer
JSON: Headers = [(b"content-type", b"application/json")]
CONNECTION = "modelpipes.connection"
EXCHANGE = "modelpipes.exchange"


class Exchange:
    """Its answer, and what may end it early."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.status = 0
        self.is_whole = False
        self.reading_since = 0.0  # zero: not now
        self.sending_since = 0.0
        self.asked_at = 0.0
        self.body_bytes = 0
        self.has_read_all = False
        self.is_stream = False
        self.told: Headers = []  # to the browser of a page that is let in
        self.ended_by = ""  # left, stalled, or one of EARLY_ENDS
        self.is_over = False
        self.loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._send = send

    def end(self, reason: str) -> None:
        """Cancel it, unless it is over; the first reason counts."""
        if not (self.is_over or self.ended_by or self._task is None):
            self.ended_by = reason
            self._task.cancel()

    async def send(self, message: Any) -> None:
        """ASGI's, with an eye on how far the answer has gone."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.told:
                message["headers"] = [*message["headers"], *self.told]
        elif not message.get("more_body"):
            self.is_whole = True
        self.sending_since = self.loop.time()
        await self._send(message)
        self.sending_since = 0.0

    async def start(self, status: int, headers: Headers) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def finish(self, body: bytes = b"") -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def declared_bytes(self) -> int:
        """The length of the body, as far as it is told."""
        for name, value in self.scope["headers"]:
            if name == b"content-length":
                return int(value)
        return 0

    def must_drain(self) -> bool:
        """Whether a body is still coming; closing before it has come would destroy our answer on its way."""
        if self.has_read_all:
            return False
        names = dict(self.scope["headers"])
        return b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"

    async def drain(self) -> None:
        """Read and drop what is still coming, within limits."""
        if any(name == b"expect" for name, _ in self.scope["headers"]):
            return  # it waits for our leave to send
        self.reading_since = self.reading_since or self.loop.time()
        dropped = 0
        while dropped < LINGER_BYTES:
            message = await self.receive()
            if message["type"] == "http.disconnect" or not message["more_body"]:
                break
            dropped += len(message["body"])
        self.reading_since = 0.0

    def is_clogged(self) -> bool:
        """Whether the client reads less than it is sent."""
        connection = self.scope.get(CONNECTION)
        return connection is not None and connection.is_clogged

    def break_off(self) -> None:
        """Close the connection now, so that an unfinished answer cannot pass for a whole one."""
        connection = self.scope.get(CONNECTION)
        if connection is not None:
            connection.break_off()


class Endpoint:
    """The end of a route that is answered piece by piece; as Starlette takes it, an ASGI application.

    Not Starlette's StreamingResponse: cancelled in a write, that leaves what it streams to the garbage collector, and
    a grant with it.
    """

    def __init__(self, act: Callable[[Exchange], Awaitable[None]]) -> None:
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._act(scope[EXCHANGE])
