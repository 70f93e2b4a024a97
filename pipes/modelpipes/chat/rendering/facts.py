"""What is told of a conversation and of its turns beside their words, in every format. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from modelpipes.chat.contents import LARGEST, Contents, Ended
from modelpipes.chat.transcript import Choice, Header, Turn
from modelpipes.pipe.message import Timing
from modelpipes.terminal.safetext import make_lines

BAR_COLUMNS = 24  # beside the longest caption it fits 80 columns
PHASES = ("queue", "first token", "generation")
MARKS = "░▒█"
# Of the voices that a header tells of: what they say is no Markdown, and an asterisk of theirs is one.
PROGRAMS = ("exec ", "filter ")
PERSON = "the terminal"


@dataclass(frozen=True)
class Spent:
    """Where the time of a turn went, in ms."""

    phases: tuple[float, float, float]
    has_first_token: bool  # a program's answer has none, nor one that timed out before it

    @property
    def total_ms(self) -> float:
        return sum(self.phases)

    @property
    def captions(self) -> list[str]:
        queue, first, made = map(format_ms, self.phases)
        if self.has_first_token:
            return [f"queue {queue}", f"first token {first}", f"generation {made}"]
        return [f"queue {queue}", f"{first} with no first token"]

    @classmethod
    def of(cls, timing: Timing) -> Spent:
        """A member counts the first token from the end of its queue, the total from the arrival."""
        queue = _bounded(timing.queued_ms)
        rest = max(0.0, _bounded(timing.total_ms) - queue)
        first = rest if timing.first_token_ms is None else min(rest, _bounded(timing.first_token_ms))
        return cls((queue, first, rest - first), timing.first_token_ms is not None)


def in_order(contents: Contents) -> Iterator[tuple[Turn | None, Ended | None]]:
    """Turns and ends as they stand in the file, one of the two at a time."""
    ends = deque(contents.ends)
    while ends and ends[0].after < 0:
        yield None, ends.popleft()
    for turn in contents.turns:
        yield turn, None
        while ends and ends[0].after == turn.turn:
            yield None, ends.popleft()
    for ended in ends:
        yield None, ended


def speakers(contents: Contents) -> list[str]:
    """All who spoke, in the order in which they first did."""
    return list(dict.fromkeys(turn.sender for turn in contents.turns))


def writes_markdown(contents: Contents, sender: str) -> bool:
    """Is it a model who speaks? Not the hub, nor a program or a person, as far as the header tells.

    Where there is no header nobody tells, and anybody may be one.
    """
    header = contents.header
    if header is None:
        return True
    voice = header.voices.get(sender, "")
    return sender in header.members and voice != PERSON and not voice.startswith(PROGRAMS)


def describe(contents: Contents) -> list[str]:
    """The conversation in a few safe lines: who, how much, how it was led, whose voices; the first is a title."""
    header = contents.header
    members = (header.members if header else ()) or speakers(contents)
    count = sum(not turn.is_opening for turn in contents.turns)
    numbers = [f"{count} turn{'s' * (count != 1)}"]
    if tokens := sum(_count(turn.usage.completion_tokens) for turn in contents.turns if turn.usage):
        numbers.append(f"{tokens} tokens")
    if total_ms := sum(Spent.of(turn.timing).total_ms for turn in contents.turns if turn.timing):
        numbers.append(f"{format_ms(total_ms)} in all")
    lines = [", ".join(name for name in map(as_line, members) if name.strip()) or "A conversation", ", ".join(numbers)]
    if header:
        lines += [as_line(_member(name, voice, header)) for name, voice in header.voices.items()]
        settings = ", ".join(
            f"{name} {_setting(value)}" for name, value in header.settings.items() if value is not None
        )
        if header.moderator:
            settings += f", moderator {header.moderator}{', who debates as well' * header.debates}"
        began = header.at and f"begun {_moment(header.at)}"
        lines += [as_line(line) for line in (settings, began, header.id) if line]
    return lines


def _member(name: str, voice: str, header: Header) -> str:
    """A member's voice; of a model also its file, its engine, its sampling and what it was told first."""
    about = header.abouts.get(name)
    parts = [f"{name}: {voice}"]
    if about:
        parts += [part for part in (about.file, about.engine) if part]
        given = msgspec.to_builtins(about.sampling) if about.sampling else {}
        parts += [f"{key} {_setting(value)}" for key, value in given.items()]
        if about.system is not None:
            parts.append(f"told: {about.system}" if about.system else "told nothing first")
    return ", ".join(parts)


def _moment(at: str) -> str:
    """`2026-12-01 09:30:00 UTC`, of whatever a file has for a time."""
    return f"{at[:10]} {at[11:19]} UTC" if at.endswith("Z") else at


def _setting(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def chosen_in(contents: Contents) -> dict[int, Choice]:
    """Who chose the speaker of each turn, by its number; a conversation without a moderator has none."""
    return {choice.turn: choice for choice in contents.choices}


def facts_of(turn: Turn, choice: Choice | None = None) -> list[str]:
    """What is known of a turn beside its words and its times."""
    facts = []
    if turn.at:
        facts.append(as_line(_moment(turn.at)[11:]))
    if choice:
        facts.append(_chosen(choice))
    if turn.usage:
        facts.append(f"{_count(turn.usage.completion_tokens)} tokens")
        if turn.usage.cached_tokens is not None and turn.usage.prompt_tokens:
            facts.append(f"{_count(turn.usage.cached_tokens)} of {_count(turn.usage.prompt_tokens)} read before")
    if turn.timing and turn.timing.tokens_per_second is not None:
        facts.append(f"{_bounded(turn.timing.tokens_per_second):.0f} tokens/s")
    if turn.stop not in (None, "end"):
        facts.append(f"stopped by: {turn.stop}")
    if turn.dropped:
        first, last = map(_count, turn.dropped)
        facts.append(f"was not shown turns {first} to {last}")
    if turn.is_cut:
        facts.append("cut where it went on in another's name")
    return facts


def _chosen(choice: Choice) -> str:
    return as_line(f"by the leader: {choice.why}" if choice.why else f"chosen by {choice.by}")


def longest_ms(contents: Contents) -> float:
    """What a whole bar stands for; 0 where nothing was measured."""
    return max((Spent.of(turn.timing).total_ms for turn in contents.turns if turn.timing), default=0.0)


def _bounded(number: float) -> float:
    return min(max(0.0, number), LARGEST)


def _count(number: int) -> int:
    return min(max(0, number), int(LARGEST))


def format_ms(ms: float) -> str:
    """A time as people say it: 0.4 ms, 12 ms, 1.5 s, 2 min 3 s."""
    if ms < 0.05:
        return "0 ms"
    if ms < 9.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds} s"


def draw_bar(spent: Spent, whole_ms: float) -> str:
    """Marks in proportion to a turn of `whole_ms`, which has them all; one at least for a turn that took any time."""
    if not spent.total_ms:
        return ""
    whole = max(1, round(BAR_COLUMNS * spent.total_ms / whole_ms))
    ends = [round(whole * sum(spent.phases[: phase + 1]) / spent.total_ms) for phase in range(len(PHASES))]
    begins = [0, *ends]
    return "".join(mark * (end - begin) for mark, begin, end in zip(MARKS, begins, ends, strict=False))


def as_line(text: str) -> str:
    """Untrusted text as one safe line."""
    return " ".join(make_lines(text))
