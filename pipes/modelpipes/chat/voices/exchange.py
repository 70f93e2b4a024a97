"""One message to a program and its answer, both at once; and how a program ended."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

from modelpipes.chat.voices import Work
from modelpipes.child import Child
from modelpipes.errors import DeadlineError
from modelpipes.values.deadline import Deadline

READ_BYTES = 65536  # a pipe's capacity
LAST_READ_BYTES = 1024 * 1024  # the most that a pipe's capacity can be set to: all that a dead program left
BREAK_OFF_S = 0.03  # between TERM and KILL for a program whose answer nobody wants any more
LIFE_S = 1.0  # a program that runs shows life this often, whether it speaks or not
HISTORY_BYTES = 65536  # a program gets the words of the last turn alone; older ones are not worth keeping


def fate(child: Child, code: int) -> str:
    """How a program ended, and its last words."""
    how = f"ended with {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name if -code in list(signal.Signals) else f'signal {-code}'}"
    said = [line for line in child.last_lines() if line.strip()]
    return f"{child.name} {how}: {said[-1] if said else 'it said nothing'}"


class Exchange:
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

    def __enter__(self) -> Exchange:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._work.when_cancelled(lambda: os.eventfd_write(self._wake, 1))
        return self

    def __exit__(self, *_: object) -> None:
        self._work.when_cancelled(None)
        os.close(self._wake)

    def _poll(self) -> Iterator[bytes]:
        child, poll = self._child, select.poll()
        ends = (child.stdin_fd, select.POLLOUT), (child.stdout_fd, select.POLLIN), (child.pidfd, select.POLLIN)
        if min(fd for fd, _ in ends) < 0:
            return  # ended by the voice's end, before this began
        for fd, events in (*ends, (self._wake, select.POLLIN)):
            poll.register(fd, events)
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
