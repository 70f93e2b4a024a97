"""Who speaks next, and when a conversation ends.

Pure: every choice depends only on the turns so far, so that a leader who resumes goes on alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from modelpipes.errors import UsageError

DEFAULT_ROUNDS = 10  # where nothing else would end the talk


class Spoken(Protocol):
    """One turn, as far as the rules here look at it."""

    @property
    def turn(self) -> int: ...
    @property
    def sender(self) -> str: ...
    @property
    def content(self) -> str: ...


class TurnTaking(Protocol):
    """A way to choose who speaks next."""

    def next(self, turn: int, speakers: Sequence[str]) -> str:
        """The member whose turn it is: turn number `turn`, who spoke last being the last of the speakers."""


class RoundRobin(Struct, frozen=True):
    """Members speak one after the other, in the order given."""

    members: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_members(self.members)

    def next(self, turn: int, speakers: Sequence[str]) -> str:
        """The member after the last one who spoke; who is no member does not count."""
        previous = next((name for name in reversed(speakers) if name in self.members), None)
        if previous is None:
            return self.members[0]
        return self.members[(self.members.index(previous) + 1) % len(self.members)]


class Random(Struct, frozen=True):
    """Members speak at random, nobody twice in a row (where there is more than one)."""

    members: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        _check_members(self.members)

    def next(self, turn: int, speakers: Sequence[str]) -> str:
        """The choice for a turn, which depends on seed, turn and previous speaker only."""
        previous = speakers[-1] if speakers else ""
        others = [name for name in self.members if name != previous] or list(self.members)
        # Seeded by text, which is hashed the same way by every Python and in every process.
        return random.Random(f"{self.seed} {turn} {previous}").choice(others)


def _check_members(members: Sequence[str]) -> None:
    if not members:
        raise UsageError("a conversation needs at least one member")
    if len(set(members)) < len(members):
        raise UsageError("a member can be named only once")


def moderator_question(members: Sequence[str]) -> str:
    """What a moderator is asked, to choose the next speaker."""
    names = f"{', '.join(members[:-1])} or {members[-1]}" if len(members) > 1 else members[0]
    return f"Who should speak next: {names}? Answer with one name only."


def parse_choice(answer: str, members: Sequence[str]) -> str | None:
    """The member that a moderator's answer names first, as a whole word in any case; None: no member."""
    found: list[tuple[int, int, str]] = []
    for name in members:
        # Dots and hyphens belong to a name inside it, and to the sentence at its ends.
        word = rf"(?<!\w)(?<!\w[.-]){re.escape(name)}(?!\w)(?![.-]\w)"
        if match := re.search(word, answer) or re.search(word, answer, re.IGNORECASE):
            found.append((match.start(), -len(name), name))  # of two at one place the longer: it holds the other
    return min(found)[2] if found else None


class StopRules(Struct, frozen=True):
    """When a conversation ends by itself: the first rule that holds ends it. UsageError for one that cannot be."""

    rounds: int | None = None  # every member's turn once is a round
    stop_word: str | None = None  # a whole word, or words, in any case; the opening may say it

    def __post_init__(self) -> None:
        if self.stop_word is not None and not self.stop_word.strip():
            raise UsageError("the stop word is empty")
        if self.rounds is not None and self.rounds < 0:
            raise UsageError("rounds cannot be less than 0")

    def why_stop(self, last: Spoken, members: int) -> str | None:
        """The name of the rule that ends the conversation of so many members after this turn; None: it goes on.

        A stop word counts in the last turn only: who resumes a conversation after one wants more of it.
        """
        if self.stop_word is not None and last.turn > 0:
            word = rf"(?<!\w){re.escape(self.stop_word.strip())}(?!\w)"
            if re.search(word, last.content, re.IGNORECASE):
                return "stop-word"
        if self.rounds is not None and last.turn >= self.rounds * members:
            return "rounds"
        return None
