"""Lead a conversation of several members: who speaks, what they are told, when it ends.

The transcript is the truth. A member that died and came back, or knows too little, is told again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from modelpipes.chat.guest import Guest
from modelpipes.chat.moderator import Moderator, reason_of
from modelpipes.chat.retelling import Retelling, save
from modelpipes.chat.telling import cast_of, tell, turn_of
from modelpipes.chat.transcript import VERSION, Choice, Header, Transcript, Turn, moment
from modelpipes.chat.turns import (
    DEFAULT_ROUNDS,
    END_WORD,
    RoundRobin,
    StopRules,
    TurnTaking,
)
from modelpipes.chat.voices import LEAVING_S
from modelpipes.errors import Cancelled, DeadlineError, PeerError, PipesError, UsageError
from modelpipes.pipe.asker import SILENCE_S, Asker
from modelpipes.pipe.log import NO_LOG, Log
from modelpipes.pipe.message import Delta, Phase, Progress, Reply, Say, new_id
from modelpipes.pipe.room import HUB, Room
from modelpipes.values.deadline import Deadline

RETRY_PAUSE_S = 0.1  # before a turn that failed is asked for again: what was busy or broken may not be any more


class _Left(Exception):
    """A guest has left; says who."""


class _Unsaid(Exception):
    """Nothing was said in a turn: a person wished something else, or stopped an answer before its first word."""


class _Over(Exception):
    """The moderator has ended the conversation."""


class Listener(Protocol):
    """Who watches a conversation as it happens; a subclass has the methods that it wants."""

    # Each returns in so many words, as a type checker takes a method without a body for an abstract one.

    def starts(self, speaker: str, turn: int) -> None:
        """A member is about to speak; said again where it begins anew, and what came before does not count."""
        return

    def waits(self, speaker: str, phase: Phase) -> None:
        """The member shows life, and what it does; said about every second until it speaks, and after."""
        return

    def says(self, content: str, thinking: str) -> None:
        """A piece of what the member says or thinks."""
        return

    def ends(self, turn: Turn) -> None:
        """The turn is whole and in the transcript."""
        return

    def notes(self, line: str) -> None:
        """Something that a person who takes part should know."""
        return

    def chose(self, choice: Choice) -> None:
        """Who speaks next was chosen; it is in the transcript."""
        return


class _Nobody(Listener):
    """Nobody watches."""


def _give_up(seat: str, why: PeerError, limit: Deadline) -> None:
    raise why


class Conversation:
    """A conversation among seats of a room, led from one seat, written to one transcript.

        talk = Conversation(room, ["alice", "bob"], rules=StopRules(rounds=3))
        talk.lead("Hello.")
        for turn in talk.turns:
            print(f"{turn.sender}: {turn.content}")

    The seats are taken by others: `Seating`, or attach-model. To be kept, it wants a `Transcript` in a file.
    """

    def __init__(
        self,
        room: Room,
        members: Sequence[str],
        transcript: Transcript | None = None,
        listener: Listener | None = None,
        *,
        taking: TurnTaking | None = None,
        rules: StopRules | None = None,
        hub: str = HUB,
        moderator: str | None = None,
        moderator_speaks: bool = False,
        silence_s: float | None = SILENCE_S,
        limit: Deadline | None = None,
        retries: int = 2,
        bring_back: Callable[[str, PeerError, Deadline], None] | None = None,
        guests: Collection[str] = (),
        log: Log = NO_LOG,
        guest: Guest | None = None,
    ) -> None:
        """Nothing is said yet. What is not given: all turns are kept in memory and in no file, nobody listens,
        the members speak in their order, ten rounds are led, without a limit in time.

        `silence_s` is the longest silence of a member, in seconds (None: any); a turn that failed is asked for again
        `retries` times. `bring_back(seat, why, limit)` returns when a member that was lost is there again, or raises
        (`Seating.bring_back` does; else the loss ends the talk). A moderator is asked who speaks next, and may end the
        talk; `taking` decides where it names nobody, and nobody is passed over more often in a row than twice the
        number of those who speak, of whom it is none unless `moderator_speaks`. A guest is a member who may take any
        time, and may leave, which ends the conversation. `guest` is the one at the line editor, whose wishes are
        fulfilled, and who may stop an answer.
        """
        if moderator is not None and moderator not in members:
            raise UsageError(f"the moderator {moderator} is no member of this conversation")
        self.room = room
        self.members = tuple(members)
        self.hub = hub
        if transcript is None:
            header = Header(
                VERSION,
                new_id(),
                self.members,
                at=moment(),
                moderator=moderator or "",
                debates=moderator_speaks or not moderator,
            )
            transcript = Transcript.unwritten(header)
        self._transcript = transcript
        self._listener = listener or _Nobody()
        self._speaking = tuple(name for name in members if moderator_speaks or name != moderator)
        self._taking = taking or RoundRobin(self._speaking)
        self._rules = rules or StopRules(rounds=DEFAULT_ROUNDS)
        self._moderator = moderator and Moderator(
            moderator, self._speaking, self._taking, hub, self._asker, partial(self._return_of, moderator)
        )
        self._silence_s = silence_s
        self._limit = limit or Deadline.never()
        self._retries = retries
        self._bring_back = bring_back or _give_up
        self._guests = guests
        self._log = log
        self._guest = guest
        self._told = Retelling(self._transcript)
        self._called: str | None = None  # who speaks next, whoever's turn it were
        self._systems: dict[str, str] = {}  # system texts that a person gave
        self._known = {seat: self._transcript.known_by(seat) for seat in members}
        self._sat = {seat: room.sitting(seat).pid for seat in members}  # who was last seen there

    @property
    def id(self) -> str:
        """Of the conversation, as its transcript has it."""
        return self._transcript.header.id

    @property
    def turns(self) -> Sequence[Turn]:
        """All turns until now, turn 0 being the opening; FileError where the transcript cannot be read again."""
        return self._transcript.after(-1)

    def lead(self, opening: str | None) -> str:
        """Lead until a stop condition holds; which: "rounds", "stop-word", "max-seconds", "moderator" or "bob left".

        The hub says the opening, unless something was said before; where there is none, a guest opens, or who is first.
        Raises PeerError where a member is lost for good, DeadlineError where one is silent, RoomError where a seat has
        no pipes, FileError where a turn cannot be written; the turns before are in the transcript.
        """
        try:
            if self._transcript.last < 0 and opening is not None:
                self._record(Turn(0, self.hub, opening, at=moment()))
            while not (why := self._why_stop()):
                try:
                    self._take_turn(self._next_speaker())
                except _Unsaid:
                    self._fulfil_wishes()
        except _Left as left:
            why = f"{left} left"
        except _Over:
            why = "moderator"
        except (PeerError, DeadlineError):
            if not self._limit.has_passed():
                raise
            why = "max-seconds"
        self._transcript.end(why)
        return why

    def _why_stop(self) -> str | None:
        last = next(iter(self._newest(1)), None)
        spoken = self._transcript.last + (self._transcript.opener in self.members)
        why = self._rules.why_stop(last, spoken, len(self._speaking))
        return why or ("max-seconds" if self._limit.has_passed() else None)

    def _fulfil_wishes(self) -> None:
        for wish in self._guest.wishes() if self._guest else ():
            if wish.kind == "retry":
                self._try_again()
            elif wish.kind == "system":
                self._listener.notes(self._set_system(wish.text))
            elif wish.kind == "save":
                try:
                    self._listener.notes(save(wish.text, self._transcript.header, self.turns))
                except PipesError as e:
                    self._listener.notes(str(e))

    def _try_again(self) -> None:
        """Forget what was said since the person spoke, and have it said again."""
        turns = self.turns
        last = max((turn.turn for turn in turns if turn.sender in self._guests), default=-1)
        later = [turn for turn in turns if turn.turn > last]
        if last < 0:
            self._listener.notes("there is no answer yet that could be given again")
        elif not later:
            self._called = self._taking.next(self._transcript.last + 1, self._transcript.speakers)
        else:
            self._take_back(last + 1)
            self._called = later[0].sender

    def _take_back(self, first: int) -> None:
        """From now on nobody is told what was said from this turn on."""
        self._told.take_back(first)
        self._known = dict.fromkeys(self._known, -1)

    def _set_system(self, text: str) -> str:
        """Tell the models something else first; what to say of it."""
        name, is_one, rest = text.partition("=")
        if is_one and name in self.members:
            self._systems[name] = rest
            return f"{name} is told so first, from now on"
        self._systems = dict.fromkeys(self.members, text)
        return f"the models are told {'so' if text else 'nothing'} first, from now on"

    def _next_speaker(self) -> str:
        if self._called:
            called, self._called = self._called, None
            return called
        if self._transcript.last < 0 and self._guests:
            return next(iter(self._guests))  # a conversation without an opening begins with what the guest says
        if not self._moderator:
            return self._taking.next(self._transcript.last + 1, self._transcript.speakers)
        choice = self._transcript.choice  # there already where a leader died before the turn
        if choice is None:
            choice = self._moderator.choose(self._transcript)
            self._transcript.choose(choice)
        self._listener.chose(choice)
        if choice.chose == END_WORD:
            raise _Over
        return choice.chose

    def _return_of(self, seat: str, lost: PeerError) -> None:
        """Wait for one that was lost to be there again; raises as `bring_back`."""
        self._see_off(seat)
        self._bring_back(seat, lost, self._limit)

    def _newest(self, count: int) -> Sequence[Turn]:
        return self._transcript.after(self._transcript.last - count)

    def _asker(self, seat: str, stop_fd: int = -1) -> Asker:
        was_seated = self._sat[seat] is not None
        self._sat[seat] = self.room.sitting(seat).pid or self._sat[seat]
        silence_s = None if seat in self._guests else self._silence_s
        return Asker(
            self.room,
            self.hub,
            seat,
            silence_s=silence_s,
            limit=self._limit,
            was_seated=was_seated,
            stop_fd=stop_fd,
            log=self._log,
        )

    def _take_turn(self, seat: str) -> None:
        number = self._transcript.last + 1
        asked_id = new_id()  # the same for every try: a member that has the answer already gives it again
        failed: PeerError | None = None
        for tries_left in range(self._retries, -1, -1):
            try:
                if failed:
                    self._mend(seat, failed)
                self._record(self._ask(seat, number, asked_id))
                return
            except PeerError as error:
                reason = reason_of(error)
                if seat in self._guests and reason in ("leaving", "voice"):
                    raise _Left(seat) from None
                if reason == "too-large" and self._ask_for_less(error):
                    return
                if not tries_left or reason == "too-large" or error is failed:
                    raise
                failed = error

    def _ask_for_less(self, refusal: PeerError) -> bool:
        """Where the words of a person do not fit, they are asked for others; False where they were not a person's."""
        last = next(iter(self._newest(1)), None)
        if not last or last.sender not in self._guests:
            return False
        self._listener.notes(f"{refusal}; your last message is taken back")
        self._take_back(last.turn)
        self._called = last.sender
        return True

    def _mend(self, seat: str, failed: PeerError) -> None:
        """Do what makes another try worth it; raises `failed` itself where nothing does."""
        if reason_of(failed) == "leaving":
            self._return_of(seat, failed)
        else:
            time.sleep(min(RETRY_PAUSE_S, self._limit.remaining_s()))

    def _ask(self, seat: str, number: int, asked_id: str) -> Turn:
        self._listener.starts(seat, number)
        said: list[str] = []
        try:
            with self._stoppable(seat) as stop_fd, self._asker(seat, stop_fd) as asker:
                reply = self._hear(asker, self._say_to(seat, asked_id), said)
        except DeadlineError:
            if self._limit.has_passed() and any(said):  # what was said until then was said
                self._record(Turn(number, seat, "".join(said), "timeout", at=moment()))
            raise
        except Cancelled:
            self._called = next(iter(self._guests), None)  # who stops an answer has something to say
            if not any(said):
                self._listener.notes(f"{seat} was stopped before its first word")
                raise _Unsaid from None
            return Turn(number, seat, "".join(said), "cancelled", at=moment())
        if seat in self._guests and reply.stop == "cancelled":
            raise _Unsaid
        self._known[seat] = self._told.next
        return turn_of(number, reply)

    def _say_to(self, seat: str, asked_id: str) -> Say:
        cast = cast_of(seat, self._transcript.header, self._transcript.opener)
        return Say(
            asked_id,
            self.hub,
            seat,
            conversation=self._told.id,
            turn=self._told.next,
            cast=cast,
            system=self._systems.get(seat),
        )

    def _hear(self, asker: Asker, say: Say, said: list[str]) -> Reply:
        """The reply; what comes of it before is `said`."""
        for answer in tell(asker, say, self._told.after, self._known[say.to]):
            if isinstance(answer, Delta):
                if answer.anew:
                    said.clear()
                    self._listener.starts(say.to, self._transcript.last + 1)
                said.append(answer.content)
                self._listener.says(answer.content, answer.thinking)
            elif isinstance(answer, Progress):
                self._listener.waits(say.to, answer.phase)
            else:
                return answer
        raise AssertionError("an exchange ends in a reply or an error")

    @contextmanager
    def _stoppable(self, seat: str) -> Iterator[int]:
        """Within, the person may stop the answer of a seat: the descriptor can then be read; -1 where nobody may."""
        if self._guest is None or seat in self._guests:
            yield -1
            return
        stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with self._guest.answering(lambda: os.eventfd_write(stop_fd, 1)):
                yield stop_fd
        finally:
            os.close(stop_fd)

    def _see_off(self, seat: str) -> None:
        """Wait for a member that is leaving to be gone."""
        self.room.wait_for_leaving(seat, self._sat[seat], Deadline.after(LEAVING_S).earlier(self._limit))

    def _record(self, turn: Turn) -> None:
        self._transcript.append(turn)
        self._listener.ends(turn)
