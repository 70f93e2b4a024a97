"""What a command did, a line for each thing done: when, which seat, what, which message, how large, how long.

    2026-12-01T05:17:22.150Z bob answered id=6f1c to=hub bytes=9 ms=27.4 stop=end

Never the words, unless they are wanted. Several processes may write to one file: a line is one write of at most
PIPE_BUF bytes at the file's end, which the kernel cuts in two neither there nor in a pipe (write(2), pipe(7)).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from modelpipes.errors import FileError
from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_safe

LINE_BYTES = select.PIPE_BUF
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_CUT = "…"
VALUE_BYTES = 200  # of one value: a line has ten of them at most, and keeps room for the words


class Log:
    """Lines for a file, for a person who looks on, for both, or for nobody.

    log = Log("talk.log")
    log.note("bob", "answered", id=say.id, to="hub", content=reply.content, ms=27.4)
    """

    def __init__(
        self, path: str | None = None, *, echo: Callable[[str], None] | None = None, with_content: bool = False
    ) -> None:
        """`path` is a file to append to, of mode 0600 where it is new; `echo` is told each line as well.

        FileError where the file cannot be written. What goes wrong later is said once, and stops nothing.
        """
        self._path = path
        self._echo = echo
        self._with_content = with_content
        self.is_on = bool(path or echo)
        self._has_complained = False
        self._is_cut = False  # the last line went half onto a full disk
        if path:
            try:
                os.close(self._open(path))
            except OSError as error:
                raise FileError(
                    f"{path}: the log cannot be written: {(error.strerror or str(error)).lower()}"
                ) from None

    def note(
        self, seat: str, what: str, *, content: str | None = None, ms: float | None = None, **facts: str | int | None
    ) -> None:
        """One thing done by a seat. Of `content` the size is told; of `facts` those that are not None."""
        if not self.is_on:
            return
        now_s = time.time()
        told: dict[str, str | int | float | None] = {
            **facts,
            "bytes": None if content is None else len(content.encode("utf-8", "replace")),
            "ms": None if ms is None else round(ms, 1),
        }
        line = f"{_moment(now_s)} {seat} {what}"
        line += "".join(f" {name}={_word(value)}" for name, value in told.items() if value is not None)
        if self._with_content and content is not None:
            line += " content="
            line += _quoted(content, LINE_BYTES - len(line.encode()) - len("\n"))
        if self._echo:
            self._echo(line)
        if self._path:
            self._write(self._path, line)

    def _write(self, path: str, line: str) -> None:
        data = f"{line}\n".encode()
        try:
            # Opened each time: a file that was rotated away, or removed, is made anew.
            descriptor = self._open(path)
            try:
                if self._is_cut:
                    os.write(descriptor, b"\n")
                    self._is_cut = False
                self._is_cut = os.write(descriptor, data) < len(data)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._complain(path, error.strerror or str(error))
            return
        if self._is_cut:
            self._complain(path, "a line was written in part")

    def _complain(self, path: str, why: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            output.say(f"{path}: the log has gaps from here on: {why.lower()}; all else goes on")

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, _FLAGS, 0o600)  # never waits: the reader of a FIFO may be gone


NO_LOG = Log()


def _moment(now_s: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now_s))}.{int(now_s * 1000) % 1000:03d}Z"


def _word(value: str | float) -> str:
    """A value as one word, or between quotation marks."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and 0 < len(text) <= VALUE_BYTES and not set(text) & set(' "=')
    return text if is_word else _quoted(text, VALUE_BYTES)


def _quoted(text: str, limit_bytes: int) -> str:
    """Untrusted text as JSON has it, but that it commands no terminal, in at most so many bytes; cut, it ends in …"""
    import json  # lazily: most lines have only words

    def quote(some: str) -> str:
        return json.dumps(some, ensure_ascii=False)

    text = make_safe(text)
    short = text[:limit_bytes]  # each character takes a byte at least
    if short == text and len(quote(text).encode()) <= limit_bytes:
        return quote(text)
    fits, too_many = 0, len(short) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if len(quote(short[:middle] + _CUT).encode()) <= limit_bytes:
            fits = middle
        else:
            too_many = middle
    return quote(short[:fits] + _CUT)
