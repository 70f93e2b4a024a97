"""What a member was, or would be, told for a turn of a conversation: from its transcript alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from modelpipes.chat.prompt import Messages, render, told_to
from modelpipes.chat.telling import cast_of
from modelpipes.chat.transcript import Header, Turn
from modelpipes.pipe.message import Heard


class Prompt(Struct, frozen=True, forbid_unknown_fields=True):
    """What a member is given for a turn: a model `messages`, whatever else `words`, of the last turn alone."""

    turn: int
    member: str
    messages: Messages | UnsetType = UNSET
    words: str | UnsetType = UNSET


def prompt_for(header: Header, turns: Sequence[Turn], seat: str, number: int) -> Prompt:
    """What a member is given for turn `number`, of which `turns` may have the answer; `seat` is one of the members.

    As exact as the header: of a model that somebody else seated, or whose engine is another gateway's, it may not know
    the system text, or that its template refuses one.
    """
    heard = [Heard(turn.turn, turn.sender, turn.content) for turn in turns if turn.turn < number]
    about = header.abouts.get(seat)
    if about is None:
        return Prompt(number, seat, words=heard[-1].content if heard else "")
    first, last = next((turn.dropped for turn in turns if turn.turn == number and turn.dropped), (1, 0))
    opener = turns[0].sender if turns and turns[0].turn == 0 else ""
    told = told_to(
        seat,
        about.system,
        cast_of(seat, header, opener),
        heard,
        folds_system=about.folds_system,
        manner=about.manner,
    )
    return Prompt(number, seat, render([turn for turn in heard if not first <= turn.turn <= last], told))


def first_prompts(header: Header, opening: Turn | None) -> list[Prompt]:
    """What each member that speaks would be given for its first turn, if they spoke in their order.

    What others will have said until then stands there as `(what alice says)`.
    """
    turns = [opening] if opening else []
    prompts = []
    for seat in header.members:
        if seat == header.moderator and not header.debates:
            continue
        number = len(turns)
        prompts.append(prompt_for(header, turns, seat, number))
        turns.append(Turn(number, seat, f"(what {seat} says)"))
    return prompts
