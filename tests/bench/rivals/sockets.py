"""What others use between two processes: multiprocessing.Pipe, and a Unix socket with blocking calls."""

from __future__ import annotations

import multiprocessing
import socket
from typing import Any

from tests.bench.rivals.carrier import Carrier, decode, encode
from tests.bench.rivals.fifos import READ_BYTES


class Connection(Carrier):
    """multiprocessing.Pipe, which frames by length."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        self._connection = place

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        return multiprocessing.get_context("spawn").Pipe()

    def send(self, message: Any) -> None:
        self._connection.send_bytes(encode(message))

    def receive(self) -> Any:
        return decode(self._connection.recv_bytes())


def listen() -> tuple[Any, Any]:
    """A listening Unix socket in the working directory for the end that asks, and its name."""
    name = "socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(1)
    return listener, name


class Socket(Carrier):
    """A Unix stream socket, a message a line."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        if is_asking:
            self._socket, _ = place.accept()
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(place)
        self._lines = self._socket.makefile("rb", buffering=READ_BYTES)

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        return listen()

    def send(self, message: Any) -> None:
        self._socket.sendall(encode(message) + b"\n")

    def receive(self) -> Any:
        return decode(self._lines.readline())
