"""What comes out of a model, as words: its own name, and what it says for others, taken off. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable


class NameStripper:
    """Takes the speaker's own `NAME:` off the beginning of an answer that comes in pieces."""

    # An answer that begins with more white space than this is no model's habit: nothing is held back for it.
    _MAX_SPACE_CHARS = 64

    __slots__ = ("_held", "_labels", "_state")

    def __init__(self, seat: str) -> None:
        self._labels = label_forms(seat)
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


class LabelCutter:
    """Ends an answer, which comes in pieces, before the first line that begins with another's `NAME:`."""

    # More white space than this is no model's habit: it is not held back for a name that may follow.
    _MAX_HELD_CHARS = 1024

    __slots__ = ("_forms", "_held", "_is_first_line", "_label", "is_cut")

    def __init__(self, names: Iterable[str]) -> None:
        self.is_cut = False
        self._forms = [form for name in names for form in label_forms(name)]
        self._label = re.compile(rf"(?:\A|\n)\s*(?:{'|'.join(map(re.escape, self._forms))})", re.IGNORECASE)
        self._held = ""  # white space, and what after it may yet become a label
        self._is_first_line = True

    def feed(self, text: str) -> str:
        """The next piece, as far as it is known to belong to the answer."""
        if self.is_cut:
            return ""
        if not self._forms:
            return text
        text, self._held = self._held + text, ""
        # What was said before stands between the line's beginning and this text, unless a newline does.
        label = self._label.search(text if self._is_first_line else f"-{text}")
        if label:
            self.is_cut = True
            return text[: max(0, label.start() - (not self._is_first_line))].rstrip()
        before, newline, line = text.rpartition("\n")
        begins_line = bool(newline) or self._is_first_line
        words = line.lstrip().lower()
        may_be_label = begins_line and any(form.startswith(words) for form in self._forms)
        end = len((before if may_be_label else text).rstrip())
        if len(text) - end <= self._MAX_HELD_CHARS:
            text, self._held = text[:end], text[end:]
        self._is_first_line = self._is_first_line and not text
        return text

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def label_forms(name: str) -> tuple[str, ...]:
    """How models write a speaker's name before words, in lower case."""
    name = name.lower()
    return f"{name}:", f"{name} :", f"**{name}:**", f"**{name}**:", f"*{name}:*", f"*{name}*:"
