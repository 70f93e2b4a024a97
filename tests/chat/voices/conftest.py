"""A voice without a member: what it is told, and what it emits."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from modelpipes.chat.voices import Finish, Voice, Work
from modelpipes.errors import PipesError
from modelpipes.pipe.message import Heard, Say
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S


class Asked:
    """One message in work, in a thread of its own as in a member."""

    def __init__(self, voice: Voice, turns: Sequence[Heard] | str, say: Say | None = None) -> None:
        self.emitted = threading.Event()
        self.deltas: list[tuple[str, str]] = []
        self.anew = 0  # how often it began anew
        self.finish: Finish | None = None
        self.error: PipesError | None = None
        heard = [Heard(0, "hub", turns)] if isinstance(turns, str) else turns
        self.work = Work(say or Say("1", "hub", "bob"), heard, self._note)
        self._voice = voice
        self.thread = threading.Thread(target=self._answer)
        self.thread.start()

    def _note(self, work: Work, content: str, thinking: str, anew: bool) -> None:
        self.deltas.append((content, thinking))
        self.anew += anew
        self.emitted.set()

    def _answer(self) -> None:
        try:
            self.finish = self._voice.answer(self.work)
        except PipesError as error:
            self.error = error

    def await_words(self) -> None:
        assert self.emitted.wait(LIMIT_S), "the voice says nothing"

    def join(self) -> Asked:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive(), "the answer does not end"
        return self

    def cancel(self) -> None:
        """Cancel it, and return when the answer has ended."""
        self.work.cancel()
        self.join()

    @property
    def content(self) -> str:
        """The whole answer; the error, where there is none."""
        self.join()
        if self.error:
            raise self.error
        return "".join(self.work.content)

    @property
    def thinking(self) -> str:
        self.join()
        return "".join(self.work.thinking)


def prepared(voice: Voice) -> Voice:
    voice.prepare(Deadline.after(LIMIT_S))
    return voice


def python(script: str) -> str:
    return shlex.join([sys.executable, "-S", "-c", script])


def sh(script: str) -> str:
    return shlex.join(["/bin/sh", "-c", script])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    """Where a program of a test writes its pids, a line each."""
    yield tmp_path / "pids"
