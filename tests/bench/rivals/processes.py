"""The design of the Perl ancestor: a process a message, which opens the FIFO, moves one line, and ends.

Perl where there is one, else sh. It has no one-way rate: a line that comes while another process still
has the pipe open is lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from tests.bench.rivals import LIMIT_S, Rival, Task
from tests.bench.rivals.fifos import BACK, THERE

# Each is given the two pipes: send the line on stdin, print the one that comes back; and the reverse of it.
PERL = {
    "ask": f"alarm {LIMIT_S:.0f}; open P, '>', $ARGV[0]; print P <STDIN>; close P;"
    " open P, '<', $ARGV[1]; print scalar <P>",
    "answer": f"alarm {LIMIT_S:.0f}; open P, '<', $ARGV[0]; $line = <P>; close P; open P, '>', $ARGV[1]; print P $line",
}
SHELL = {
    "ask": 'cat >"$1"; IFS= read -r line <"$2"; printf "%s\\n" "$line"',
    "answer": 'IFS= read -r line <"$1"; printf "%s\\n" "$line" >"$2"',
}


def interpreter() -> str | None:
    """What runs a message's process: the path of perl, else of sh; None where there is neither."""
    return shutil.which("perl") or shutil.which("sh")


class Processes(Rival):
    """Starts them, and waits for each."""

    def __init__(self, place: Any, *, is_asking: bool) -> None:
        self._asked, self._answer = os.path.join(place, "asked"), os.path.join(place, "answer")
        pipes = [os.path.join(place, name) for name in (THERE, BACK)]
        program = interpreter()
        assert program
        do = "ask" if is_asking else "answer"
        if os.path.basename(program) == "perl":
            self._argv = [program, "-e", PERL[do], *pipes]
        else:
            self._argv = [program, "-c", SHELL[do], program, *pipes]

    @staticmethod
    def prepare(folder: str) -> tuple[Any, Any]:
        for name in (THERE, BACK):
            os.mkfifo(os.path.join(folder, name), 0o600)
        return folder, folder

    def ask(self, task: Task) -> list[int]:
        taken_ns = []
        for number in range(task.messages):
            line = f"{number} ".encode().ljust(task.line_bytes - 1, b"x") + b"\n"
            Path(self._asked).write_bytes(line)
            began_ns = perf_counter_ns()
            self._run(
                [
                    (os.POSIX_SPAWN_OPEN, 0, self._asked, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, self._answer, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                ]
            )
            taken_ns.append(perf_counter_ns() - began_ns)
            assert Path(self._answer).read_bytes() == line
        return taken_ns

    def answer(self, task: Task) -> None:
        for _ in range(task.messages):
            self._run([])

    def _run(self, actions: Any) -> None:
        pid = os.posix_spawn(self._argv[0], self._argv, os.environ, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"{self._argv} ended with {status}"
