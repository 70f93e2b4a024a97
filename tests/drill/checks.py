"""What must hold after every kill, looked at from outside: in the file, and in the prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class Violation(Exception):
    """Something that must hold does not; says what."""


Words = list[tuple[str, str]]  # (role, word), in order


class Book:
    """A transcript as it grows: only at its end, by turns that follow each other."""

    def __init__(self, path: str, speaker: Callable[[int], str]) -> None:
        """`speaker(turn)` is whose turn it has to be."""
        self.path = path
        self.turns: list[dict[str, Any]] = []
        self._speaker = speaker
        self._before = b""
        self._labels: Sequence[str] = ()  # who is told names before the words of others
        self._chosen = ""  # whom a moderator let speak next

    def read(self) -> None:
        """Look at the file; Violation where what was there has changed, or what is new does not follow."""
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        data = data[: data.rfind(b"\n") + 1]  # a line amid its writing, or cut off and yet to be repaired
        if not data.startswith(self._before):
            raise Violation("what was in the transcript has changed")
        new, is_first = data[len(self._before) :], not self._before
        self._before = data
        for line in new.splitlines():
            entry = json.loads(line)
            if is_first:
                if entry["type"] != "conversation":
                    raise Violation(f"the transcript begins with {line[:80]!r}")
                is_first = False
                self._labels = entry.get("labels", ())
            elif entry.get("type") == "choice":
                if self._chosen or entry["turn"] != len(self.turns):
                    raise Violation(f"a choice of turn {entry['turn']} stands where turn {len(self.turns)} should")
                self._chosen = entry["chose"]
            elif "turn" in entry:
                self._take(entry)
            elif entry["type"] != "end":
                raise Violation(f"an unknown line: {line[:80]!r}")

    def _take(self, entry: dict[str, Any]) -> None:
        number = len(self.turns)
        if entry["turn"] != number:
            raise Violation(f"turn {entry['turn']} stands where turn {number} should")
        self.turns.append(entry)
        chosen, self._chosen = self._chosen, ""
        if chosen and entry["from"] != chosen:
            raise Violation(f"turn {number} is of {entry['from']}, and {chosen} was chosen")
        if entry["from"] != self._speaker(number):
            raise Violation(f"turn {number} is of {entry['from']}, not of {self._speaker(number)}")
        if entry.get("dropped"):
            raise Violation(f"turn {number} was answered without turns {entry['dropped']}")

    def check_prompt(self, seat: str, messages: Sequence[dict[str, str]]) -> int:
        """The turn that these messages ask for: they are all turns before it, each once and in order.

        Violation where they are anything else.
        """
        asked = words_of((message["role"], message["content"]) for message in messages if message["role"] != "system")
        told: Words = []
        for turn in self.turns:
            label = f"{turn['from']}: " if seat in self._labels else ""
            said = ("assistant", turn["content"]) if turn["from"] == seat else ("user", f"{label}{turn['content']}")
            told += words_of([said])
            if told == asked and self._speaker(turn["turn"] + 1) == seat:
                return int(turn["turn"]) + 1
            if len(told) > len(asked):
                break
        raise Violation(f"a prompt of {seat} is not the turns so far: {_shown(messages)}")


def words_of(said: Iterable[tuple[str, str]]) -> Words:
    return [(role, word) for role, content in said for word in content.split()]


def _shown(messages: Sequence[dict[str, str]]) -> str:
    texts = [f"{message['role']}: {message['content']}" for message in messages]
    return " / ".join(text if len(text) < 60 else f"{text[:30]} … {text[-25:]}" for text in texts[-8:])
