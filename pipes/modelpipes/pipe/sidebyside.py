"""Many messages to one member, each alone: one after the other, or several at a time through the same two pipes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

from msgspec import Struct

from modelpipes.errors import DeadlineError, PeerError, PeerFailed
from modelpipes.pipe.asker import Asker, failed
from modelpipes.pipe.message import Failure, Reply, Say

MOST = 64  # at a time: more than a member lets wait would be refused


class Outcome(Struct, frozen=True):
    """What came of question number `line`, from 1: a reply, why there is none, or None for one that was empty."""

    line: int
    question: str
    answer: Reply | PeerFailed | None = None
    round_trip_ms: float = 0.0


class _Asked(Struct, frozen=True):
    line: int
    question: str
    began_s: float

    def ends(self, answer: Reply | PeerFailed) -> Outcome:
        return Outcome(self.line, self.question, answer, round((time.perf_counter() - self.began_s) * 1000, 3))


class Questions(Protocol):
    """Where questions come from, in time."""

    @property
    def fd(self) -> int:
        """Can be read when there may be more."""

    @property
    def is_over(self) -> bool:
        """Will there be no more?"""

    def take(self, *, waits: bool) -> list[str]:
        """What has come; with `waits`, once something has, or it is over. DeadlineError where that takes too long."""


class SideBySide(Asker):
    """An asker whose seat has several messages in work at a time. `with` holds the lock and both pipes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun: dict[str | None, tuple[Say, float]] = {}

    def begin(self, say: Say) -> None:
        """Ask; PeerGone where the member dies or leaves, DeadlineError."""
        self._begun[say.id] = say, self._note_asked(say)
        self.connect().send(self.to, say, self._quiet)

    def close(self) -> None:
        for say, began_s in self._begun.values():
            self._note_end(say, began_s, None, None)
        self._begun.clear()
        super().close()

    def watch(self, fd: int, *, is_wanted: bool) -> None:
        """Have `ends` tell when a descriptor can be read, or no longer."""
        self._endpoint.unwatch(fd)
        if is_wanted:
            self._endpoint.watch(fd)

    def ends(self) -> Generator[Reply | Failure | None]:
        """The ends of what was begun, as they come; None when a watched descriptor can be read."""
        for item in self._heard(self._begun):
            if isinstance(item, Reply | Failure):
                say, began_s = self._begun.pop(item.reply_to)
                reply, why = (item, None) if isinstance(item, Reply) else (None, failed(item))
                self._note_end(say, began_s, reply, why)
                yield item
            elif item is None:
                yield None


def ask_each(
    questions: Questions, open_asker: Callable[[], SideBySide], say: Callable[[str], Say], at_a_time: int
) -> Iterator[Outcome]:
    """Ask each question as it comes, so many at a time, and yield what came of it, as it comes.

    The seat is locked for each exchange, or while several are asked. A question that fails does not end it; what else
    goes wrong does, after that was told of all that had been taken.
    """
    waiting: deque[_Asked] = deque()
    count = 0

    def take(*, waits: bool) -> Iterator[Outcome]:
        nonlocal count
        for question in questions.take(waits=waits):
            count += 1
            if question.strip():
                waiting.append(_Asked(count, question, time.perf_counter()))
            else:
                yield Outcome(count, question)

    while waiting or not questions.is_over:
        if not waiting:
            yield from take(waits=True)
            continue
        asked: dict[str | None, _Asked] = {}
        try:
            with open_asker() as asker:
                ends = asker.ends()
                is_begun = False
                while asked or not is_begun or (waiting and at_a_time > 1):
                    is_begun = True
                    while waiting and len(asked) < at_a_time:
                        one = waiting.popleft()
                        message = say(one.question)
                        asked[message.id] = _Asked(one.line, one.question, time.perf_counter())
                        asker.begin(message)
                    asker.watch(questions.fd, is_wanted=not questions.is_over and len(asked) < at_a_time)
                    end = next(ends)
                    if end is None:
                        yield from take(waits=False)
                    else:
                        yield asked.pop(end.reply_to).ends(failed(end) if isinstance(end, Failure) else end)
        except (PeerError, DeadlineError) as error:
            for one in (*asked.values(), *waiting):
                yield one.ends(PeerFailed(str(error), "leaving"))
            raise


def in_order(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same in the order of the questions: who is done too early waits."""
    early: dict[int, Outcome] = {}
    expected = 1
    for outcome in outcomes:
        early[outcome.line] = outcome
        while expected in early:
            yield early.pop(expected)
            expected += 1
