"""The only writer to stdout: text made safe, JSON lines, tables; and one-liners to stderr.

Written with `os.write` as UTF-8, whatever the locale, so that each piece of an answer leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Sequence

import msgspec

from modelpipes.errors import FileError

STDOUT, STDERR = 1, 2

# Longer than any real title or colour; an introducer that nothing ends holds text back no longer than this.
MAX_SEQUENCE_CHARS = 1024

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}\ud800-\udfff]")
# ECMA-48: CSI is parameters, intermediates, one final; other escapes are intermediates, one final.
_CSI_INSIDE = re.compile("[\x20-\x3f]*")
_ESCAPE_INSIDE = re.compile("[\x20-\x2f]*")
# A string (OSC, DCS, SOS, PM, APC, screen's title) runs to BEL, ST, or CAN or SUB, which abort it. No real
# one has a newline, so a newline ends the wait for what was none.
_STRING_INSIDE = re.compile("[^\x07\n\x18\x1a\x1b\x80-\x9f]*")
_STRING_ENDS = "\x07\x18\x1a\x9c"
_CSI_STARTS = ("\x1b[", "\x9b")
_STRING_STARTS = ("\x1b]", "\x1bP", "\x1bX", "\x1b^", "\x1b_", "\x1bk", "\x9d", "\x90", "\x98", "\x9e", "\x9f")
_C1_STARTS = "\x90\x98\x9b\x9d\x9e\x9f"


class SafeText:
    """Text that cannot command a terminal, made from text that may, piece by piece.

    Whole escape sequences and bidirectional controls are dropped; other control characters, and
    sequences that never end, are made visible. Newlines and tabs stay; `\\r\\n` becomes `\\n`. The pieces
    may be cut anywhere: what comes out does not depend on it.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""  # a `\r`, or the beginning of a sequence

    def feed(self, text: str) -> str:
        """The next piece made safe; an unfinished sequence is held back."""
        out: list[str] = []
        text, self._held = self._held + text, ""
        position = 0
        while match := _UNSAFE.search(text, position):
            start = match.start()
            out.append(text[position:start])
            if match[0] not in _C1_STARTS and match[0] not in "\r\x1b":
                out.append(_visible(match[0]))
                position = start + 1
                continue
            end = _end_of_sequence(text, start)
            if end is None:
                self._held = text[start:]
                return "".join(out)
            if end == start:  # it is none: its first character is shown, the rest is text
                out.append(_visible(match[0]))
                end += 1
            position = end
        out.append(text[position:])
        return "".join(out)

    def flush(self) -> str:
        """What was held back, made visible; the next piece starts afresh."""
        out = ""
        while held := self._held:
            self._held = ""
            out += _visible(held[0]) + self.feed(held[1:])
        return out


def _end_of_sequence(text: str, start: int) -> int | None:
    """Where the sequence at `start` ends; `start` itself if it is none, None if that is not known yet."""
    if text[start] == "\r":
        if start + 1 == len(text):
            return None
        return start + 1 if text[start + 1] == "\n" else start
    introducer = text[start : start + 2] if text[start] == "\x1b" else text[start]
    if introducer == "\x1b":
        return None
    if introducer in _STRING_STARTS:
        return _end_of_string(text, start, start + len(introducer))
    inside, finals = (_CSI_INSIDE, "@~") if introducer in _CSI_STARTS else (_ESCAPE_INSIDE, "0~")
    match = inside.match(
        text, start + (len(introducer) if introducer in _CSI_STARTS else 1), start + MAX_SEQUENCE_CHARS
    )
    end = match.end() if match else start
    if end - start >= MAX_SEQUENCE_CHARS:
        return start
    if end == len(text):
        return None
    return end + 1 if finals[0] <= text[end] <= finals[1] else start


def _end_of_string(text: str, start: int, inside: int) -> int | None:
    match = _STRING_INSIDE.match(text, inside, start + MAX_SEQUENCE_CHARS)
    end = match.end() if match else start
    if end - start >= MAX_SEQUENCE_CHARS:
        return start
    if end == len(text):
        return None
    if text[end] in _STRING_ENDS:
        return end + 1
    if text[end] != "\x1b":
        return start
    if end + 1 == len(text):
        return None
    return end + 2 if text[end + 1] == "\\" else start


def _visible(char: str) -> str:
    """What stands for a control character; nothing for a bidirectional one, which is common and silent."""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures of Unicode
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if code < 0xA0 or 0xD800 <= code <= 0xDFFF else ""


def make_safe(text: str) -> str:
    """A whole text that cannot command a terminal."""
    safe = SafeText()
    return safe.feed(text) + safe.flush()


def make_line(text: str) -> str:
    """A whole text as one safe line: newlines and tabs become spaces."""
    return make_safe(text).replace("\n", " ").replace("\t", " ")


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


def write_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
    """Write a table to stdout, columns of numbers to the right; raises as `write_text` does."""
    from tabulate import tabulate

    cells = [["" if cell is None else make_line(str(cell)) for cell in row] for row in rows]
    align = ["right" if all(isinstance(row[i], int | float) for row in rows) else "left" for i in range(len(headers))]
    table = tabulate(
        cells, headers=list(headers), tablefmt="plain", disable_numparse=True, colalign=align if cells else None
    )
    write_text("".join(line.rstrip() + "\n" for line in table.split("\n")))


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
        self._is_thinking = False
        self._ends_line = False

    def say(self, content: str, thinking: str = "") -> None:
        """The next piece."""
        if thinking and self._show_thinking:
            self._is_thinking = True
            prompt(self._thoughts.feed(thinking))
        if content:
            self._write(self._safe.feed(content), is_first=not self._said)
            self._said.append(content)

    def void(self) -> None:
        """What was said does not count: what comes begins on a fresh line."""
        if self._said:
            self._end_line()
        self._said, self._safe = [], SafeText()

    def end(self, content: str, thinking: str = "") -> None:
        """The answer is whole: print what is missing of it, and end the line."""
        said = "".join(self._said)
        if not content.startswith(said):
            self.void()
            said = ""
        if not self._is_thinking:
            self.say("", thinking)
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
