"""Plain Python over two FIFOs, blocking: bare bytes, and typed messages a line each."""

from __future__ import annotations

import fcntl
import os
from typing import Any

from tests.bench.rivals import Task
from tests.bench.rivals.carrier import Carrier, decode, encode

READ_BYTES = 65536  # a pipe's capacity; the same for everyone here
THERE, BACK = "there", "back"


def set_packets(fd: int, is_on: bool) -> None:
    """Let each read of a pipe give what one write to `fd` wrote: see O_DIRECT in pipe(2)."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if is_on else flags & ~os.O_DIRECT)


class Fifos(Carrier):
    """The two descriptors."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        there, back = (os.path.join(place, name) for name in (THERE, BACK))
        if is_asking:  # each open waits for the other end's: the same order at both
            self.out_fd, self.in_fd = os.open(there, os.O_WRONLY), os.open(back, os.O_RDONLY)
        else:
            self.in_fd, self.out_fd = os.open(there, os.O_RDONLY), os.open(back, os.O_WRONLY)

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        for name in (THERE, BACK):
            os.mkfifo(os.path.join(folder, name), 0o600)
        return folder, folder

    def set_packets(self, is_on: bool) -> None:
        set_packets(self.out_fd, is_on)


class Bytes(Fifos):
    """os.read and os.write, and nothing made of the bytes: the floor in Python."""

    def question(self, task: Task, number: int, text: str) -> Any:
        return number.to_bytes(8) + b"x" * (task.line_bytes - 8)

    def piece(self, task: Task, number: int, text: str) -> Any:
        return b"x" * task.line_bytes

    def answer_to(self, message: Any) -> Any:
        return message

    def is_answer(self, message: Any, asked: Any) -> bool:
        return bool(message == asked)

    def send(self, message: Any) -> None:
        os.write(self.out_fd, message)

    def receive_bytes(self, size: int) -> Any:
        data = os.read(self.in_fd, READ_BYTES)
        if len(data) == size:
            return data
        parts, have = [data], len(data)
        while have < size:
            parts.append(os.read(self.in_fd, READ_BYTES))
            have += len(parts[-1])
        return b"".join(parts)

    def ask(self, task: Task) -> list[int]:
        self.receive = lambda: self.receive_bytes(task.line_bytes)  # type: ignore[method-assign]
        return super().ask(task)

    def answer_round_trips(self, task: Task) -> None:
        for _ in range(task.messages):
            self.send(self.receive_bytes(task.line_bytes))

    def answer_one_way(self, task: Task) -> None:
        left = task.messages * task.line_bytes
        while left > 0:
            left -= len(os.read(self.in_fd, READ_BYTES))
        assert left == 0, f"{-left} bytes too many"
        self.send(self.piece(task, 0, ""))


class Lines(Fifos):
    """The same with a typed message a line: what our endpoint does more, and what that costs."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        super().__init__(place, is_asking=is_asking)
        self._lines = os.fdopen(self.in_fd, "rb", buffering=READ_BYTES)

    def send(self, message: Any) -> None:
        os.write(self.out_fd, encode(message) + b"\n")

    def receive(self) -> Any:
        return decode(self._lines.readline())
