"""What a member is told when it is its turn: all turns that it does not know; and what its answer is as a turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import msgspec
from msgspec.structs import replace

from modelpipes.chat.transcript import VERSION, Header, Transcript, Turn, moment
from modelpipes.errors import PeerFailed
from modelpipes.pipe.asker import Answer, Asker
from modelpipes.pipe.message import Cast, Heard, Reply, Sampling, Say, new_id

RETELL_BYTES = 8 * 1024 * 1024  # of the newest turns, for a member that knows nothing; no context holds more
HEARD_BYTES = 100  # around the words of a turn


def resume(path: str, asker: Asker) -> Transcript:
    """The transcript in a file, begun where it is new; raises as `Transcript.resume` does."""
    return Transcript.resume(path, Header(VERSION, new_id(), (asker.seat, asker.to), at=moment()))


def ask_next(
    transcript: Transcript,
    asker: Asker,
    message: str,
    hear: Callable[[Generator[Answer]], Reply],
    sampling: Sampling | None = None,
) -> Reply:
    """Ask as the next turn of a conversation; question and answer are written once `hear` has heard the answer out."""
    question = Turn(transcript.last + 1, asker.seat, message, at=moment())
    number = question.turn + 1
    header = transcript.header
    # In a conversation that others have led it is told as it was there; one of our own is between the two of us.
    cast = cast_of(asker.to, header, transcript.opener) if header.labels is not None else None
    say = Say(new_id(), asker.seat, asker.to, conversation=header.id, turn=number, cast=cast, sampling=sampling)
    reply = hear(tell(asker, say, lambda turn: [*transcript.after(turn), question], transcript.known_by(asker.to)))
    transcript.append(question, turn_of(number, reply))
    return reply


def cast_of(seat: str, header: Header, opener: str) -> Cast:
    """The others in a conversation, for a member: who may speak; a moderator that only chooses is not heard.

    `opener` is who said the opening; "" where nobody did yet, and so a member will.
    """
    silent = "" if header.debates else header.moderator
    others = tuple(name for name in header.members if name not in (seat, silent))
    labels = header.labels if header.labels is not None else who_hears_names(header.members, silent, opener)
    return Cast(others, seat in labels, header.person if header.person in others else "")


def who_hears_names(members: Sequence[str], silent: str, opener: str) -> tuple[str, ...]:
    """Those members to whom more than one other voice can be heard, that of the opening included."""
    speaking = {*members, opener} - {silent, ""}
    return tuple(name for name in members if len(speaking - {name}) > 1)


def turn_of(number: int, reply: Reply) -> Turn:
    """A reply as it stands in the transcript."""
    return Turn(
        turn=number,
        sender=reply.sender,
        content=reply.content,
        stop=reply.stop,
        usage=reply.usage,
        timing=reply.timing,
        dropped=reply.dropped,
        thinking=reply.thinking,
        is_cut=reply.is_cut,
        at=moment(),
    )


def tell(asker: Asker, say: Say, after: Callable[[int], Sequence[Turn]], known: int) -> Generator[Answer]:
    """Ask for the next turn, telling the member what came `after` the turn that is `known` to it.

    A member that knows less says so, and is told from there, under the same id.
    """
    while True:
        told = since(after, known)
        heard = tuple(Heard(turn.turn, turn.sender, turn.content) for turn in told)
        if heard and heard[0].turn <= known:
            known = -1  # it has missed more than can travel
        try:
            with closing(asker.ask(replace(say, after=known, heard=heard))) as answers:
                yield from answers
            return
        except PeerFailed as failed:
            if failed.reason != "out-of-step" or failed.have is None or failed.have >= known:
                raise
            known = failed.have


def since(after: Callable[[int], Sequence[Turn]], known: int) -> Sequence[Turn]:
    """The turns after `known`; where these are more than may travel, the opening and the newest of them."""
    newest: list[Turn] = []
    size = 0
    for turn in reversed(after(known)):
        size += len(msgspec.json.encode(turn.content)) + HEARD_BYTES
        if size > RETELL_BYTES and newest:
            break
        newest.append(turn)
    newest.reverse()
    if newest and newest[0].turn > known + 1 and newest[0].turn > 0:
        newest.insert(0, after(-1)[0])
    return newest
