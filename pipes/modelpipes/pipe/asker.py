"""One exchange with a member: take the turn to ask, open both pipes, speak, hear the answer out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container, Generator
from typing import Self, TypeAlias

from modelpipes.errors import Cancelled, DeadlineError, PeerFailed, PeerGone, PipesError, RoomError, UsageError
from modelpipes.lockfile import Lock
from modelpipes.pipe import fifo
from modelpipes.pipe.endpoint import CHECK_S, Arrival, Endpoint, Lost, Readable
from modelpipes.pipe.log import NO_LOG, Log
from modelpipes.pipe.message import Bye, Cancel, Delta, Failure, Progress, Reply, Say, new_id
from modelpipes.pipe.room import HUB, Room, check_seat
from modelpipes.values.deadline import Deadline

Answer: TypeAlias = Progress | Delta | Reply

SILENCE_S = 30.0  # longest silence of a member, where nobody says otherwise

_NOW = Deadline(0.0)


def ask(
    seat: str,
    text: str,
    *,
    room: Room | str | None = None,
    sender: str = HUB,
    timeout_s: float | None = SILENCE_S,
    max_seconds: float | None = None,
) -> Reply:
    """Send one message to a seat and return its reply, whole; it stands alone, nothing is remembered.

        reply = ask("bob", "What is 3 and 4?", room="talk", max_seconds=60)
        print(reply.content, reply.stop, reply.usage, reply.timing)

    `room` is a Room, or its directory; None: $PIPE_DIR, else the default room. `sender` is the seat that asks.
    `timeout_s` bounds the member's silence and `max_seconds` the whole, waiting for others who ask from the same seat
    included; both in seconds, None: no bound. For the pieces of an answer as they come there is `Asker`.

    Raises UsageError for an empty message, a name that no seat can have, or a bound that is not above 0; RoomError
    where there is no such room or seat; MessageError where the message cannot travel; PeerGone where the member died
    or left; PeerFailed, with its `reason`, where it has no answer; DeadlineError.
    """
    for name, bound_s in (("timeout_s", timeout_s), ("max_seconds", max_seconds)):
        if bound_s is not None and not bound_s > 0:
            raise UsageError(f"{name} is {bound_s:g}: give seconds above 0, or None for no bound")
    if not text.strip():
        raise UsageError("the message is empty")
    if not isinstance(room, Room):
        room = Room.open(room)
    require_pipes(room, sender, seat)
    limit = Deadline.after(max_seconds)
    with Asker(room, sender, seat, silence_s=timeout_s, limit=limit) as asker:
        *_, reply = asker.ask(Say(new_id(), sender, seat, text))
    assert isinstance(reply, Reply)  # an exchange ends in a reply or an error
    return reply


def require_pipes(room: Room, sender: str, to: str) -> None:
    """Raise RoomError, saying what is missing, unless `sender` can ask `to` there; UsageError where one is no seat."""
    room.require(to)
    if (to, check_seat(sender)) not in room.pipes():
        raise RoomError(
            f"{room.path}: no pipes between {sender} and {to}; add them with setup-pipes {to} --hub {sender}"
        )


class Asker:
    """A seat that speaks to one member and hears its answer. `with` holds the asker's lock and both pipes.

    `silence_s` bounds how long the member may show no life, `limit` the whole exchange; None and
    Deadline.never() do not bound. A member that `was_seated` is not waited for where its seat is empty. Once the
    descriptor `stop_fd` can be read, nobody wants the answer any more. `log` is told of the beginning and the end of
    each exchange.
    """

    def __init__(
        self,
        room: Room,
        seat: str,
        to: str,
        *,
        silence_s: float | None,
        limit: Deadline,
        was_seated: bool = False,
        stop_fd: int = -1,
        log: Log = NO_LOG,
    ) -> None:
        self.room = room
        self.seat = seat
        self.to = to
        self._stop_fd = stop_fd
        self.ignored = 0  # lines that answered nobody here: plain, unreadable, or meant for a predecessor
        self._silence_s = silence_s
        self._limit = limit
        self._was_seated = was_seated
        self._log = log
        self._quiet = Deadline.after(silence_s).earlier(limit)
        self._endpoint = Endpoint(room, seat)
        self._lock: Lock | None = None

    def __enter__(self) -> Self:
        for pipe in ((self.seat, self.to), (self.to, self.seat)):
            fifo.check(self.room.pipe(*pipe))  # before the lock file is made, which would outlive a room that is gone
        try:
            self._lock = self.room.take(self.room.asker_lock(self.seat, self.to), self._quiet)
            self._lock.write(f"{os.getpid()}\n".encode())
            self._endpoint.listen(self.to)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both pipes, which stops the member's work for us, then let the next asker in."""
        self._endpoint.close()
        if self._lock:
            if self.room.keeps_asker_locks:
                self._lock.clear()
            else:
                self._lock.remove()
            self._lock.release()
        self._lock = None

    def connect(self) -> Endpoint:
        """Wait until the member reads what we send; the endpoint, for what is no exchange of words."""
        self._endpoint.connect(self.to, self._quiet, was_taken=self._was_seated)
        return self._endpoint

    def ask(self, say: Say) -> Generator[Answer]:
        """Speak, then yield what comes of it: progress and deltas as they come, at last the reply.

        Raises PeerGone where the member dies or leaves, PeerFailed for its failure, DeadlineError, and Cancelled where
        the answer is not wanted any more. An iteration that is broken off cancels the answer.
        """
        return self._ask_noting(say) if self._log.is_on else self._ask(say)

    def _ask_noting(self, say: Say) -> Generator[Answer]:
        reply, why = None, None
        began_s = self._note_asked(say)
        try:
            with contextlib.closing(self._ask(say)) as answers:
                for answer in answers:
                    reply = answer if isinstance(answer, Reply) else None
                    yield answer
        except Cancelled:
            raise
        except PipesError as error:
            why = error
            raise
        finally:  # who asked may leave it at the reply
            self._note_end(say, began_s, reply, why)

    def _note_asked(self, say: Say) -> float:
        """Tell the log; when that was."""
        self._log.note(self.seat, "asked", id=say.id, to=self.to, turn=say.turn, content=say.words)
        return time.monotonic()

    def _note_end(self, say: Say, began_s: float, reply: Reply | None, why: PipesError | None) -> None:
        ms = (time.monotonic() - began_s) * 1000
        what = "heard" if reply else "failed" if why else "cancelled"
        content, stop = (reply.content, reply.stop) if reply else (None, None)
        because = str(why) if why else None
        self._log.note(
            self.seat, what, id=say.id, by=self.to, turn=say.turn, content=content, ms=ms, stop=stop, why=because
        )

    def _ask(self, say: Say) -> Generator[Answer]:
        self.connect().send(self.to, say, self._quiet)
        is_over = False
        if self._stop_fd >= 0:
            self._endpoint.watch(self._stop_fd)
        try:
            for answer in self._answers(say.id):
                is_over = isinstance(answer, Reply)
                yield answer
                if is_over:
                    return
        except (PeerGone, PeerFailed):
            is_over = True
            raise
        finally:
            if not is_over:
                self._cancel(say.id)

    def _answers(self, asked_id: str) -> Generator[Answer]:
        for item in self._heard((asked_id,)):
            if item is None:
                raise Cancelled("the answer is not wanted any more")
            if isinstance(item, Failure):
                raise failed(item)
            yield item

    def _heard(self, asked: Container[str | None]) -> Generator[Answer | Failure | None]:
        """What comes of the messages asked under these ids; None where a watched descriptor can be read."""
        self._heard_life()
        check, has_gone = Deadline.after(CHECK_S), False
        while True:
            event = self._endpoint.receive(_NOW if has_gone else self._quiet.earlier(check))
            if check.has_passed():
                check = Deadline.after(CHECK_S)
                if self._endpoint.refresh():
                    path = self.room.pipe(self.to, self.seat)
                    raise RoomError(f"{path}: the pipe was removed; run setup-pipes again")
            if isinstance(event, Lost):
                has_gone = True  # what it said before it went is still in our pipe
            elif isinstance(event, Arrival):
                if item := self._answer_in(event, asked):
                    yield item
                    self._heard_life()  # only now: while the answer was being used, nobody listened
            elif isinstance(event, Readable):
                yield None
            elif has_gone:
                raise self._endpoint.gone(self.to)
            if self._quiet.has_passed():  # also between answers that come too fast to ever wait for one
                raise self._too_late()

    def _answer_in(self, event: Arrival, asked: Container[str | None]) -> Answer | Failure | None:
        """The part of an answer that came; None where the line is none of ours."""
        item = event.item
        if isinstance(item, (Progress, Delta, Reply, Failure)) and item.reply_to in asked:
            return item
        if isinstance(item, Bye):
            raise PeerGone(f"{self.to} has left; seat it again with attach-model")
        self.ignored += 1  # also a failure that names no message: a dead predecessor's half line had no readable id
        return None

    def _heard_life(self) -> None:
        self._quiet = Deadline.after(self._silence_s).earlier(self._limit)

    def _too_late(self) -> DeadlineError:
        if self._limit.has_passed():
            return DeadlineError(f"{self.to} did not finish within the time allowed (--max-seconds)")
        return DeadlineError(f"{self.to} showed no life for {self._silence_s:g} s (--timeout)")

    def _cancel(self, asked_id: str) -> None:
        self._endpoint.post(self.to, Cancel(asked_id, self.seat, self.to))  # where it does not fit, our going tells it


def failed(failure: Failure) -> PeerFailed:
    """A member's failure as the error that it is."""
    return PeerFailed(f"{failure.sender}: {failure.detail or failure.reason}", failure.reason, failure.have)
