"""What a member remembers: the histories of its conversations, and its last replies. Bounded, and pure."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from modelpipes.chat.history import History
from modelpipes.pipe.message import Heard, Reply, Say

CONVERSATIONS = 16  # histories kept; a conversation that was pushed out is told again
REPLIES = 64  # for askers that ask again under the same id
REPLY_BYTES = 8 * 1024 * 1024


class OutOfStep(Struct, frozen=True):
    """The leader must tell more: `have` is the last turn known, -1 none."""

    have: int


class Histories:
    """Caches of what the transcript says; all of it may be lost without harm."""

    def __init__(self, history_bytes: int) -> None:
        self._history_bytes = history_bytes
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._replies: OrderedDict[str, tuple[Reply, int]] = OrderedDict()
        self._reply_bytes = 0

    def turns_for(self, say: Say) -> list[Heard] | OutOfStep:
        """The turns to answer, the last one last; MessageError where what was told makes no sense."""
        if say.conversation is None:
            return [Heard(0, say.sender, say.content)]
        history = self._histories.pop(say.conversation, None) or History(self._history_bytes)
        self._histories[say.conversation] = history
        if len(self._histories) > CONVERSATIONS:
            self._histories.popitem(last=False)
        turn = -1 if say.turn is None else say.turn
        have = history.catch_up(-1 if say.after is None else say.after, say.heard, turn)
        return list(history.turns) if have is None else OutOfStep(have)

    def add_own(self, say: Say, seat: str, content: str) -> None:
        """Our answer is the turn that was asked for, if the conversation has not moved on."""
        history = self._histories.get(say.conversation or "")
        if history and say.turn is not None and history.last == say.turn - 1:
            history.hear([Heard(say.turn, seat, content)])

    def reply_to(self, say_id: str) -> Reply | None:
        """The reply already given to this id."""
        found = self._replies.get(say_id)
        return found[0] if found else None

    def remember(self, reply: Reply, size_bytes: int) -> None:
        """Keep a whole reply, as long as newer ones leave it room."""
        self._replies[reply.reply_to] = reply, size_bytes
        self._reply_bytes += size_bytes
        while len(self._replies) > REPLIES or (self._reply_bytes > REPLY_BYTES and len(self._replies) > 1):
            _, (_, dropped_bytes) = self._replies.popitem(last=False)
            self._reply_bytes -= dropped_bytes
