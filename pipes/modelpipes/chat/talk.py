"""A whole talk from its description: the room made, the members seated, the conversation led, all of it removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from modelpipes.chat.conversation import Conversation, Listener
from modelpipes.chat.person import seated_person
from modelpipes.chat.seating import PATIENCE_S, Seating, say_nothing
from modelpipes.chat.telling import who_hears_names
from modelpipes.chat.transcript import VERSION, Header, Transcript, moment
from modelpipes.chat.turns import DEFAULT_ROUNDS, Random, RoundRobin, StopRules
from modelpipes.chat.voices.loading import Show, show_nothing
from modelpipes.errors import UsageError
from modelpipes.pipe.asker import SILENCE_S
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.log import NO_LOG, Log
from modelpipes.pipe.message import new_id
from modelpipes.pipe.room import HUB, About, Room, star
from modelpipes.values.deadline import Deadline

Taking: TypeAlias = Literal["round-robin", "random", "moderator"]
Labels: TypeAlias = Literal["auto", "always", "never"]


class Talk(Struct, frozen=True, kw_only=True):
    """Who talks, seated how, led how, written where.

    A member that is neither seated here nor the person at the terminal sits already, in the room that `directory`
    names. Where nobody does and none is named, a room is made for this talk.
    """

    members: tuple[str, ...]
    commands: Mapping[str, Sequence[str]] = {}  # of those to be seated: what attach-model is given
    voices: Mapping[str, str] = {}  # of those and of the person: as the transcript has it
    passing: Sequence[str] = ()  # those whose server ends with us: who resumes has to name them again
    person: str | None = None
    directory: str | None = None
    taking: Taking = "round-robin"
    seed: int = 0  # of who speaks at random
    moderator: str | None = None
    moderator_speaks: bool = False
    has_opening: bool = True  # the hub says one; else the first to speak opens
    labels: Mapping[str, Labels] = {}  # who is told names before the words of others; who is not here: "auto"
    rules: StopRules = StopRules(DEFAULT_ROUNDS)
    transcript: str | None = None  # a file
    is_resumed: bool = False
    silence_s: float | None = SILENCE_S  # of a member; None: any
    patience_s: float = PATIENCE_S  # for a member that somebody else seated, and that died
    limit_s: float | None = None  # of the talk, once all are seated
    retries: int = 2

    @property
    def joined(self) -> list[str]:
        """Those who sit already, seated by somebody else."""
        return [name for name in self.members if name not in self.commands and name != self.person]

    def header(self, abouts: Mapping[str, About] = {}, voices: Mapping[str, str] = {}) -> Header:
        """What a transcript of it begins with; `abouts` and `voices` as its members told."""
        rules = self.rules
        settings = {"turns": self.taking, "seed": self.seed, "rounds": rules.rounds, "stop_word": rules.stop_word}
        silent = "" if self.moderator_speaks or not self.moderator else self.moderator
        auto = who_hears_names(self.members, silent, HUB if self.has_opening else "")
        told = {name: self.labels.get(name, "auto") for name in self.members}
        return Header(
            VERSION,
            new_id(),
            self.members,
            {name: self.voices.get(name) or voices.get(name, "") for name in self.members},
            settings,
            at=moment(),
            abouts=dict(abouts),
            commands={name: tuple(it) for name, it in self.commands.items() if name not in self.passing},
            labels=tuple(n for n in self.members if told[n] == "always" or (told[n] == "auto" and n in auto)),
            person=self.person or "",
            moderator=self.moderator or "",
            debates=self.moderator_speaks or not self.moderator,
        )


@contextlib.contextmanager
def prepared(
    talk: Talk,
    listener: Listener | None = None,
    report: Callable[[str], None] = say_nothing,
    show: Show = show_nothing,
    log: Log = NO_LOG,
) -> Iterator[Conversation]:
    """The conversation, ready to be led; at the end its members are ended, and what was made of the room is removed.

        with prepared(Talk(members=("alice", "bob"), commands={"alice": [...], "bob": [...]})) as conversation:
            conversation.lead("Hello.")

    `report` is told in a line when a member is waited for or seated again, and when others may read the transcript;
    `show` how far a member is that loads, as `Seating` has it. `log` has what is asked, and heard.
    Raises RoomError, UsageError, FileError for the transcript, and what `Seating.seat` raises.
    """
    with contextlib.ExitStack() as stack:
        room = stack.enter_context(_room_of(talk))
        transcript = stack.enter_context(_open_transcript(talk))
        if transcript.warning:
            report(transcript.warning)
        seating = stack.enter_context(Seating(room, patience_s=talk.patience_s, report=report, show=show))
        seating.seat(talk.commands)
        guest = stack.enter_context(seated_person(room, talk.person)) if talk.person else None
        if not transcript.has_begun:
            sitting = {name: room.sitting(name) for name in talk.members}
            abouts = {name: who.about for name, who in sitting.items() if who.about}
            transcript.begin(talk.header(abouts, {name: who.voice for name, who in sitting.items()}))
        yield Conversation(
            room,
            talk.members,
            transcript,
            listener,
            taking=_turn_taking(talk, transcript.header),
            rules=talk.rules,
            moderator=talk.moderator,
            moderator_speaks=talk.moderator_speaks,
            silence_s=talk.silence_s,
            limit=Deadline.after(talk.limit_s),
            retries=talk.retries,
            bring_back=seating.bring_back,
            guests=(talk.person,) if talk.person else (),
            log=log,
            guest=guest,
        )


@contextlib.contextmanager
def _room_of(talk: Talk) -> Iterator[Room]:
    """The room that is there, or a fresh one; what we make in it goes at the end."""
    if talk.directory is None and not talk.joined:
        for orphan in Room.orphans():
            clean_up(orphan)
        room = Room.make_fresh()
    else:
        room = Room.make(talk.directory) if talk.commands else Room.open(talk.directory)
    wanted = star(HUB, [name for name in talk.members if name not in talk.joined])
    made: list[tuple[str, str]] = []
    try:
        there = set(room.pipes())
        made = [pair for pair in wanted if pair not in there]
        for seat in talk.joined:
            room.require(seat)
        room.make_pipes(made)
        yield room
    finally:
        clean_up(room, made, force=True)


def _open_transcript(talk: Talk) -> Transcript:
    if talk.transcript is None:
        return Transcript.unwritten()
    if not talk.is_resumed:
        return Transcript.create(talk.transcript)
    transcript = Transcript.resume(talk.transcript)
    if transcript.has_begun and set(transcript.header.members) != set(talk.members):
        transcript.close()
        theirs = ", ".join(transcript.header.members)
        raise UsageError(f"{talk.transcript} is a conversation of {theirs}: --resume goes on with the same members")
    return transcript


def _turn_taking(talk: Talk, header: Header) -> RoundRobin | Random:
    """How turns are taken; the seed of a conversation that is resumed is its own."""
    speaking = tuple(name for name in talk.members if talk.moderator_speaks or name != talk.moderator)
    if talk.taking == "random":
        seed = header.settings.get("seed")
        return Random(speaking, seed if isinstance(seed, int) else 0)
    return RoundRobin(speaking)
