"""The person at the terminal as a voice: a line typed is an answer."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from modelpipes import output
from modelpipes.chat.voices import Finish, Work
from modelpipes.deadline import Deadline
from modelpipes.errors import ProgramError

LIFE_S = 0.5  # a person thinks for as long as they like; their peers are told so
STDIN = 0


class TerminalVoice:
    """Asks the person whose terminal this is; they have no time limit."""

    kind = "the terminal"
    parallel = 1
    history_bytes = 65536  # a person remembers; only the last turn is needed

    def __init__(self, name: str, *, leave: Callable[[], None]) -> None:
        """`leave` is called when the person ends the input (Ctrl-D)."""
        self._name = name
        self._leave = leave
        self._typed = b""  # beyond the line that answered

    def prepare(self, deadline: Deadline) -> None:
        pass

    def answer(self, work: Work) -> Finish:
        output.prompt(f"{self._name}> ")
        line = self._typed
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        while b"\n" not in line and not work.is_cancelled:
            work.show_life("thinking")
            if not poll.poll(int(LIFE_S * 1000)):
                continue
            data = os.read(STDIN, 65536)
            if not data and not line:
                self._leave()
                raise ProgramError(f"{self._name} has left (end of input)")
            line += data or b"\n"
        answer, _, self._typed = line.partition(b"\n")
        work.emit(answer.decode("utf-8", "replace").removesuffix("\r"))
        return Finish()

    def death_fd(self) -> int:
        return -1

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        pass

    def close(self) -> None:
        pass
