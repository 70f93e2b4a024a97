"""An answer as ask-model shows it: as it comes, whole, or as JSON; and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator

from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import astuple, replace

from modelpipes.errors import PeerFailed
from modelpipes.pipe.asker import Answer
from modelpipes.pipe.message import Delta, Reply, Stop, Timing, Usage
from modelpipes.pipe.sidebyside import Outcome
from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_line


class AllUsage(Usage, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """Tokens of one answer, as the engine counted them; every key is there."""


class AllTiming(Timing, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """Where the time of one answer went, as the member measured it; every key is there."""


class Answered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer as JSON says it. `thinking` is there where the model thought aloud, `line` and `question` where each
    line of stdin is one.
    """

    line: int | UnsetType = UNSET
    question: str | UnsetType = UNSET
    sender: str = field(name="from")
    to: str
    content: str
    stop: Stop
    thinking: str | UnsetType = UNSET
    usage: AllUsage | None
    timing: AllTiming | None
    round_trip_ms: float

    @classmethod
    def of(cls, reply: Reply, round_trip_ms: float) -> Answered:
        return cls(
            sender=reply.sender,
            to=reply.to,
            content=reply.content,
            stop=reply.stop,
            thinking=reply.thinking or UNSET,
            usage=AllUsage(*astuple(reply.usage)) if reply.usage else None,
            timing=AllTiming(*astuple(reply.timing)) if reply.timing else None,
            round_trip_ms=round_trip_ms,
        )


class Unanswered(Struct, frozen=True, forbid_unknown_fields=True):
    """Why one line of several has no answer, and the `reason` of a `failure` on a pipe; neither of an empty one."""

    line: int
    question: str
    error: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class Printer:
    """Prints an answer as it comes, or whole, or as JSON."""

    def __init__(self, *, as_json: bool, whole: bool, show_thinking: bool, verbose: bool) -> None:
        self._as_json = as_json
        self._waits = whole or as_json
        self._show_thinking = show_thinking
        self._verbose = verbose

    def print(self, answers: Iterator[Answer]) -> Reply:
        """Print one answer; the reply that ended it."""
        began_s = time.perf_counter()
        text = output.Speech(show_thinking=self._show_thinking)
        reply: Reply | None = None
        for answer in answers:
            if isinstance(answer, Delta) and not self._waits:
                if answer.anew:
                    text.void()
                text.say(answer.content, answer.thinking)
            elif isinstance(answer, Reply):
                reply = answer
        assert reply, "an exchange ends in a reply or an error"
        round_trip_ms = round((time.perf_counter() - began_s) * 1000, 3)
        if self._as_json:
            output.write_json(Answered.of(reply, round_trip_ms))
        else:
            text.end(reply.content, reply.thinking)
        if self._verbose:
            output.say(figures(reply, round_trip_ms))
        return reply

    @staticmethod
    def hear(answers: Iterator[Answer]) -> Reply:
        """The reply that ends an answer, of which nothing is printed yet."""
        *_, reply = answers
        assert isinstance(reply, Reply), "an exchange ends in a reply or an error"
        return reply

    def print_line(self, outcome: Outcome) -> None:
        """Print what came of one line of stdin, as one line: an answer's newlines become spaces."""
        line, answer = outcome.line, outcome.answer
        if isinstance(answer, PeerFailed):
            output.say(f"ask-model: line {line}: {answer}")
        if self._as_json:
            output.write_json(_as_json(outcome))
        else:
            output.write_text(make_line(answer.content if isinstance(answer, Reply) else "") + "\n")
        if isinstance(answer, Reply):
            if self._show_thinking and answer.thinking:
                output.say(f"line {line}: {answer.thinking}")
            if self._verbose:
                output.say(f"line {line}: {figures(answer, outcome.round_trip_ms)}")


def _as_json(outcome: Outcome) -> Answered | Unanswered:
    line, question, answer = outcome.line, outcome.question, outcome.answer
    if isinstance(answer, Reply):
        return replace(Answered.of(answer, outcome.round_trip_ms), line=line, question=question)
    if answer is None:
        return Unanswered(line, question)
    return Unanswered(line, question, str(answer), answer.reason)


def figures(reply: Reply, round_trip_ms: float) -> str:
    """How long an answer took, and how many tokens, in a line."""
    parts = [f"round trip {round_trip_ms:.1f} ms"]
    if reply.timing and reply.timing.first_token_ms is not None:
        parts.append(f"first token {reply.timing.first_token_ms:.1f} ms")
    if reply.timing and reply.timing.tokens_per_second:
        parts.append(f"{reply.timing.tokens_per_second:.0f} tokens/s")
    if reply.usage:
        cached = reply.usage.cached_tokens
        read = f" ({cached} read before)" if cached is not None else ""
        parts.append(f"{reply.usage.prompt_tokens}{read} + {reply.usage.completion_tokens} tokens")
    return ", ".join(parts)
