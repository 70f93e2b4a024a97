"""What is the same for every rival that sends and receives one message at a time."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import msgspec

from modelpipes.pipe.message import Message, Pong
from tests.bench.rivals import ANSWERING, ASKING, Rival, Task, content, piece, question

# What anybody would write who has typed messages; not our own framing.
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Message).decode


class Carrier(Rival):
    """A rival with a `send` and a `receive` that wait."""

    def send(self, message: Any) -> None:
        raise NotImplementedError

    def receive(self) -> Any:
        raise NotImplementedError

    def set_packets(self, is_on: bool) -> None:
        """Let each read give what one write wrote; only pipes can."""
        raise NotImplementedError

    # -- what is sent: typed, unless a rival carries something else

    def question(self, task: Task, number: int, text: str) -> Any:
        return question(number, text)

    def answer_to(self, message: Any) -> Any:
        return Pong(message.id, ANSWERING, ASKING, message.content)

    def is_answer(self, message: Any, asked: Any) -> bool:
        return bool(message.reply_to == asked.id and message.content == asked.content)

    def piece(self, task: Task, number: int, text: str) -> Any:
        return piece(number, text)

    # -- both ends

    def ask(self, task: Task) -> list[int]:
        text = content(task.content_bytes)
        return self.ask_round_trips(task, text) if task.kind == "round_trip" else self.ask_one_way(task, text)

    def answer(self, task: Task) -> None:
        if task.kind == "round_trip":
            self.answer_round_trips(task)
        else:
            self.answer_one_way(task)

    def ask_round_trips(self, task: Task, text: str) -> list[int]:
        taken_ns = []
        for number in range(task.messages):
            began_ns = perf_counter_ns()
            asked = self.question(task, number, text)
            self.send(asked)
            answer = self.receive()
            taken_ns.append(perf_counter_ns() - began_ns)
            assert self.is_answer(answer, asked), f"{answer} is no answer to {asked}"
        return taken_ns

    def answer_round_trips(self, task: Task) -> None:
        for _ in range(task.messages):
            self.send(self.answer_to(self.receive()))

    def ask_one_way(self, task: Task, text: str) -> list[int]:
        if task.kind == "one_way_single":
            self.set_packets(True)
        began_ns = perf_counter_ns()
        for number in range(task.messages):
            self.send(self.piece(task, number, text))
        self.receive()
        taken_ns = perf_counter_ns() - began_ns
        if task.kind == "one_way_single":
            self.set_packets(False)
        return [taken_ns]

    def answer_one_way(self, task: Task) -> None:
        last = None
        for _ in range(task.messages):
            last = self.receive()
        expected = self.piece(task, task.messages - 1, content(task.content_bytes))
        assert last == expected, f"{last} came last, not {expected}"
        self.send(last)
