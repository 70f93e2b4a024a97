"""Ours: two endpoints, as anybody uses them."""

from __future__ import annotations

import os
from typing import Any

from modelpipes.pipe.endpoint import Arrival, Endpoint
from modelpipes.pipe.message import Bye, Reply, Say
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline
from tests.bench.rivals import ANSWERING, ASKING, LIMIT_S, Task
from tests.bench.rivals.carrier import Carrier
from tests.bench.rivals.fifos import set_packets


class Pinged(Carrier):
    """A ping, which the other endpoint answers by itself."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        self.seat, self.other = (ASKING, ANSWERING) if is_asking else (ANSWERING, ASKING)
        self.endpoint = Endpoint(Room(place), self.seat)
        self.endpoint.listen(self.other)
        self.renew_deadline()
        self.endpoint.connect(self.other, self.deadline)

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        room = Room.make(os.path.join(folder, "room"))
        room.make_pipes([(ASKING, ANSWERING), (ANSWERING, ASKING)])
        return room.path, room.path

    def renew_deadline(self) -> None:
        self.deadline = Deadline.after(LIMIT_S)

    def question(self, task: Task, number: int, text: str) -> Any:
        self.renew_deadline()  # one an exchange, handed down; a flood has one as a whole
        return super().question(task, number, text)

    def send(self, message: Any) -> None:
        self.endpoint.send(self.other, message, self.deadline)

    def receive(self) -> Any:
        event = self.endpoint.receive(self.deadline)
        assert isinstance(event, Arrival), f"{event} instead of a message"
        return event.item

    def set_packets(self, is_on: bool) -> None:
        path = self.endpoint.room.pipe(self.seat, self.other)
        set_packets(_write_end(path), is_on)

    def ask_one_way(self, task: Task, text: str) -> list[int]:
        self.renew_deadline()
        return super().ask_one_way(task, text)

    def answer(self, task: Task) -> None:
        self.renew_deadline()
        super().answer(task)

    def ask_round_trips(self, task: Task, text: str) -> list[int]:
        taken_ns = super().ask_round_trips(task, text)
        self.send(Bye(self.seat, self.other))
        return taken_ns

    def answer_round_trips(self, task: Task) -> None:
        assert isinstance(self.receive(), Bye)  # pings never come out of an endpoint


class Told(Pinged):
    """A `say`, which the other process takes from its endpoint, and answers with a `reply`."""

    def question(self, task: Task, number: int, text: str) -> Any:
        self.renew_deadline()
        return Say(f"{number:032x}", self.seat, self.other, text)

    def answer_to(self, message: Any) -> Any:
        return Reply(message.id, message.id, self.seat, self.other, message.content, "end")

    def answer_round_trips(self, task: Task) -> None:
        for _ in range(task.messages):
            self.send(self.answer_to(self.receive()))
        assert isinstance(self.receive(), Bye)


def _write_end(path: str) -> int:
    """Our one descriptor of a pipe that leads away from us, however the endpoint keeps it."""
    there = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), there):
                return int(name)
        except OSError:  # the descriptor that listed them
            continue
    raise AssertionError(f"{path} is not open")
