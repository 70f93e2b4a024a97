"""What a command is given to read: stdin, or a file that an argument names."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Sequence

from modelpipes.errors import DeadlineError, FileError, MessageError, UsageError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.pipe.sidebyside import Unfit
from modelpipes.values.deadline import Deadline

SHOWN_BYTES = 200  # of a line that is too long


def read_text(value: str) -> str:
    """The text itself, or what the file says that `@FILE` names."""
    if not value.startswith("@"):
        return value
    try:
        with open(os.path.expanduser(value[1:]), encoding="utf-8") as file:
            return file.read().strip()
    except OSError as e:
        raise UsageError(f"{value[1:]}: cannot be read: {(e.strerror or str(e)).lower()}") from None
    except ValueError as e:  # no UTF-8, or no file's name
        raise UsageError(f"{value[1:]}: cannot be read: {e}") from None


def read_message(words: Sequence[str], limit: Deadline) -> str:
    """What to ask, from the arguments or from stdin, read whole; UsageError where it says nothing."""
    message = " ".join(words) if words and list(words) != ["-"] else read_stdin(limit).removesuffix("\n")
    if not message.strip():
        raise UsageError("the message is empty")
    return message


class Lines:
    """The lines of stdin, as they come; `Unfit` where one is no text, or longer than can travel."""

    fd = 0

    def __init__(self, limit: Deadline) -> None:
        self.is_over = False
        self._limit = limit
        self._begun = bytearray()  # of a line, as far as it can travel and one byte more

    def take(self, *, waits: bool) -> list[str | Unfit]:
        """The lines that have come whole; with `waits`, once one has, or the input has ended.

        DeadlineError where that takes longer than allowed, MessageError where stdin cannot be read.
        """
        while True:
            lines = self._read()
            if lines or self.is_over or not waits:
                return lines

    def _read(self) -> list[str | Unfit]:
        data = _read_some(self._limit)
        self.is_over = not data
        *ends, rest = data.split(b"\n")
        whole = []
        for end in ends:
            self._keep(end)
            whole.append(_line(self._begun))
            self._begun = bytearray()
        self._keep(rest)
        if self.is_over and self._begun:
            whole.append(_line(self._begun))
        return whole

    def _keep(self, part: bytes) -> None:
        self._begun += part[: MAX_MESSAGE_BYTES + 1 - len(self._begun)]


def _line(line: bytearray) -> str | Unfit:
    if len(line) > MAX_MESSAGE_BYTES:
        shown = line[:SHOWN_BYTES].decode("utf-8", "ignore") + "…"
        return Unfit(shown, f"it is longer than the {MAX_MESSAGE_BYTES} bytes that can travel", "too-large")
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as e:
        shown = line.decode("utf-8", "replace")
        return Unfit(shown, f"it is not UTF-8 text: its byte {e.start} cannot be read", "malformed")


def read_stdin(limit: Deadline) -> str:
    """All of stdin, as text; MessageError where it is none, DeadlineError where it does not end in time."""
    try:
        return read_stdin_bytes(limit).decode("utf-8")
    except UnicodeDecodeError as e:
        raise MessageError(f"stdin is not UTF-8 text: byte {e.start} cannot be read") from None


def read_stdin_bytes(limit: Deadline) -> bytes:
    """All of stdin; MessageError where it cannot be read, DeadlineError where it does not end in time."""
    data = bytearray()
    while piece := _read_some(limit):
        data += piece
    return bytes(data)


def _read_some(limit: Deadline) -> bytes:
    """What comes next on stdin; empty at its end."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    try:
        while True:
            if not poll.poll(limit.poll_ms()):
                raise DeadlineError("stdin did not end within the time allowed (--max-seconds)")
            try:
                return os.read(0, 65536)
            except BlockingIOError:
                continue  # a neighbour who shares it made it so, and was faster
    except OSError as e:
        raise MessageError(f"stdin cannot be read: {(e.strerror or str(e)).lower()}") from None


def read_transcript(path: str) -> bytes:
    """All of a transcript's file; FileError where it is no regular file, or cannot be read."""
    try:
        # O_NONBLOCK: where a FIFO lies in place of a file, the open must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as e:
        raise FileError(f"{path}: cannot open the transcript: {getattr(e, 'strerror', None) or e}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileError(f"{path}: a transcript must be a regular file; give - to read stdin")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as e:
        raise FileError(f"{path}: cannot read the transcript: {e.strerror}") from None
    finally:
        os.close(descriptor)
