"""pyzmq over ipc: a pair of sockets, which frame by length and have a thread of their own for the work."""

from __future__ import annotations

from typing import Any

import zmq

from tests.bench.rivals.carrier import Carrier, decode, encode


class Zmq(Carrier):
    """Two PAIR sockets."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        if is_asking:
            self._socket.bind(place)
        else:
            self._socket.connect(place)

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        return "ipc://zmq", "ipc://zmq"

    def send(self, message: Any) -> None:
        self._socket.send(encode(message))

    def receive(self) -> Any:
        return decode(self._socket.recv())
