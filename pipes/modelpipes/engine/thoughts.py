"""A reasoning model's thoughts, parted from its answer as it comes in pieces. Pure.

Most servers part them. Where they do not, `<think>` begins an answer with thoughts, and `</think>` ends them. Where the
model's template has already opened `<think>` in the prompt, only `</think>` comes, and until then thoughts look like
the answer. So the rule is:

- Tags count once: what stands behind the first end of the thoughts is the answer, whatever tags it has.
- A `</think>` without a beginning ends thoughts, unless it is quoted: inside a fence or a code span, inside double
  quotes on its line, directly behind a single one, or as the end of a `<think>` that the words before it opened.
- Where nothing follows a `</think>` without a beginning, what came before it is the answer: words are not lost for a
  stray tag.
- Of a model that began so before, what comes is taken for thoughts until `</think>`; if the answer ends without one, it
  was no thought, unless the answer ended for its length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
MAX_SPACE_CHARS = 64  # an answer that begins with more is no model's habit: nothing is held back for it
MAX_QUOTED = 16  # an answer that quotes the tag more often speaks about tags, and to look at each takes long

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_SINGLE_QUOTE = re.compile(r"(?:\A|\W)'\Z")  # no apostrophe


class Parted(NamedTuple):
    """What a piece has. `anew`: what was told before does not count, and is told again here as what it is."""

    content: str = ""
    thinking: str = ""
    anew: bool = False


class ThoughtSplitter:
    """Parts the thoughts from one answer, by the rule above."""

    __slots__ = ("_held", "_is_parted", "_is_told", "_quoted", "_said", "_state", "begins_in_thoughts")

    def __init__(self, *, begins_in_thoughts: bool = False) -> None:
        """`begins_in_thoughts`: the model's last answer had `</think>` alone. At the end, whether this one had."""
        self.begins_in_thoughts = begins_in_thoughts
        self._state = "begin"
        self._held = ""  # what may yet become a tag
        self._said: list[str] = []  # all of it, while it may be content or thoughts
        self._is_told = False  # some of it
        self._is_parted = False  # by the server
        self._quoted = 0

    def feed(self, text: str) -> Parted:
        """What is known of the next piece; what may yet become a tag is held back."""
        text, self._held = self._held + text, ""
        thinking, anew = "", False
        if self._state == "begin":
            text = self._begin(text)
        if self._state == "open":
            before, text = self._part_at_tag(text, "undecided")
            if self._state == "open":
                self._is_told = self._is_told or bool(before)
                return Parted(before)
            if not text.strip():
                self._is_told = self._is_told or bool(before)
                return Parted(before)
        if self._state == "undecided":
            if not text.strip():
                return Parted()
            thinking, anew = "".join(self._said).lstrip(), self._is_told
            self._said, self.begins_in_thoughts, self._state = [], bool(thinking), "content-begin"
        elif self._state == "guess":
            thinking, text = self._part_at_tag(text, "content-begin")
            thinking = thinking if self._is_told else thinking.lstrip()
            self._is_told = self._is_told or bool(thinking)
        elif self._state in ("thoughts-begin", "thoughts"):
            thinking, text = self._part_thoughts(text)
        if self._state == "content-begin":
            text = text.lstrip()
            self._state = "content" if text else "content-begin"
        return Parted(text if self._state == "content" else "", thinking, anew)

    def flush(self, *, is_whole: bool = True) -> Parted:
        """What was held back, at the end of the answer; not `is_whole`: it is one that was cut for its length."""
        held, self._held = self._held, ""
        if self._state in ("begin", "open", "content"):
            return Parted(held)
        if self._state == "guess":
            if not is_whole:
                return Parted(thinking=held)
            self.begins_in_thoughts = False
            return Parted("".join(self._said) + held, anew=self._is_told)
        return Parted(thinking=held if self._state == "thoughts" else "")

    def pass_content(self) -> None:
        """The server parts the thoughts itself: what comes is content, but for a `<think>` that begins it."""
        self._is_parted, self.begins_in_thoughts = True, False
        if self._state == "open":
            self._said, self._state = [], "content"

    # -- the states

    def _begin(self, text: str) -> str:
        words = text.lstrip()
        if len(text) - len(words) > MAX_SPACE_CHARS:
            self._state = "content"
        elif words.startswith(OPEN):
            self._state, text = "thoughts-begin", words[len(OPEN) :]
            self.begins_in_thoughts = False
        elif OPEN.startswith(words):
            self._held, text = text, ""
        elif self._is_parted:
            self._state = "content"
        else:
            self._state = "guess" if self.begins_in_thoughts else "open"
        return text

    def _part_thoughts(self, text: str) -> tuple[str, str]:
        """Thoughts that a tag began, and what follows their end."""
        if self._state == "thoughts-begin":
            text = text.lstrip()
            self._state = "thoughts" if text else self._state
        thinking, tag, rest = text.partition(CLOSE)
        if tag:
            self._state = "content-begin"
        else:
            kept = len(thinking) - _overlap(thinking, CLOSE)
            thinking, self._held = thinking[:kept], thinking[kept:]
        return thinking, rest

    def _part_at_tag(self, text: str, then: str) -> tuple[str, str]:
        """What stands before the first end of thoughts that is not quoted, and behind it; where it is, on to `then`."""
        start = 0
        while (at := text.find(CLOSE, start)) >= 0:
            if not self._is_quoted(text[:at]):
                self._said.append(text[:at])
                self._state = then
                return text[:at], text[at + len(CLOSE) :]
            start = at + len(CLOSE)
        kept = len(text) - _overlap(text[start:], CLOSE)
        text, self._held = text[:kept], text[kept:]
        self._said.append(text)
        return text, ""

    def _is_quoted(self, text: str) -> bool:
        """Does a `</think>` behind this text belong to the words?"""
        self._quoted += 1
        if self._quoted > MAX_QUOTED:
            return True
        before = "".join((*self._said, text))
        is_opened = self._state == "open" and before.count(OPEN) > before.count(CLOSE)
        if is_opened or len(_FENCE.findall(before)) % 2:
            return True
        line = before.rpartition("\n")[2]
        return bool(line.count("`") % 2 or line.count('"') % 2 or _SINGLE_QUOTE.search(line))


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((count for count in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:count])), 0)
