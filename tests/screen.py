"""A terminal with what runs on it, and what a person sees there: pyte is its screen.

with Screen(["modelpipes", "run", "tiny-chat"], home) as screen:
    screen.wait_for("me>")
    screen.press("Hello.\r")
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from typing import Any

import pyte

from modelpipes.values.deadline import Deadline
from tests.shell import Home

LIMIT_S = 60.0  # for anything to be shown, on a busy machine
HISTORY_LINES = 5000
ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, CTRL_Z = "\r", "\x1b\r", "\x03", "\x04", "\x12", "\x1a"
UP, LEFT, HOME, BACKSPACE = "\x1b[A", "\x1b[D", "\x1b[H", "\x7f"
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


def pasted(text: str) -> str:
    """What a terminal sends for a paste."""
    return f"\x1b[200~{text}\x1b[201~"


class Screen:
    """A process in a session of its own on a terminal of a size."""

    def __init__(
        self, argv: Sequence[str], home: Home, *, columns: int = 80, rows: int = 24, stdout: Any = None, **env: str
    ) -> None:
        self._keyboard, end = pty.openpty()
        self._shown = pyte.HistoryScreen(columns, rows, history=HISTORY_LINES, ratio=0.5)
        self._stream = pyte.ByteStream(self._shown)
        self._set_size(columns, rows)
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *argv],
            cwd=home.cwd,
            env=home.env | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | env,
            stdin=end,
            stdout=end if stdout is None else stdout,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self._shown.resize(rows, columns)
        self._set_size(columns, rows)  # the kernel sends SIGWINCH to the foreground

    def press(self, keys: str) -> None:
        """Press keys, reading what is shown meanwhile: a terminal that nobody reads takes no more."""
        rest = keys.encode()
        deadline = Deadline.after(LIMIT_S)
        poll = select.poll()
        os.set_blocking(self._keyboard, False)
        while rest:
            poll.register(self._keyboard, select.POLLIN | select.POLLOUT)
            ready = dict(poll.poll(deadline.poll_ms())).get(self._keyboard, 0)
            assert ready, "the terminal takes no keys"
            if ready & select.POLLIN:
                self._read()
            if ready & select.POLLOUT:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self._keyboard, rest[:1024]) :]
        os.set_blocking(self._keyboard, True)

    def _read(self) -> bool:
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # EIO: the last that had it open has ended
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """What the screen shows, from its first line to the last that has something."""
        return "\n".join(line.rstrip() for line in self._shown.display).rstrip("\n").split("\n")

    @property
    def text(self) -> str:
        """All that was shown and is not erased, what has scrolled away included."""
        gone = ["".join(line[at].data for at in sorted(line)).rstrip() for line in self._shown.history.top]
        return "\n".join([*gone, *self.lines])

    @property
    def columns(self) -> int:
        return int(self._shown.columns)

    @property
    def colours(self) -> set[str]:
        """The colours on the screen, but for the terminal's own."""
        cells = (cell for line in self._shown.buffer.values() for cell in line.values())
        return {cell.fg for cell in cells} - {"default"}

    def wait_for(self, pattern: str, *, everywhere: bool = False) -> re.Match[str]:
        """What the screen shows of a pattern, once it does; `everywhere`: or what has scrolled away."""
        deadline = Deadline.after(LIMIT_S)
        poll = select.poll()
        poll.register(self._keyboard, select.POLLIN)
        while not (found := re.search(pattern, self.text if everywhere else "\n".join(self.lines), re.M | re.S)):
            assert poll.poll(deadline.poll_ms()), f"no {pattern!r} in\n{self.text}"
            assert self._read(), f"it ended without {pattern!r}:\n{self.text}"
        return found

    def end(self) -> int:
        """The exit code, once it has ended; all that it showed is read."""
        deadline = Deadline.after(LIMIT_S)
        poll = select.poll()
        poll.register(self._keyboard, select.POLLIN)
        while poll.poll(deadline.poll_ms()) and self._read():
            pass
        return self.process.wait(deadline.remaining_s())

    def hang_up(self) -> None:
        """Close the terminal's window."""
        if self._keyboard >= 0:
            os.close(self._keyboard)
        self._keyboard = -1

    def is_cooked(self) -> bool:
        """Does the terminal echo, and give lines, as a shell wants it?"""
        flags = termios.tcgetattr(self._keyboard)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON and flags & termios.ISIG)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT_S)
        self.hang_up()
