"""One request to an engine: what a real one answers, and what only a script does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from modelpipes.engine.lifecycle import Engine
from modelpipes.errors import EngineLost
from modelpipes.serving.grant import Address
from modelpipes.serving.upstream import HELD_BYTES, MAX_HEAD_BYTES, ask
from modelpipes.values.deadline import Deadline
from tests.models import scripted_model
from tests.serving.pools import LIMIT_S

Result = TypeVar("Result")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def run(work: Coroutine[Any, Any, Result]) -> Result:
    async def bounded() -> Result:
        async with asyncio.timeout(LIMIT_S):
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


@contextlib.asynccontextmanager
async def scripted(script: Script, path: str = "") -> AsyncIterator[Address]:
    """A server that does what a real engine won't on demand."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await script(reader, writer)
        writer.close()

    if path:
        server = await asyncio.start_unix_server(serve, path)
        address = Address("", 0, "secret", path)
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1], "secret")
    async with server:
        yield address


def saying(*parts: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()

    return script


async def whole(address: Address, body: bytes = b"{}") -> bytes:
    """All of the answer."""
    pieces = []
    async with await ask(address, "/v1/completions", body) as answer:
        while piece := await answer.read():
            pieces.append(piece)
    return b"".join(pieces)


def test_a_real_engine_answers_whole_and_in_a_stream(tmp_path: Path) -> None:
    model = scripted_model(tmp_path / "hello.gguf", "Hello there, my friend.")

    async def both(port: int, key: str) -> tuple[bytes, bytes]:
        address = Address("127.0.0.1", port, key)
        return await whole(address, b'{"prompt":"x"}'), await whole(address, b'{"prompt":"x","stream":true}')

    with Engine(str(model), engine="embedded", engine_args=["--api-key", "k"]) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        port = int(engine.base_url.rpartition(":")[2])
        one, stream = run(both(port, "k"))
        refused, _ = run(both(port, "wrong"))
    assert json.loads(one)["choices"][0]["text"] == "Hello there, my friend."
    assert stream.endswith(b"data: [DONE]\n\n")
    assert b"Invalid API Key" in refused


def test_key_length_and_body_are_sent_and_the_connection_is_for_one_request(tmp_path: Path) -> None:
    body = b'{"prompt":"' + b"x" * 1_000_000 + b'"}'
    came: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readuntil(b"\r\n\r\n"))
        came.append(await reader.readexactly(len(body)))
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async def work() -> bytes:
        async with scripted(script, str(tmp_path / "s")) as address:
            return await whole(address, body)

    assert run(work()) == b"ok"
    assert b"Authorization: Bearer secret\r\n" in came[0]
    assert b"Connection: close\r\n" in came[0]
    assert b"Content-Length: %d\r\n" % len(body) in came[0]
    assert came[1] == body


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "without an answer"),
        ([b"HTTP/1.1 200 OK\r\nContent-"], "without an answer"),
        ([b"220 mail.example.org ready\r\n"], "no HTTP"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], "HTTP 101"),
        ([OK + b"X: " + b"x" * (MAX_HEAD_BYTES + 1)], "endless head"),
        ([OK + b"Content-Length: 100\r\n\r\nshort"], "broke off"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"], "broke off"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nrubbish"], "no HTTP"),
        ([OK + b"\r\nuntil the end"], "broke off"),
    ],
)
def test_an_answer_that_is_not_whole_is_lost(parts: list[bytes], words: str) -> None:
    async def work() -> bytes:
        async with scripted(saying(*parts)) as address:
            return await whole(address)

    with pytest.raises(EngineLost, match=words):
        run(work())


def test_what_came_before_a_loss_is_still_read() -> None:
    async def work() -> bytes:
        async with scripted(saying(OK + b"Content-Length: 100\r\n\r\nshort")) as address:
            answer = await ask(address, "/", b"")
            piece = await answer.read()
            with pytest.raises(EngineLost):
                await answer.read()
            return piece

    assert run(work()) == b"short"


def test_nobody_there_is_lost(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(EngineLost, match="cannot be reached: Connection refused"):
            run(whole(Address("127.0.0.1", unused.getsockname()[1], "")))
    with pytest.raises(EngineLost, match="No such file"):
        run(whole(Address("", 0, "", str(tmp_path / "none"))))


def test_an_engine_waits_for_a_slow_reader_and_all_arrives() -> None:
    size = 64 * HELD_BYTES
    written = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(bytes(HELD_BYTES))
            await writer.drain()
            written += HELD_BYTES

    async def work() -> int:
        async with scripted(script) as address, await ask(address, "/", b"") as answer:
            before = -1
            while written != before:  # until the kernel's buffers and ours are full
                before = written
                await asyncio.sleep(0.05)
            assert written < size
            total = 0
            while piece := await answer.read():
                total += len(piece)
                assert len(piece) <= 3 * HELD_BYTES
            return total

    assert run(work()) == size


def test_closing_ends_the_connection_at_once() -> None:
    gone: asyncio.Event

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    async def work() -> None:
        nonlocal gone
        gone = asyncio.Event()
        async with scripted(script) as address:
            async with await ask(address, "/", b"") as answer:
                assert await answer.read() == b"x"
            await gone.wait()

    run(work())
