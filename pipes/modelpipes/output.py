"""The only writer to stdout: text made safe, JSON lines, tables; and one-liners to stderr.

Written with `os.write` as UTF-8, whatever the locale, so that each piece of an answer leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Container, Sequence

import msgspec

from modelpipes.errors import FileError
from modelpipes.safetext import SafeText, make_line, make_safe

STDOUT, STDERR = 1, 2
MIN_LAST = 16  # columns that the last one of a table keeps, however narrow the terminal


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
    try:
        return os.get_terminal_size(STDOUT).columns or None
    except OSError:
        return None


def write_table(
    rows: Sequence[Sequence[object]], headers: Sequence[str], width: int | None = None, right: Container[str] = ()
) -> None:
    """Write a table to stdout, columns of numbers and those named in `right` to the right; raises as `write_text`.

    With a `width` in columns, what is longer in the last column loses its beginning. Drawn here because
    importing tabulate takes longer than all else that `list-seats` does.
    """
    cells = [list(headers), *(["" if cell is None else make_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if width is not None and (last := max(width - sum(widths[:-1]) - 2 * (len(headers) - 1), MIN_LAST)) < widths[-1]:
        for line in cells[1:]:
            line[-1] = line[-1] if len(line[-1]) <= last else "…" + line[-1][1 - last :]
        widths[-1] = last
    puts = [
        str.rjust if header in right or all(isinstance(row[i], int | float) for row in rows) else str.ljust
        for i, header in enumerate(headers)
    ]
    lines = ["  ".join(p(c, w) for p, c, w in zip(puts, line, widths, strict=True)) for line in cells]
    write_text("".join(line.rstrip() + "\n" for line in lines))


def say(line: str) -> None:
    """Write one line for the person to stderr, made safe; does nothing where stderr is gone."""
    with contextlib.suppress(OSError):  # there is nowhere left to say it, and the work goes on
        _write(STDERR, (make_line(line) + "\n").encode("utf-8", "replace"))


def prompt(text: str) -> None:
    """Write to stderr, without ending the line, what a person is asked."""
    with contextlib.suppress(OSError):
        _write(STDERR, make_safe(text).encode("utf-8", "replace"))


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
