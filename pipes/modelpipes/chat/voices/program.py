"""Any program as a voice: started for each message, or kept running as a filter of lines."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import shlex
from collections.abc import Iterator

from modelpipes.chat.voices import Finish, Work
from modelpipes.child import Child
from modelpipes.deadline import Deadline
from modelpipes.errors import DeadlineError, ProgramError, UsageError

READ_BYTES = 65536  # a pipe's capacity
BREAK_OFF_S = 0.03  # between TERM and KILL for a program whose answer nobody wants any more
LIFE_S = 1.0  # a program that runs shows life this often, whether it speaks or not
HISTORY_BYTES = 65536  # a program gets the words of the last turn alone; older ones are not worth keeping


def split_command(command: str) -> list[str]:
    """The words of a command, as a shell would split them; no shell runs. UsageError where it cannot."""
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"cannot read the command '{command}': {e}") from None
    if not words:
        raise UsageError("the command is empty")
    return words


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
        _require_program(self._argv[0])

    def answer(self, work: Work) -> Finish:
        asked = (work.turns[-1].content + "\n").encode("utf-8", "replace")
        with Child(self._argv, name=self._argv[0], pipe_stdin=True, pipe_stdout=True, log=self._log) as child:
            words = _Words(work)
            for piece in _Exchange(child, asked, work, self._silence_s, closes_stdin=True).pieces():
                words.feed(piece)
            if work.is_cancelled:
                child.stop(term_s=BREAK_OFF_S)
                return Finish()
            code = child.wait(Deadline.after(LIFE_S))
            if code != 0:
                raise ProgramError(_fate(child, code))
        return Finish()

    def death_fd(self) -> int:
        return -1

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        pass

    def close(self) -> None:
        pass


class FilterVoice:
    """Keeps one program running: a line in, a line out."""

    parallel = 1
    history_bytes = HISTORY_BYTES

    def __init__(self, command: str, *, silence_s: float | None = None, log: str | None = None):
        self.kind = f"filter {command}"
        self._silence_s = silence_s
        self._argv = split_command(command)
        self._log = log
        self._child: Child | None = None
        self._rest = b""  # of its output, beyond the line that answered

    def prepare(self, deadline: Deadline) -> None:
        _require_program(self._argv[0])
        self._child = self._start()

    def _start(self) -> Child:
        self._rest = b""
        return Child(self._argv, name=self._argv[0], pipe_stdin=True, pipe_stdout=True, log=self._log)

    def answer(self, work: Work) -> Finish:
        if self._child is None:
            self._child = self._start()  # the last answer was broken off, and the program with it
        child = self._child
        asked = " ".join(work.turns[-1].content.splitlines()).encode("utf-8", "replace") + b"\n"
        line, self._rest = self._rest, b""
        for piece in _Exchange(child, asked, work, self._silence_s).pieces():
            line += piece
            if b"\n" in piece:
                break
        if work.is_cancelled:
            self._end()  # a line that is still to come would answer the next message
            return Finish()
        if b"\n" not in line:
            with contextlib.suppress(DeadlineError):
                raise ProgramError(_fate(child, child.wait(Deadline.after(LIFE_S))))
            raise ProgramError(f"{self._argv[0]} closed its output")
        answer, _, self._rest = line.partition(b"\n")
        work.emit(answer.decode("utf-8", "replace").removesuffix("\r"))
        return Finish()

    def _end(self) -> None:
        child, self._child = self._child, None  # from here on its death is our own doing
        if child:
            child.stop(term_s=BREAK_OFF_S)

    def death_fd(self) -> int:
        return -1  # `tend` looks: a program whose answer is broken off is ended, and another one started

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        child = self._child
        if child and (code := child.exit_code()) is not None and child is self._child:
            raise ProgramError(_fate(child, code))

    def close(self) -> None:
        self._end()


def _fate(child: Child, code: int) -> str:
    """How a program ended, and its last words."""
    fate = f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
    return f"{child.name} {fate}: {(child.last_lines(1) or ['it said nothing'])[0]}"


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


def _require_program(program: str) -> None:
    import shutil

    if not shutil.which(program):
        raise ProgramError(f"{program}: no such program on PATH")


class _Exchange:
    """One message in, its answer out, both at once, until the answer ends, is broken off or fails."""

    def __init__(
        self, child: Child, asked: bytes, work: Work, silence_s: float | None, *, closes_stdin: bool = False
    ) -> None:
        self._child = child
        self._closes_stdin = closes_stdin
        self._work = work
        self._unsent = memoryview(asked)
        self._silence_s = silence_s

    def pieces(self) -> Iterator[bytes]:
        """What the program writes, until it closes its output, ends, or the work is cancelled."""
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._work.when_cancelled(lambda: os.eventfd_write(wake, 1))
        try:
            yield from self._poll(wake)
        finally:
            self._work.when_cancelled(None)
            os.close(wake)

    def _poll(self, wake: int) -> Iterator[bytes]:
        child, poll = self._child, select.poll()
        poll.register(child.stdin_fd, select.POLLOUT)
        for fd in (child.stdout_fd, child.pidfd, wake):
            poll.register(fd, select.POLLIN)
        quiet = Deadline.after(self._silence_s)
        while not self._work.is_cancelled:
            ready = dict(poll.poll(quiet.earlier(Deadline.after(LIFE_S)).poll_ms()))
            self._work.show_life("thinking")
            if child.stdin_fd in ready and not self._write():
                poll.unregister(child.stdin_fd)
                if self._closes_stdin:
                    child.close_stdin()
            if child.stdout_fd in ready or child.pidfd in ready:
                data = self._read()
                if data:
                    quiet = Deadline.after(self._silence_s)
                    yield data
                elif data == b"" or child.pidfd in ready:
                    return  # its end; what it started may hold the output open for ever
            if quiet.has_passed():
                raise DeadlineError(
                    f"{child.name} wrote nothing for {self._silence_s:g} s; if it answers line by line, "
                    "make it flush each line (stdbuf -oL)"
                )

    def _write(self) -> bool:
        """Write what fits; False when all is written, or the program reads no more."""
        try:
            self._unsent = self._unsent[os.write(self._child.stdin_fd, self._unsent) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # a program may answer without reading its input
        return bool(self._unsent)

    def _read(self) -> bytes | None:
        """What is there; empty at the end, None where nothing is there yet."""
        try:
            return os.read(self._child.stdout_fd, READ_BYTES)
        except BlockingIOError:
            return None
