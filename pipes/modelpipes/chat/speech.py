"""What comes out of a model, as words: its own name and its thoughts parted from them, piece by piece. Pure."""

from __future__ import annotations


class NameStripper:
    """Takes the speaker's own `NAME:` off the beginning of an answer that comes in pieces."""

    # An answer that begins with more white space than this is no model's habit: nothing is held back for it.
    _MAX_SPACE_CHARS = 64

    __slots__ = ("_held", "_labels", "_state")

    def __init__(self, seat: str) -> None:
        name = seat.lower()
        self._labels = (f"{name}:", f"{name} :", f"**{name}:**", f"**{name}**:", f"*{name}:*", f"*{name}*:")
        self._held = ""
        self._state = "begin"

    def feed(self, text: str) -> str:
        """The next piece without the name; what may yet become the name is held back."""
        if self._state == "begin":
            text, self._held = self._held + text, ""
            words = text.lstrip()
            space_chars = len(text) - len(words)
            if space_chars > self._MAX_SPACE_CHARS:
                self._state = "text"
            elif label := next((label for label in self._labels if words[: len(label)].lower() == label), None):
                self._state = "space"
                text = words[len(label) :]
            elif any(label.startswith(words.lower()) for label in self._labels):
                self._held, text = text, ""
            else:
                self._state = "text"
        if self._state == "space":
            text = text.lstrip()
            if text:
                self._state = "text"
        return text

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held, self._state = self._held, "", "text"
        return held


class ThoughtSplitter:
    """Parts a leading `<think>…</think>` from an answer that comes in pieces."""

    _OPEN, _CLOSE = "<think>", "</think>"
    _MAX_SPACE_CHARS = 64  # as for NameStripper

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._held = ""
        self._state = "begin"

    def feed(self, text: str) -> tuple[str, str]:
        """The content and the thoughts in the next piece; what may yet become a tag is held back."""
        text, self._held = self._held + text, ""
        content = thinking = ""
        if self._state == "begin":
            words = text.lstrip()
            if len(text) - len(words) > self._MAX_SPACE_CHARS:
                self._state = "content"
            elif words.startswith(self._OPEN):
                self._state, text = "thoughts-begin", words[len(self._OPEN) :]
            elif self._OPEN.startswith(words):
                self._held = text
                return "", ""
            else:
                self._state = "content"
        if self._state == "thoughts-begin":
            text = text.lstrip()
            if text:
                self._state = "thoughts"
        if self._state == "thoughts":
            thinking, tag, text = text.partition(self._CLOSE)
            if tag:
                self._state = "content-begin"
            else:
                kept = len(thinking) - _overlap(thinking, self._CLOSE)
                thinking, self._held = thinking[:kept], thinking[kept:]
        if self._state == "content-begin":
            text = text.lstrip()
            if text:
                self._state = "content"
        if self._state == "content":
            content = text
        return content, thinking

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the answer; thoughts that never ended are thoughts."""
        held, self._held = self._held, ""
        return (held, "") if self._state in ("begin", "content") else ("", held)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((count for count in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:count])), 0)
