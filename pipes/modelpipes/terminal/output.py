"""The only writer to stdout: text made safe, JSON lines, tables; and one-liners to stderr.

Written with `os.write` as UTF-8, whatever the locale, so that each piece of an answer leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from types import TracebackType
from typing import Protocol

import msgspec

from modelpipes.errors import FileError
from modelpipes.terminal.colours import coloured, has_colours
from modelpipes.terminal.drawing import SCREEN, draw
from modelpipes.terminal.safetext import SafeText, make_line, make_safe
from modelpipes.terminal.table import Table
from modelpipes.terminal.width import clip, columns_of
from modelpipes.terminal.wrapping import Wrapper

STDOUT, STDERR = 1, 2
DEFAULT_COLUMNS = 80  # where stdout is no terminal, of what fills a line
PROGRESS_S = 0.5  # between two words of a progress line; work that ends sooner needs none
SIGN_S = 1.0  # a wait that is over sooner needs no sign; and how often its seconds are counted


class Foot(Protocol):
    """What stands at the foot of a terminal, below all that is written there: the line where a person types."""

    def takes(self, descriptor: int) -> bool:
        """Does it write what goes there?"""

    def write(self, descriptor: int, text: str) -> None:
        """Write text above it, now."""

    def show_sign(self, line: str) -> None:
        """Say in a line what is waited for; "" for nothing."""


_foot: Foot | None = None
_sign: Sign | None = None  # the one that stands there now


def set_foot(foot: Foot | None) -> None:
    """From now on this stands at the foot of the terminal; None: nothing does."""
    global _foot
    _foot = foot


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


def is_fancy() -> bool:
    """Does stdout show more than plain text: a terminal on which colours are wanted, or a person types?"""
    return width() is not None and (has_colours() or (_foot is not None and _foot.takes(STDOUT)))


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

    def __init__(self, quiet_s: float | None = None) -> None:
        """Nothing is shown before `quiet_s`."""
        self._width = _terminal_columns(STDERR) or 0
        self._foot = _foot
        self._next_at = time.monotonic() + (PROGRESS_S if quiet_s is None else quiet_s)
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
        if self._foot:
            self._foot.show_sign(text)
            return
        with contextlib.suppress(OSError):
            _write(STDERR, f"\r{text}\x1b[K".encode("utf-8", "replace"))  # erase what was longer


class Sign:
    """A quiet word on the terminal on stderr, and for how long, while something is waited for; elsewhere, nothing.

    A thread of its own counts the seconds. `wipe` ends it, and so does whatever else is written to a terminal.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_s = time.monotonic()
        self._foot = _foot
        self._is_shown = False
        self._lock = threading.RLock()
        self._is_over = threading.Event()
        if _terminal_columns(STDERR) and (self._foot or has_colours()):
            threading.Thread(target=self._count, daemon=True).start()

    def say(self, what: str) -> None:
        """What is waited for from now on."""
        self._what = what

    def wipe(self) -> None:
        """It is there, or nobody waits any more; harmless again."""
        self._is_over.set()
        with self._lock:
            if self._is_shown:
                self._show("")

    def __enter__(self) -> Sign:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def _count(self) -> None:
        while not self._is_over.wait(SIGN_S):
            with self._lock:
                if not self._is_over.is_set():
                    self._show(f"{self._what} … {time.monotonic() - self._began_s:.0f} s")

    def _show(self, line: str) -> None:
        global _sign
        self._is_shown = bool(line)
        if self._foot:
            self._foot.show_sign(make_line(line))
            return
        _sign = self if line else None
        with contextlib.suppress(OSError):
            shown = clip(make_line(line), (_terminal_columns(STDERR) or DEFAULT_COLUMNS) - 1)
            write_through(STDERR, f"\r{shown}\x1b[K".encode("utf-8", "replace"))


class Speech:
    """One answer on stdout as it comes, made safe, under its speaker's label; thoughts go to stderr.

    On a terminal that shows more than plain text, the label has the speaker's colour and lines are broken at spaces.
    """

    def __init__(self, label: str = "", *, speaker: int | None = None, show_thinking: bool = False) -> None:
        """`speaker` is the number of who speaks, which has a colour; None: none."""
        self._label = label
        self._speaker = speaker
        self._wrapper: Wrapper | None = None
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
        self._end_line()

    def _write(self, text: str, *, is_first: bool) -> None:
        if self._is_thinking:
            self._is_thinking = False
            prompt(self._thoughts.flush() + "\n")
        label = self._label if is_first else ""
        if text or label:
            self._ends_line = (text or label).endswith("\n")
        if is_first:
            self._wrapper = Wrapper(columns_of(label)) if is_fancy() else None
        if self._wrapper:
            text = self._wrapper.feed(text, columns())
            if label and self._speaker is not None and has_colours():
                label = coloured(label, self._speaker)
        if label or text:
            write_text(label + text)

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
    if _sign:
        _sign.wipe()
    if _foot and _foot.takes(descriptor):
        _foot.write(descriptor, data.decode("utf-8", "replace"))
    else:
        write_through(descriptor, data)


def write_through(descriptor: int, data: bytes) -> None:
    """Write all bytes to a descriptor, whatever stands at the foot of the terminal; OSError where it cannot be."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Somebody who shares the descriptor made it non-blocking; its mode is not ours to change.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
