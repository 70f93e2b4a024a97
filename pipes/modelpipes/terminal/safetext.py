"""Text that cannot command a terminal, made from text of a model or a file that may. Pure."""

from __future__ import annotations

import re

# Longer than any real title or colour; an introducer that nothing ends holds text back no longer than this.
MAX_SEQUENCE_CHARS = 1024
TAB_COLUMNS = 4

# Patterns, compiled at first use: most text needs none of them, and compiling takes 2 ms.
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}\ud800-\udfff]"
# ECMA-48: CSI is parameters, intermediates, one final; other escapes are intermediates, one final.
_CSI_INSIDE = "[\x20-\x3f]*"
_ESCAPE_INSIDE = "[\x20-\x2f]*"
# A string (OSC, DCS, SOS, PM, APC, screen's title) runs to BEL, ST, or CAN or SUB, which abort it. No real
# one has a newline, so a newline ends the wait for what was none.
_STRING_INSIDE = "[^\x07\n\x18\x1a\x1b\x80-\x9f]*"
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
        text, self._held = self._held + text, ""
        if text.isprintable():
            return text
        out: list[str] = []
        position = 0
        while match := re.compile(_UNSAFE).search(text, position):
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
    match = re.compile(inside).match(
        text, start + (len(introducer) if introducer in _CSI_STARTS else 1), start + MAX_SEQUENCE_CHARS
    )
    end = match.end() if match else start
    if end - start >= MAX_SEQUENCE_CHARS:
        return start
    if end == len(text):
        return None
    return end + 1 if finals[0] <= text[end] <= finals[1] else start


def _end_of_string(text: str, start: int, inside: int) -> int | None:
    match = re.compile(_STRING_INSIDE).match(text, inside, start + MAX_SEQUENCE_CHARS)
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


def make_lines(text: str) -> list[str]:
    """The lines of a whole text, each safe, without tabs; those that only Unicode calls lines are lines as well."""
    return make_safe(text).replace("\u2028", "\n").replace("\u2029", "\n").expandtabs(TAB_COLUMNS).split("\n")
