"""What a command is given to read: stdin, or a file that an argument names."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Sequence

from modelpipes.errors import DeadlineError, FileError, MessageError, UsageError
from modelpipes.values.deadline import Deadline


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


def read_messages(words: Sequence[str], limit: Deadline, *, each_line: bool = False) -> list[str]:
    """What to ask, from the arguments or from stdin, read whole; UsageError where it says nothing."""
    if words and list(words) != ["-"]:
        if each_line:
            raise UsageError("--each-line reads its messages from stdin; give no TEXT with it")
        text = " ".join(words)
    else:
        text = read_stdin(limit)
    messages = [line.removesuffix("\r") for line in text.split("\n")] if each_line else [text.removesuffix("\n")]
    messages = [message for message in messages if message.strip()]
    if not messages and not each_line:
        raise UsageError("the message is empty")
    return messages


def read_stdin(limit: Deadline) -> str:
    """All of stdin, as text; MessageError where it is none, DeadlineError where it does not end in time."""
    try:
        return read_stdin_bytes(limit).decode("utf-8")
    except UnicodeDecodeError as e:
        raise MessageError(f"stdin is not UTF-8 text: byte {e.start} cannot be read") from None


def read_stdin_bytes(limit: Deadline) -> bytes:
    """All of stdin; MessageError where it cannot be read, DeadlineError where it does not end in time."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    data = bytearray()
    try:
        while True:
            if not poll.poll(limit.poll_ms()):
                raise DeadlineError("stdin did not end within the time allowed (--max-seconds)")
            try:
                piece = os.read(0, 65536)
            except BlockingIOError:
                continue  # a neighbour who shares it made it so, and was faster
            if not piece:
                return bytes(data)
            data += piece
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
