"""Who speaks next, and when a conversation ends.

Pure: every choice depends only on the turns so far, so that a leader who resumes goes on alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from modelpipes.errors import UsageError

DEFAULT_ROUNDS = 10  # where nothing else would end the talk
STARVING = 2  # nobody is passed over more often in a row than so many times the number of members
END_WORD = "END"  # a moderator's, to end the talk; no name of a member, which has no capitals


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


def overdue(passed_over: Mapping[str, int]) -> str | None:
    """The member who must speak now, so that nobody is passed over more often in a row than twice their number.

    `passed_over` has for each how many turns others spoke since it last did. None: anybody may speak.
    """
    limit = STARVING * len(passed_over)
    waiting = sorted(passed_over, key=passed_over.__getitem__, reverse=True)  # stable: of two the one named first
    if any(passed_over[name] + rank >= limit for rank, name in enumerate(waiting)):
        return waiting[0]
    return None


def moderator_question(counts: Mapping[str, int], candidates: Sequence[str], talk: str) -> str:
    """What a moderator is asked, to choose the next speaker: who has spoken how often, the last turns, the question."""
    spoken = ", ".join(f"{name} {count}" for name, count in counts.items())
    names = _either(candidates)
    return (
        f"You moderate a conversation of {_and(list(counts))}.\n"
        f"How often each has spoken: {spoken}.\n"
        f"The last turns:\n\n{talk}\n\n"
        f"Who should speak next: {names}? Answer with one name only, or with {END_WORD} to end the conversation."
    )


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def parse_choice(answer: str, members: Sequence[str]) -> str | None:
    """Whom a moderator's answer names first, as a whole word in any case; END_WORD where that is all it says.

    None: no member. What it thought does not count.
    """
    answer = without_thoughts(answer)
    if answer.strip(" \t\r\n.!*_\"'`") == END_WORD:
        return END_WORD
    found: list[tuple[int, int, str]] = []
    for name in members:
        # Dots and hyphens belong to a name inside it, and to the sentence at its ends.
        word = rf"(?<!\w)(?<!\w[.-]){re.escape(name)}(?!\w)(?![.-]\w)"
        if match := re.search(word, answer) or re.search(word, answer, re.IGNORECASE):
            found.append((match.start(), -len(name), name))  # of two at one place the longer: it holds the other
    return min(found)[2] if found else None


def without_thoughts(answer: str) -> str:
    """An answer without `<think>…</think>`, also where one of the two tags is missing."""
    answer = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)
    return answer.rpartition("</think>")[2].partition("<think>")[0]


class StopRules(Struct, frozen=True):
    """When a conversation ends by itself: the first rule that holds ends it. UsageError for one that cannot be."""

    rounds: int | None = None  # every member's turn once is a round
    stop_word: str | None = None  # a whole word, or words, in any case; the opening may say it

    def __post_init__(self) -> None:
        if self.stop_word is not None and not self.stop_word.strip():
            raise UsageError("the stop word is empty")
        if self.rounds is not None and self.rounds < 0:
            raise UsageError("rounds cannot be less than 0")

    def why_stop(self, last: Spoken | None, spoken: int, members: int) -> str | None:
        """The name of the rule that ends the conversation of so many members after this turn; None: it goes on.

        `spoken` counts the turns of members; while it is 0, the last one is an opening, if there is any. A stop word
        counts in the last turn only: who resumes a conversation after one wants more of it.
        """
        if self.stop_word is not None and last and spoken:
            word = rf"(?<!\w){re.escape(self.stop_word.strip())}(?!\w)"
            if re.search(word, last.content, re.IGNORECASE):
                return "stop-word"
        if self.rounds is not None and spoken >= self.rounds * members:
            return "rounds"
        return None
