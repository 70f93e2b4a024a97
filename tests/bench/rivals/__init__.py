"""Ways to carry messages between two processes, each measured in the same manner.

    python -m tests.bench.rivals.pair NAME FOLDER CPU      (CPU -1: anywhere)

starts the process that asks, which starts the one that answers. It says `ready`; then each line on its
stdin is a task, KIND CONTENT_BYTES LINE_BYTES MESSAGES, and is answered with one line of nanoseconds:

- round_trip: MESSAGES questions, each answered; the time of each.
- one_way: MESSAGES messages, then one back from who has read them all; the time of all of it.
- one_way_single: the same where each read gives one message, by the kernel's packet mode for pipes.

`fifo.c` speaks the same.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import msgspec

from modelpipes.pipe.framing import encode
from modelpipes.pipe.message import Delta, Message, Ping

ASKING, ANSWERING = "hub", "peer"
LIMIT_S = 30.0  # for anything here; whoever waits longer has been left
_PROSE = "A pipe is a small thing that does one job well, and says nothing of it.\n"

# name: (module, class)
IN_PYTHON = {
    "ping": ("endpoint", "Pinged"),
    "say": ("endpoint", "Told"),
    "bytes": ("fifos", "Bytes"),
    "typed": ("fifos", "Lines"),
    "multiprocessing": ("sockets", "Connection"),
    "socket": ("sockets", "Socket"),
    "asyncio": ("streams", "Streams"),
    "zmq": ("zeromq", "Zmq"),
    "processes": ("processes", "Processes"),
}


class Task(NamedTuple):
    """What both processes are to do next."""

    kind: str
    content_bytes: int
    line_bytes: int  # encoded, the line's end included: what those carry who do not encode
    messages: int

    @classmethod
    def make(cls, kind: str, content_bytes: int, messages: int) -> Task:
        make = question if kind == "round_trip" else piece
        return cls(kind, content_bytes, len(encode(make(0, content(content_bytes)))), messages)

    @classmethod
    def parse(cls, line: str) -> Task:
        kind, *numbers = line.split()
        return cls(kind, *map(int, numbers))

    def line(self) -> str:
        return " ".join(map(str, self))


class Rival:
    """One end of a way to carry messages; `ask` and `answer` run at its two ends at the same time."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        """Open this end of what `prepare` gave."""

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        """What the asking and the answering end are to open; the folder is the working directory of both."""
        return folder, folder

    def ask(self, task: Task) -> list[int]:
        """Do this end's part; nanoseconds."""
        raise NotImplementedError

    def answer(self, task: Task) -> None:
        """Do the other end's part."""
        raise NotImplementedError


def load(name: str) -> type[Rival]:
    module, rival = IN_PYTHON[name]
    found: type[Rival] = getattr(importlib.import_module(f"{__name__}.{module}"), rival)
    return found


def content(size: int) -> str:
    """So many characters of what a model may say: words, and here and there the end of a line."""
    return (_PROSE * (size // len(_PROSE) + 1))[:size]


def question(number: int, text: str) -> Message:
    return Ping(f"{number:032x}", ASKING, ANSWERING, msgspec.Raw(msgspec.json.encode(text)))


def piece(number: int, text: str) -> Message:
    """One of the messages of a stream; as in an answer they all name the same question."""
    return Delta(f"{0:032x}", ASKING, ANSWERING, text)
