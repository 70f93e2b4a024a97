"""Many messages to one member, each alone: one after the other, or several at a time through the same two pipes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

from msgspec import Struct

from modelpipes.errors import DeadlineError, MessageError, PeerError, PeerFailed, Reason, RoomError
from modelpipes.pipe.asker import Asker, failed
from modelpipes.pipe.message import Failure, Reply, Say

MOST = 64  # at a time: more than a member lets wait would be refused
BUSY_S = 0.1  # before a member is asked again that works for others only: an answer of theirs takes longer


class Outcome(Struct, frozen=True):
    """What came of question number `line`, from 1: a reply, why there is none, or None for one that was empty."""

    line: int
    question: str
    answer: Reply | PeerFailed | None = None
    round_trip_ms: float = 0.0


class Unfit(Struct, frozen=True):
    """What came in place of a question and cannot be asked, and why not; `shown` is what can be shown of it."""

    shown: str
    why: str
    reason: Reason


class _Asked(Struct, frozen=True):
    line: int
    question: str
    began_s: float = 0.0  # when it was first asked; 0: not yet

    def ends(self, answer: Reply | PeerFailed) -> Outcome:
        round_trip_s = time.perf_counter() - self.began_s if self.began_s else 0.0
        return Outcome(self.line, self.question, answer, round(round_trip_s * 1000, 3))


class Questions(Protocol):
    """Where questions come from, in time."""

    @property
    def fd(self) -> int:
        """Can be read when there may be more."""

    @property
    def is_over(self) -> bool:
        """Will there be no more?"""

    def take(self, *, waits: bool) -> Sequence[str | Unfit]:
        """What has come; with `waits`, once something has, or it is over. DeadlineError where that takes too long."""


class SideBySide(Asker):
    """An asker whose seat has several messages in work at a time. `with` holds the lock and both pipes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun: dict[str | None, tuple[Say, float]] = {}

    def begin(self, say: Say) -> None:
        """Ask; PeerGone where the member dies or leaves, DeadlineError, MessageError for what cannot travel."""
        began_s = self._note_asked(say)
        self._begun[say.id] = say, began_s
        try:
            self.connect().send(self.to, say, self._quiet)
        except MessageError as error:
            del self._begun[say.id]
            self._note_end(say, began_s, None, error)
            raise

    def may_ask_again(self, since_s: float) -> bool:
        """Is what the member was too busy for, since then on the performance counter, still worth asking?"""
        return self._silence_s is None or time.perf_counter() - since_s < self._silence_s

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

    The seat is locked for each exchange, or while several are asked. A question that fails, or cannot be one, does not
    end it; what else goes wrong does, after that was told of all that had been taken. A member that is too busy is
    asked again, for as long as it may be silent.
    """
    return _Batch(questions, open_asker, say, at_a_time).outcomes()


class _Batch:
    """The questions that were taken and have no end yet: those that wait, and those that are asked."""

    def __init__(
        self, questions: Questions, open_asker: Callable[[], SideBySide], say: Callable[[str], Say], at_a_time: int
    ) -> None:
        self._questions = questions
        self._open_asker = open_asker
        self._say = say
        self._at_a_time = at_a_time
        self._at_once = at_a_time  # fewer where the member was too busy for as many
        self._waiting: deque[_Asked] = deque()
        self._asked: dict[str | None, _Asked] = {}
        self._count = 0

    def outcomes(self) -> Iterator[Outcome]:
        while self._waiting or not self._questions.is_over:
            if not self._waiting:
                yield from self._take(waits=True)
                continue
            try:
                with self._open_asker() as asker:
                    yield from self._exchange(asker)
            except (PeerError, DeadlineError, RoomError) as error:
                why = PeerFailed(str(error), "silent" if isinstance(error, DeadlineError) else "leaving")
                for one in (*self._asked.values(), *self._waiting):
                    yield one.ends(why)
                raise

    def _take(self, *, waits: bool) -> Iterator[Outcome]:
        for question in self._questions.take(waits=waits):
            self._count += 1
            if isinstance(question, Unfit):
                yield Outcome(self._count, question.shown, PeerFailed(question.why, question.reason))
            elif question.strip():
                self._waiting.append(_Asked(self._count, question))
            else:
                yield Outcome(self._count, question)

    def _exchange(self, asker: SideBySide) -> Iterator[Outcome]:
        """One question, or as many as there are where several are asked at a time."""
        ends = asker.ends()
        is_begun = False
        while self._asked or not is_begun or (self._waiting and self._at_a_time > 1):
            is_begun = True
            yield from self._begin(asker)
            if not self._asked:
                continue
            takes_more = not self._questions.is_over and not self._waiting and len(self._asked) < self._at_once
            asker.watch(self._questions.fd, is_wanted=takes_more)
            end = next(ends)
            if end is None:
                yield from self._take(waits=False)
                continue
            one = self._asked.pop(end.reply_to)
            if isinstance(end, Failure) and end.reason == "busy" and asker.may_ask_again(one.began_s):
                self._put_off(one)
                is_begun = bool(self._asked)
            else:
                self._at_once = min(self._at_once + 1, self._at_a_time)
                yield one.ends(failed(end) if isinstance(end, Failure) else end)

    def _begin(self, asker: SideBySide) -> Iterator[Outcome]:
        """Ask as many as there is room for."""
        while self._waiting and len(self._asked) < self._at_once:
            one = self._waiting[0]
            message = self._say(one.question)
            self._asked[message.id] = one = _Asked(one.line, one.question, one.began_s or time.perf_counter())
            self._waiting.popleft()
            try:
                asker.begin(message)
            except MessageError as error:
                yield self._asked.pop(message.id).ends(PeerFailed(str(error), "too-large"))

    def _put_off(self, one: _Asked) -> None:
        """The member has no room for it now: once one of ours is answered, or after a while."""
        self._waiting.appendleft(one)
        self._at_once = max(1, len(self._asked))
        if not self._asked:
            time.sleep(BUSY_S)


def in_order(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same in the order of the questions: who is done too early waits."""
    early: dict[int, Outcome] = {}
    expected = 1
    for outcome in outcomes:
        early[outcome.line] = outcome
        while expected in early:
            yield early.pop(expected)
            expected += 1
