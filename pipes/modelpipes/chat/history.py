"""What reaches a model: the turns that a member keeps, as the messages that an engine takes.

Pure: values in, values out. A history is a cache of the transcript, which is the truth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from modelpipes.errors import MessageError
from modelpipes.pipe.message import Heard

# Far more text than any context holds, and little beside a member's 80 MB.
MAX_HISTORY_BYTES = 8 * 2**20
# What a turn costs beside its text: the struct, two strings, a slot in the queue.
_TURN_OVERHEAD_BYTES = 200
# Most chat templates demand that a user speaks first, and engines continue a last word of the assistant's own.
BEGIN = "Begin."
GO_ON = "Go on."


class History:
    """What a member keeps of one conversation: the opening, and the newest turns that `max_bytes` hold.

    Turn numbers are contiguous, but for one gap after the opening where older turns were dropped.
    """

    __slots__ = ("_max_bytes", "_opening", "_rest", "_size_bytes")

    def __init__(self, max_bytes: int = MAX_HISTORY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._opening: Heard | None = None
        self._rest: deque[Heard] = deque()
        self._size_bytes = 0  # of _rest

    @property
    def turns(self) -> tuple[Heard, ...]:
        """The turns kept, oldest first."""
        return (self._opening, *self._rest) if self._opening else ()

    @property
    def last(self) -> int:
        """The number of the last turn known; -1: none."""
        if self._rest:
            return self._rest[-1].turn
        return 0 if self._opening else -1

    def forget_after(self, turn: int) -> None:
        """Forget every turn later than `turn`.

        Where turns up to it were dropped to save memory, what is left makes no sense, and all is forgotten.
        """
        if turn >= self.last:
            return
        if turn < 0 or (turn > 0 and turn < self._rest[0].turn):
            self._opening = None
            turn = -1
        while self._rest and self._rest[-1].turn > turn:
            self._size_bytes -= _size_bytes(self._rest.pop())

    def hear(self, turns: Iterable[Heard]) -> None:
        """Add turns that follow the last one known; all, or none and MessageError."""
        turns = tuple(turns)
        _check_follows(self.last, turns)
        for heard in turns:
            if heard.turn == 0:
                self._opening = heard
                continue
            self._rest.append(heard)
            self._size_bytes += _size_bytes(heard)
            while self._size_bytes > self._max_bytes and len(self._rest) > 1:
                self._size_bytes -= _size_bytes(self._rest.popleft())

    def catch_up(self, after: int, heard: Sequence[Heard], turn: int) -> int | None:
        """Make the turns up to the one before `turn` known: those up to `after` as kept, then `heard`.

        Returns None when they are; else the last turn known, when that is less than `after`, and changes
        nothing but what had to be forgotten. Raises MessageError, and changes nothing, when `heard` is not
        what lies between `after` and `turn`. To a member told from nothing (`after` is -1) the opening may
        be told, then a gap.
        """
        if turn < 1 or not -1 <= after < turn:
            raise MessageError(f"turn {turn} cannot be asked for after turn {after}")
        _check_follows(after, heard)
        last = heard[-1].turn if heard else after
        if last != turn - 1:
            raise MessageError(f"turn {turn} is asked for, but what was heard ends with turn {last}")
        self.forget_after(after)
        if self.last < after:
            return self.last
        self.hear(heard)
        return None


def _check_follows(last: int, turns: Sequence[Heard]) -> None:
    expected = last + 1
    for i, heard in enumerate(turns):
        gap_after_opening = last == -1 and i == 1 and heard.turn > 1
        if heard.turn != expected and not gap_after_opening:
            raise MessageError(f"turn {expected} should follow, but turn {heard.turn} was told")
        expected = heard.turn + 1


def _size_bytes(heard: Heard) -> int:
    return len(heard.content.encode("utf-8", "replace")) + len(heard.sender) + _TURN_OVERHEAD_BYTES


def render(
    turns: Sequence[Heard], seat: str, system: str | None = None, fold_system: bool = False
) -> list[dict[str, str]]:
    """The turns as messages for a model that sits at `seat`: its own as assistant, all others' as user.

    Words of others begin with `NAME: ` where more than one other takes part; who only spoke the opening
    takes no part. Neighbours of one role are one message. After the system text a user speaks first, and
    a user speaks last. `fold_system` puts the system text into that first message, for templates that
    refuse a system role.
    """
    return _render(turns, seat, system, fold_system, _are_named(turns, seat))


def _are_named(turns: Sequence[Heard], seat: str) -> bool:
    return len({heard.sender for heard in turns if heard.turn > 0} - {seat}) > 1


def _render(
    turns: Sequence[Heard], seat: str, system: str | None, fold_system: bool, named: bool
) -> list[dict[str, str]]:
    messages: list[tuple[str, list[str]]] = []
    for heard in turns:
        own = heard.sender == seat
        role = "assistant" if own else "user"
        words = heard.content if own or not named else f"{heard.sender}: {heard.content}"
        if messages and messages[-1][0] == role:
            messages[-1][1].append(words)
        else:
            messages.append((role, [words]))
    if not messages or messages[0][0] == "assistant":
        messages.insert(0, ("user", [BEGIN]))
    if messages[-1][0] == "assistant":
        messages.append(("user", [GO_ON]))
    if system and fold_system:
        messages[0][1][0] = f"{system}\n\n{messages[0][1][0]}"
    elif system:
        messages.insert(0, ("system", [system]))
    return [{"role": role, "content": "\n".join(lines)} for role, lines in messages]


def trim(
    turns: Sequence[Heard],
    seat: str,
    system: str | None,
    fold_system: bool,
    fits: Callable[[list[dict[str, str]]], bool],
) -> tuple[list[dict[str, str]], tuple[int, int] | None]:
    """The messages of as many turns as fit, and the first and last turn left out (None: none was).

    The oldest go first; the system text, the opening and the last turn stay. Up to a quarter of the turns
    that fit go with them, so that the oldest one left stays the same for a while: an engine has read, and
    keeps, what its last prompt began with. Raises MessageError when not even those that stay fit. `fits` is
    called about log2(len(turns)) times at most: it may cost a tokenisation.
    """
    named = _are_named(turns, seat)  # of all turns: names that come and go would confuse the model

    def without(count: int) -> list[dict[str, str]]:
        return _render((*turns[:1], *turns[1 + count :]), seat, system, fold_system, named)

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
