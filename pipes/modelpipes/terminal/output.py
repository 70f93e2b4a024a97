"""The only writer to stdout: text made safe, JSON lines, tables; and one-liners to stderr.

Written with `os.write` as UTF-8, whatever the locale, so that each piece of an answer leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from types import TracebackType

import msgspec

from modelpipes.errors import FileError
from modelpipes.terminal.drawing import SCREEN, draw
from modelpipes.terminal.safetext import SafeText, make_line, make_safe
from modelpipes.terminal.table import Table
from modelpipes.terminal.width import clip

STDOUT, STDERR = 1, 2
DEFAULT_COLUMNS = 80  # where stdout is no terminal, of what fills a line
PROGRESS_S = 0.5  # between two words of a progress line; work that ends sooner needs none


def write_text(text: str) -> None:
    """Write text to stdout, now, as it is.

    Raises BrokenPipeError when nobody reads stdout any more, FileError when it cannot be written.
    """
    _write_stdout(text.encode("utf-8", "replace"))


def write_json(value: object) -> None:
    """Write a value to stdout as one line of JSON; raises as `write_text` does."""
    try:
        line = msgspec.json.encode(value)
    except UnicodeEncodeError:
        # Half a surrogate pair is no Unicode text, but JSON can say it exactly.
        import json

        line = json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode("ascii")
    _write_stdout(line + b"\n")


def width() -> int | None:
    """Columns of the terminal on stdout; None where stdout is no terminal, which bounds nothing."""
    return _terminal_columns(STDOUT)


def columns() -> int:
    """Columns to draw in: those of the terminal on stdout, or what a terminal is thought to have."""
    return width() or DEFAULT_COLUMNS


def write_table(table: Table, format_: str = SCREEN) -> None:
    """Write a table to stdout, no wider than a terminal there, or in one of DOCUMENTS; raises as `write_text` does."""
    write_text(draw(table, format_, width()))


def say(line: str) -> None:
    """Write one line for the person to stderr, made safe; does nothing where stderr is gone."""
    with contextlib.suppress(OSError):  # there is nowhere left to say it, and the work goes on
        _write(STDERR, (make_line(line) + "\n").encode("utf-8", "replace"))


def prompt(text: str) -> None:
    """Write to stderr, without ending the line, what a person is asked."""
    with contextlib.suppress(OSError):
        _write(STDERR, make_safe(text).encode("utf-8", "replace"))


class Progress:
    """A line on the terminal on stderr that says how far a long work is, wiped when it ends; elsewhere, nothing."""

    def __init__(self, quiet_s: float = PROGRESS_S) -> None:
        """Nothing is shown before `quiet_s`."""
        self._width = _terminal_columns(STDERR) or 0
        self._next_at = time.monotonic() + quiet_s
        self._is_shown = False

    def show(self, line: str) -> None:
        """Say it in place of what was said before, unless that was a moment ago."""
        if self._width and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + PROGRESS_S
            self._is_shown = True
            self._write(clip(make_line(line), self._width - 1))

    def say(self, line: str) -> None:
        """Write one line for the person, which stays, above it."""
        if self._is_shown:
            self._write("")
        say(line)

    def end(self) -> None:
        """Wipe it."""
        if self._is_shown:
            self._write("")
        self._is_shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            _write(STDERR, f"\r{text}\x1b[K".encode("utf-8", "replace"))  # erase what was longer


class Speech:
    """One answer on stdout as it comes, made safe, under its speaker's label; thoughts go to stderr."""

    def __init__(self, label: str = "", *, show_thinking: bool = False) -> None:
        self._label = label
        self._show_thinking = show_thinking
        self._safe = SafeText()
        self._thoughts = SafeText()
        self._said: list[str] = []
        self._thought: list[str] = []
        self._is_thinking = False
        self._ends_line = False

    def say(self, content: str, thinking: str = "") -> None:
        """The next piece."""
        if thinking and self._show_thinking:
            self._is_thinking = True
            self._thought.append(thinking)
            prompt(self._thoughts.feed(thinking))
        if content:
            self._write(self._safe.feed(content), is_first=not self._said)
            self._said.append(content)

    def void(self) -> None:
        """What was said does not count: what comes begins on a fresh line."""
        if self._said:
            self._end_line()
        self._said, self._thought, self._safe = [], [], SafeText()

    def end(self, content: str, thinking: str = "") -> None:
        """The answer is whole: print what is missing of it, and end the line."""
        said = "".join(self._said)
        if not content.startswith(said):
            self.void()
            said = ""
        self.say("", thinking.removeprefix("".join(self._thought)))
        if not said or content != said:
            self._write(self._safe.feed(content[len(said) :]), is_first=not said)
        self._write(self._safe.flush(), is_first=False)
        self._end_line()

    def _write(self, text: str, *, is_first: bool) -> None:
        if self._is_thinking:
            self._is_thinking = False
            prompt(self._thoughts.flush() + "\n")
        text = self._label + text if is_first else text
        if text:
            self._ends_line = text.endswith("\n")
            write_text(text)

    def _end_line(self) -> None:
        self._write(self._safe.flush(), is_first=False)
        if not self._ends_line:
            write_text("\n")
        self._ends_line = True


def _terminal_columns(descriptor: int) -> int | None:
    try:
        return os.get_terminal_size(descriptor).columns or None
    except OSError:
        return None


def _write_stdout(data: bytes) -> None:
    try:
        _write(STDOUT, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileError(f"cannot write to stdout: {error.strerror}") from error


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Somebody who shares the descriptor made it non-blocking; its mode is not ours to change.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
