"""Any program as a voice, started for each message."""

from __future__ import annotations

import codecs
import os

from modelpipes.chat.voices import Finish, Work
from modelpipes.chat.voices.command import require_program, split_command
from modelpipes.chat.voices.exchange import BREAK_OFF_S, HISTORY_BYTES, Exchange, fate
from modelpipes.child import Child, open_log
from modelpipes.errors import ProgramError
from modelpipes.values.deadline import Deadline


class ExecVoice:
    """Runs a program a message: the message on its stdin, the answer on its stdout."""

    history_bytes = HISTORY_BYTES

    def __init__(self, command: str, *, parallel: int = 1, silence_s: float | None = None, log: str | None = None):
        self.kind = f"exec {command}"
        self.parallel = parallel
        self._silence_s = silence_s
        self._argv = split_command(command)
        self._log = log

    def prepare(self, deadline: Deadline) -> None:
        """Check that the program is there: a member that could never answer takes no seat."""
        require_program(self._argv[0])
        if self._log:
            os.close(open_log(self._log))  # said now, not at the first message

    def answer(self, work: Work) -> Finish:
        asked = (work.turns[-1].content + "\n").encode("utf-8", "replace")
        with Child(self._argv, name=self._argv[0], pipe_stdin=True, pipe_stdout=True, log=self._log) as child:
            words = _Words(work)
            with Exchange(child, asked, work, self._silence_s, is_whole=True) as exchange:
                for piece in exchange:
                    words.feed(piece)
            if work.is_cancelled:
                child.stop(term_s=BREAK_OFF_S)
                return Finish()
            words.end()
            if code := child.exit_code():
                raise ProgramError(fate(child, code))
        return Finish()

    def about(self) -> None:
        return None

    def death_fd(self) -> int:
        return -1

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Words:
    """Bytes of a program to words: decoded across reads, the newlines at the very end left out."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._newlines = ""

    def feed(self, data: bytes) -> None:
        text = self._newlines + self._decoder.decode(data)
        words = text.rstrip("\n")
        self._newlines = text[len(words) :]
        self._work.emit(words)

    def end(self) -> None:
        """Half a character at the very end is one that cannot be read."""
        if cut_off := self._decoder.decode(b"", final=True):
            self._work.emit(self._newlines + cut_off)
