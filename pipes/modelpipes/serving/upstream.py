"""One request to an engine of ours: HTTP/1.1 over loopback or a Unix socket, its answer in pieces as they come."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import cast

import httptools

from modelpipes.errors import EngineLost
from modelpipes.serving.grant import Address

CONNECT_LIMIT_S = 5.0  # loopback answers in 0.1 ms; a longer wait is a full backlog, which a live engine empties
HELD_BYTES = 256 * 1024  # of an answer, for a client that reads slowly; then the engine waits for it
JOINED_BYTES = 64 * 1024  # copying a request of this size costs less than a second call of the kernel
MAX_HEAD_BYTES = 64 * 1024  # llama-server's heads have 300


class Answer(asyncio.Protocol):
    """What an engine answers; `async with` closes the connection, which cancels what is not finished.

    A connection serves one request: llama-server closes it after a stream without a word, a kept one
    occupies one of its few HTTP threads, and a new one costs 0.1 ms.
    """

    def __init__(self, request: list[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.content_type = b""
        self.content_length: int | None = None
        self._request = request
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._head_bytes = 0
        self._is_paused = False
        self._is_whole = False
        self._loss: EngineLost | None = None

    async def read(self) -> bytes:
        """All that has come since, once there is something; empty at the end. Raises EngineLost."""
        while not self._pieces:
            if self._is_whole:
                return b""
            await self._wait()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held_bytes = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return piece

    def close(self) -> None:
        """End the connection now; an answer that is still being made is cancelled by that."""
        if self._transport is not None:
            self._transport.abort()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def wait_for_head(self) -> None:
        """Return once status and headers are known. Raises EngineLost."""
        while not self.status:
            await self._wait()

    async def _wait(self) -> None:
        if self._loss is not None:
            raise self._loss
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_over(self) -> bool:
        return self._is_whole or self._loss is not None

    def _lose(self, text: str) -> None:
        if not self._is_whole and self._loss is None:
            self._loss = EngineLost(text)
        self._wake()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        for part in self._request:
            self._transport.write(part)
        self._request = []

    def data_received(self, data: bytes) -> None:
        if self._is_over():
            return  # nothing follows an answer that was to be the last
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lose("the engine answers something that is no HTTP")
        if not self.status and self._head_bytes > MAX_HEAD_BYTES:
            self._lose("the engine's answer has an endless head")
        if self._is_over():
            self.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.status:
            self._lose("the engine broke off in the middle of its answer")
        else:
            self._lose("the engine closed the connection without an answer")

    # -- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value
        elif name == b"content-length":
            self.content_length = int(value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self._lose(f"the engine answers HTTP {self.status}, which nobody asked for")

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held_bytes += len(body)
        if self._held_bytes > HELD_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._is_whole = self._loss is None


async def ask(address: Address, path: str, body: bytes) -> Answer:
    """Send a POST with a JSON body; the answer once its head has come, to be closed. Raises EngineLost."""
    loop = asyncio.get_running_loop()
    head = _make_head(address, path, len(body))
    request = [head + body] if len(body) <= JOINED_BYTES else [head, body]
    answer = Answer(request, loop)
    try:
        # No socket of ours is handed to the loop: where that failed, both closed it, the later one another's.
        async with asyncio.timeout(CONNECT_LIMIT_S):
            if address.path:
                await loop.create_unix_connection(lambda: answer, address.path)
            else:
                await loop.create_connection(lambda: answer, address.host, address.port)
        await answer.wait_for_head()
    except OSError as error:
        answer.close()
        word = os.strerror(error.errno) if error.errno else str(error) or "it accepts no connection"
        raise EngineLost(f"the engine cannot be reached: {word}") from None
    except BaseException:
        answer.close()
        raise
    return answer


def _make_head(address: Address, path: str, length: int) -> bytes:
    host = "localhost" if address.path else f"{address.host}:{address.port}"
    key = f"Authorization: Bearer {address.key}\r\n" if address.key else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{key}Connection: close\r\n\r\n"
    ).encode()
