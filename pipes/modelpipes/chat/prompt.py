"""What a model is told: a system text, and the turns that it heard, as the messages that an engine takes. Pure.

Who is told names is settled when a conversation begins. So a prompt only ever grows at its end, and an engine
reads nothing twice; only a context that is full makes it begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from modelpipes.errors import MessageError
from modelpipes.pipe.message import Cast, Heard

Messages: TypeAlias = list[dict[str, str]]
Manner: TypeAlias = Literal["full", "brief"]

# Most chat templates demand that a user speaks first, and engines continue a last word of the assistant's own.
BEGIN = "Begin."
GO_ON = "Go on."
# Between the words of several speakers in one message; the packaged model was trained with lines.
SEPARATORS: dict[Manner, str] = {"full": "\n\n", "brief": "\n"}
_PLACES = re.compile(r"\{(name|others|topic)\}")


class Told(Struct, frozen=True):
    """What a model in a seat is told beside the turns.

    With `labels` the words of others begin with `NAME: `. `folds_system`: into the first message, for templates that
    refuse a system role.
    """

    seat: str
    system: str | None = None
    labels: bool = False
    folds_system: bool = False
    separator: str = SEPARATORS["full"]


def told_to(
    seat: str,
    system: str | None,
    cast: Cast | None,
    turns: Sequence[Heard],
    *,
    folds_system: bool = False,
    manner: Manner = "full",
) -> Told:
    """What a model is told in the conversation of a `cast`, or alone where there is none.

    `system` is what a person wrote for it, with `{name}`, `{others}` and `{topic}`, the opening, to be filled in; None:
    the default, which says who it is and who else is there, and alone says nothing; empty: nothing.
    """
    opening = turns[0] if turns and turns[0].turn == 0 else None
    if system is not None:
        text = _fill(system, seat, cast, opening, turns)
    else:
        text = default_system(seat, cast, opening.sender if opening else "", manner) if cast else ""
    return Told(seat, text or None, bool(cast and cast.labels), folds_system, SEPARATORS[manner])


def default_system(seat: str, cast: Cast, opener: str, manner: Manner = "full") -> str:
    """What a model is told first where nobody wrote anything for it."""
    text = f"You are {seat}. You are in a conversation with {_others(cast)}."
    if manner == "brief":  # whatever more it is told, the packaged model was not trained with
        return text
    said = []
    if opener and opener != seat and opener not in cast.others:
        said.append(f"{opener} opens it and takes no further part.")
    if cast.labels:
        said.append("What others say begins with the name of who says it.")
    if cast.others != (cast.person,):
        said.append(f"Say only what {seat} says, without a name before it, and never speak for anybody else.")
    said.append("Use the language in which the conversation was opened.")
    return " ".join([text, *said])


def _fill(system: str, seat: str, cast: Cast | None, opening: Heard | None, turns: Sequence[Heard]) -> str:
    asker = "".join(turn.sender for turn in turns[-1:])
    filled = {
        "name": seat,
        "others": _others(cast) if cast else asker,
        "topic": opening.content if opening and cast else "",
    }
    return _PLACES.sub(lambda place: filled[place[1]], system)


def _others(cast: Cast) -> str:
    """`bob`, `bob and carol`, `bob, carol and a person called me`; who a label never names is just a person."""
    person = f"a person called {cast.person}" if cast.labels else "a person"
    names = [person if name == cast.person else name for name in cast.others]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names) or "nobody"


def labels_of(cast: Cast | None, turns: Sequence[Heard], seat: str) -> tuple[str, ...]:
    """The names that may stand before words of others, where names do."""
    if not cast or not cast.labels:
        return ()
    return tuple(dict.fromkeys([*cast.others, *(turn.sender for turn in turns[:1] if turn.sender != seat)]))


def render(turns: Sequence[Heard], told: Told) -> Messages:
    """The turns as messages for a model: its own as assistant, all others' as user.

    Neighbours of others are one message, each in a paragraph of its own; between two of its own a user says "Go on.".
    After the system text a user speaks first, and a user speaks last.
    """
    messages: list[tuple[str, list[str]]] = []
    for heard in turns:
        if heard.sender == told.seat:
            if not messages or messages[-1][0] == "assistant":
                messages.append(("user", [GO_ON if messages else BEGIN]))
            messages.append(("assistant", [heard.content]))
            continue
        words = f"{heard.sender}: {heard.content}" if told.labels else heard.content
        if messages and messages[-1][0] == "user":
            messages[-1][1].append(words)
        else:
            messages.append(("user", [words]))
    if not messages or messages[-1][0] == "assistant":
        messages.append(("user", [GO_ON if messages else BEGIN]))
    if told.system and told.folds_system:
        messages[0][1][0] = f"{told.system}\n\n{messages[0][1][0]}"
    elif told.system:
        messages.insert(0, ("system", [told.system]))
    return [{"role": role, "content": told.separator.join(lines)} for role, lines in messages]


def trim(
    turns: Sequence[Heard], told: Told, fits: Callable[[Messages], bool]
) -> tuple[Messages, tuple[int, int] | None]:
    """The messages of as many turns as fit, and the first and last turn left out (None: none was).

    The oldest go first; the system text, the opening and the last turn stay. Up to a quarter of the turns
    that fit go with them, so that the oldest one left stays the same for a while: an engine has read, and
    keeps, what its last prompt began with. Raises MessageError when not even those that stay fit. `fits` is
    called about log2(len(turns)) times at most: it may cost a tokenisation.
    """

    def without(count: int) -> Messages:
        return render((*turns[:1], *turns[1 + count :]), told)

    messages, count = without(0), 0
    if not fits(messages):
        low, high = 0, max(0, len(turns) - 2)  # dropping `low` is too little, dropping `high` is enough
        messages = without(high)
        if high == low or not fits(messages):
            raise MessageError("one message is too large for the model's context: shorten it, or give more --ctx-size")
        while high - low > 1:
            middle = (low + high) // 2
            more = without(middle)
            if fits(more):
                messages, high = more, middle
            else:
                low = middle
        count = high + _more_to_drop(turns, high)
        messages = without(count)
    return messages, _gap((*turns[:1], *turns[1 + count :][:1]))


def _more_to_drop(turns: Sequence[Heard], count: int) -> int:
    """How many more turns to drop, so that the first one left has a number that is a multiple of a step.

    The step is a power of two, and so stays while the number of turns that fit changes a little.
    """
    left = len(turns) - 1 - count
    step = 1 << max(0, (left // 4).bit_length() - 1)  # more than an eighth, at most a quarter
    return -turns[1 + count].turn % step


def _gap(first_two: Sequence[Heard]) -> tuple[int, int] | None:
    """The turns missing after the opening, also those that a bounded history had dropped before."""
    if len(first_two) < 2 or first_two[1].turn == first_two[0].turn + 1:
        return None
    return first_two[0].turn + 1, first_two[1].turn - 1
