"""A process of the bench that is told lines and answers in lines; it is gone when we are."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from modelpipes.child import READ_BYTES, Child
from modelpipes.errors import ProgramError
from modelpipes.values.deadline import Deadline
from tests.bench.results import ROOT


class Talker:
    """`with` ends it, and all that it started."""

    def __init__(self, argv: Sequence[str], name: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._name = name
        self._child = Child(argv, name=name, env=env, pipe_stdin=True, pipe_stdout=True)
        self.pid = self._child.pid
        self._heard = bytearray()

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop(self._child.close_stdin)

    def tell(self, line: str) -> None:
        """Give it a line, which is short enough to fit into its pipe."""
        try:
            os.write(self._child.stdin_fd, f"{line}\n".encode())
        except BrokenPipeError:
            raise self._died() from None

    def hear(self, deadline: Deadline) -> str:
        """The next line that it says; ProgramError where it died, DeadlineError."""
        looked = 0
        while (end := self._heard.find(b"\n", looked)) < 0:
            looked = len(self._heard)
            data = self._read(deadline)
            if not data:
                raise self._died()
            self._heard += data
        line = self._heard[:end].decode()
        del self._heard[: end + 1]
        return line

    def _read(self, deadline: Deadline) -> bytes:
        poll = select.poll()
        poll.register(self._child.stdout_fd, select.POLLIN)
        while not poll.poll(deadline.poll_ms()):
            deadline.check(f"answer of {self._name}")
        return os.read(self._child.stdout_fd, READ_BYTES)

    def _died(self) -> ProgramError:
        return ProgramError(f"{self._name} ended: {' | '.join(self._child.last_lines(5))}")
