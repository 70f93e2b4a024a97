"""A Unix socket with asyncio streams, a message a line."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import Any

from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from tests.bench.rivals import Task, content
from tests.bench.rivals.carrier import Carrier, decode, encode
from tests.bench.rivals.sockets import listen


class Streams(Carrier):
    """The loop runs for a whole task: each message would else pay for its start."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open(place, is_asking))

    async def _open(self, place: Any, is_asking: bool) -> None:
        if is_asking:
            place.setblocking(False)
            connection, _ = await self._loop.sock_accept(place)
            self._reader, self._writer = await asyncio.open_connection(sock=connection, limit=MAX_MESSAGE_BYTES)
        else:
            self._reader, self._writer = await asyncio.open_unix_connection(place, limit=MAX_MESSAGE_BYTES)

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        return listen()

    def ask(self, task: Task) -> list[int]:
        ask = self._ask_round_trips if task.kind == "round_trip" else self._ask_one_way
        return self._loop.run_until_complete(ask(task, content(task.content_bytes)))

    def answer(self, task: Task) -> None:
        answer = self._answer_round_trips if task.kind == "round_trip" else self._answer_one_way
        self._loop.run_until_complete(answer(task))

    async def _send(self, message: Any) -> None:
        self._writer.write(encode(message) + b"\n")
        await self._writer.drain()

    async def _receive(self) -> Any:
        return decode(await self._reader.readline())

    async def _ask_round_trips(self, task: Task, text: str) -> list[int]:
        taken_ns = []
        for number in range(task.messages):
            began_ns = perf_counter_ns()
            asked = self.question(task, number, text)
            await self._send(asked)
            answer = await self._receive()
            taken_ns.append(perf_counter_ns() - began_ns)
            assert self.is_answer(answer, asked), f"{answer} is no answer to {asked}"
        return taken_ns

    async def _answer_round_trips(self, task: Task) -> None:
        for _ in range(task.messages):
            await self._send(self.answer_to(await self._receive()))

    async def _ask_one_way(self, task: Task, text: str) -> list[int]:
        began_ns = perf_counter_ns()
        for number in range(task.messages):
            await self._send(self.piece(task, number, text))
        await self._receive()
        return [perf_counter_ns() - began_ns]

    async def _answer_one_way(self, task: Task) -> None:
        last = None
        for _ in range(task.messages):
            last = await self._receive()
        assert last == self.piece(task, task.messages - 1, content(task.content_bytes))
        await self._send(last)
