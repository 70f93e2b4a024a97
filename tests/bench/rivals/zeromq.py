"""pyzmq over ipc: a pair of sockets, which frame by length and have a thread of their own for the work."""

from __future__ import annotations

import os
from typing import Any

import zmq

from tests.bench.rivals.carrier import Carrier, decode, encode


class Zmq(Carrier):
    """Two PAIR sockets."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        self._socket = zmq.Context.instance().socket(zmq.PAIR)
        if is_asking:
            self._socket.bind(place)
        else:
            self._socket.connect(place)

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        address = f"ipc://{os.path.join(folder, 'zmq')}"
        return address, address

    def send(self, message: Any) -> None:
        self._socket.send(encode(message))

    def receive(self) -> Any:
        return decode(self._socket.recv())
