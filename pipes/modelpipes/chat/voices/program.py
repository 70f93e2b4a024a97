"""Any program as a voice: started for each message, or kept running as a filter of lines."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import shlex
import signal
from collections.abc import Iterator

from modelpipes.chat.voices import Finish, Work
from modelpipes.child import Child, open_log
from modelpipes.errors import DeadlineError, MessageError, ProgramError, UsageError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.values.deadline import Deadline

READ_BYTES = 65536  # a pipe's capacity
LAST_READ_BYTES = 1024 * 1024  # the most that a pipe's capacity can be set to: all that a dead program left
BREAK_OFF_S = 0.03  # between TERM and KILL for a program whose answer nobody wants any more
DYING_S = 0.05  # between the end of a dying program's output and its own
LIFE_S = 1.0  # a program that runs shows life this often, whether it speaks or not
HISTORY_BYTES = 65536  # a program gets the words of the last turn alone; older ones are not worth keeping

_NEWLINE = re.compile(r"\r\n|\r|\n")


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
        if self._log:
            os.close(open_log(self._log))  # said now, not at the first message

    def answer(self, work: Work) -> Finish:
        asked = (work.turns[-1].content + "\n").encode("utf-8", "replace")
        with Child(self._argv, name=self._argv[0], pipe_stdin=True, pipe_stdout=True, log=self._log) as child:
            words = _Words(work)
            with _Exchange(child, asked, work, self._silence_s, is_whole=True) as exchange:
                for piece in exchange:
                    words.feed(piece)
            if work.is_cancelled:
                child.stop(term_s=BREAK_OFF_S)
                return Finish()
            words.end()
            if code := child.exit_code():
                raise ProgramError(_fate(child, code))
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
        asked = _NEWLINE.sub(" ", work.turns[-1].content.rstrip("\r\n")).encode("utf-8", "replace") + b"\n"
        try:
            line = self._exchange(self._child, asked, work)
        except (DeadlineError, MessageError):
            self._end()  # what is still to come would answer the next message
            raise
        if work.is_cancelled:
            self._end()  # as above
            return Finish()
        if b"\n" not in line:
            raise ProgramError(self._why_it_ended(self._child))
        answer, _, self._rest = line.partition(b"\n")
        work.emit(answer.decode("utf-8", "replace").removesuffix("\r"))
        return Finish()

    def _exchange(self, child: Child, asked: bytes, work: Work) -> bytes:
        """The answer, to its newline at least: what lies beyond answers the next message."""
        line, self._rest = bytearray(self._rest), b""
        with _Exchange(child, asked, work, self._silence_s) as exchange:
            for piece in exchange:
                line += piece
                if b"\n" in piece:
                    break
                if len(line) > MAX_MESSAGE_BYTES:
                    raise MessageError(f"{child.name} wrote more than {MAX_MESSAGE_BYTES} bytes without a newline")
        return bytes(line)

    def _why_it_ended(self, child: Child) -> str:
        with contextlib.suppress(DeadlineError):
            return _fate(child, child.wait(Deadline.after(DYING_S)))
        self._end()  # it lives on, and never answers again
        return f"{child.name} closed its output"

    def _end(self) -> None:
        child, self._child = self._child, None  # from here on its death is our own doing
        if child:
            child.stop(term_s=BREAK_OFF_S)

    def about(self) -> None:
        return None

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
    fate = f"ended with {code}"
    if code < 0:
        fate = f"was killed by {signal.Signals(-code).name if -code in list(signal.Signals) else f'signal {-code}'}"
    said = [line for line in child.last_lines() if line.strip()]
    return f"{child.name} {fate}: {said[-1] if said else 'it said nothing'}"


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


def _require_program(program: str) -> None:
    import shutil

    if not shutil.which(program):
        raise ProgramError(f"{program or 'the empty name'}: no such program on PATH")


class _Exchange:
    """One message in, its answer out, both at once: the pieces that a program writes, until it ends, closes its
    output, or the work is cancelled.

    A `whole` answer ends with the program, for which its input then ends with the message.
    """

    def __init__(
        self, child: Child, asked: bytes, work: Work, silence_s: float | None, *, is_whole: bool = False
    ) -> None:
        self._child = child
        self._is_whole = is_whole
        self._work = work
        self._unsent = memoryview(asked)
        self._silence_s = silence_s

    def __iter__(self) -> Iterator[bytes]:
        return self._poll()  # not kept: it and we would know each other, and stay until Python looks for cycles

    def __enter__(self) -> _Exchange:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._work.when_cancelled(lambda: os.eventfd_write(self._wake, 1))
        return self

    def __exit__(self, *_: object) -> None:
        self._work.when_cancelled(None)
        os.close(self._wake)

    def _poll(self) -> Iterator[bytes]:
        child, poll = self._child, select.poll()
        poll.register(child.stdin_fd, select.POLLOUT)
        for fd in (child.stdout_fd, child.pidfd, self._wake):
            poll.register(fd, select.POLLIN)
        quiet = Deadline.after(self._silence_s)
        while not self._work.is_cancelled:
            ready = dict(poll.poll(quiet.earlier(Deadline.after(LIFE_S)).poll_ms()))
            self._work.show_life("thinking")
            if child.stdin_fd in ready and not self._write():
                poll.unregister(child.stdin_fd)
                if self._is_whole:
                    child.close_stdin()
            if child.pidfd in ready:
                # All at once: what it started may hold the output open, and fill it, for ever.
                if data := self._read(LAST_READ_BYTES):
                    yield data
                return
            if child.stdout_fd in ready:
                data = self._read(READ_BYTES)
                if data:
                    quiet = Deadline.after(self._silence_s)
                    yield data
                elif data == b"":
                    if not self._is_whole:
                        return
                    poll.unregister(child.stdout_fd)  # it says no more, but how it ends is still to come
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

    def _read(self, size_bytes: int) -> bytes | None:
        """What is there; empty at the end, None where nothing is there yet."""
        try:
            return os.read(self._child.stdout_fd, size_bytes)
        except BlockingIOError:
            return None
