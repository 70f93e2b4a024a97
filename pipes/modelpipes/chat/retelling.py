"""What members are told of a transcript whose last turns were taken back; and a talk written to another file."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from modelpipes.chat.transcript import Header, Transcript, Turn
from modelpipes.pipe.message import new_id
from modelpipes.values.units import format_count


class Retelling:
    """A transcript as members are told it: all of it, or without the turns that were taken back.

    Without them it is a conversation of its own, its turns numbered anew, of which nobody knows anything yet: in that
    of the transcript they were said.
    """

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._gone: set[int] = set()

    @property
    def id(self) -> str:
        """Which conversation it is to them."""
        own = self._transcript.header.id
        return f"{own}-{len(self._gone)}" if self._gone else own

    @property
    def next(self) -> int:
        """The number of the turn that is to come."""
        return self._transcript.last + 1 - len(self._gone)

    def take_back(self, first: int) -> None:
        """Leave out the turns from the transcript's turn `first` on."""
        self._gone |= set(range(first, self._transcript.last + 1))

    def after(self, turn: int) -> Sequence[Turn]:
        """The turns after this one, -1 for all, as they are told."""
        if not self._gone:
            return self._transcript.after(turn)
        left = [said for said in self._transcript.after(-1) if said.turn not in self._gone]
        return [replace(said, turn=number) for number, said in enumerate(left)][turn + 1 :]


def save(path: str, header: Header, turns: Sequence[Turn]) -> str:
    """Write a talk as a transcript to a new file; what to say of it. Raises as `Transcript.create` does."""
    with Transcript.create(path, replace(header, id=new_id())) as transcript:
        if turns:
            transcript.append(*turns)
    return f"{path}: {format_count(len(turns), 'turn')} saved; modelpipes show {path} shows them"
