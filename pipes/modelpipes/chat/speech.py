"""What comes out of a model, as words: its own name taken off, piece by piece. Pure."""

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
