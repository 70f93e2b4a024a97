"""What a member keeps of one conversation: a cache of the transcript, which is the truth. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from modelpipes.errors import MessageError
from modelpipes.pipe.message import Heard

# Far more text than any context holds, and little beside a member's 80 MB.
MAX_HISTORY_BYTES = 8 * 2**20
# What a turn costs beside its text: the struct, two strings, a slot in the queue.
_TURN_OVERHEAD_BYTES = 200


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
        if turn < 0 or not -1 <= after < turn:
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
