"""One model and who asks it, without a room: a single answer, or a talk with the person at the terminal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from modelpipes.chat.conversation import Listener
from modelpipes.chat.guest import Guest, Wish
from modelpipes.chat.retelling import save
from modelpipes.chat.transcript import VERSION, Header, Turn, moment
from modelpipes.chat.voices import Finish, Voice, Work
from modelpipes.chat.voices.terminal import TerminalVoice
from modelpipes.errors import Ended, MessageError, PipesError, ProgramError
from modelpipes.pipe.message import Heard, Phase, Reply, Say, Timing, new_id
from modelpipes.values.deadline import Deadline

ME = "me"  # who asks
NO_FD = -1


class _Watched(Work):
    """Work whose listener learns of each word, and of what is done meanwhile."""

    def __init__(self, say: Say, turns: Sequence[Heard], listener: Listener) -> None:
        super().__init__(say, turns, self._tell)
        self._listener = listener
        self.show_life()

    def _tell(self, _: Work, content: str, thinking: str, anew: bool) -> None:
        if anew:
            self._listener.starts(self.say.to, len(self.turns))
        if not content:
            self._listener.waits(self.say.to, self.phase)
        self._listener.says(content, thinking)

    def show_life(self, phase: Phase | None = None) -> None:
        super().show_life(phase)
        self._listener.waits(self.say.to, self.phase)


def answer(
    voice: Voice,
    name: str,
    turns: Sequence[Heard],
    listener: Listener,
    *,
    system: str | None = None,
    limit: Deadline | None = None,
    guest: Guest | None = None,
) -> Reply:
    """A prepared voice's answer to the last turn, as it comes to the listener, and whole.

    Where the guest stops it, it ends as cancelled; where the limit passes, as timeout. Raises as `Voice.answer` does.
    """
    limit = limit or Deadline.never()
    work = _Watched(Say(new_id(), ME, name, system=system), turns, listener)
    began_s = time.monotonic()
    with guest.answering(work.cancel) if guest else contextlib.nullcontext(), _cancelled_at(limit, work):
        finish = voice.answer(work)
    if work.is_cancelled:
        finish = Finish("timeout" if limit.has_passed() else "cancelled", finish.usage, finish.tokens_per_second)
    return _reply(work, name, finish, began_s)


@contextlib.contextmanager
def _cancelled_at(limit: Deadline, work: Work) -> Iterator[None]:
    """Within, the work is cancelled when the limit passes."""
    if limit.remaining_s() > threading.TIMEOUT_MAX:
        yield
        return
    timer = threading.Timer(limit.remaining_s(), work.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _reply(work: Work, name: str, finish: Finish, began_s: float) -> Reply:
    first_s = work.first_word_s
    timing = Timing(
        first_token_ms=None if first_s is None else round((first_s - began_s) * 1000, 3),
        total_ms=round((time.monotonic() - began_s) * 1000, 3),
        tokens_per_second=finish.tokens_per_second and round(finish.tokens_per_second, 1),
    )
    return Reply(
        id=new_id(),
        reply_to=work.say.id,
        sender=name,
        to=ME,
        content="".join(work.content),
        stop=finish.stop,
        thinking="".join(work.thinking),
        usage=finish.usage,
        timing=timing,
        dropped=finish.dropped,
        is_cut=finish.is_cut,
    )


class Duet:
    """A talk of the person at the terminal with one model, which is prepared."""

    def __init__(self, voice: Voice, name: str, listener: Listener) -> None:
        self.turns: list[Turn] = []
        self._voice = voice
        self._name = name
        self._listener = listener
        self._system: str | None = None
        self._header = Header(VERSION, new_id(), (ME, name), {name: voice.kind}, at=moment(), person=ME)

    def lead(self, guest: Guest | None) -> str:
        """Talk until the person leaves; why it ended. Without a guest, who has the line editor, lines are read."""
        wishes = iter(lambda: guest.next(NO_FD, lambda: None), None) if guest else _lines()
        with contextlib.suppress(ProgramError):  # the person has left
            for wish in wishes:
                self._fulfil(wish, guest)
        return f"{ME} left"

    def _fulfil(self, wish: Wish, guest: Guest | None) -> None:
        if wish.kind == "say":
            self._record(Turn(len(self.turns), ME, wish.text, at=moment()))
            self._answer(guest)
        elif wish.kind == "system":
            self._system = wish.text
            told = "so first, from now on" if wish.text else "nothing first, from now on"
            self._listener.notes(f"{self._name} is told {told}")
        elif wish.kind == "retry":
            self._try_again(guest)
        else:
            try:
                self._listener.notes(save(wish.text, self._header, self.turns))
            except PipesError as e:
                self._listener.notes(str(e))

    def _try_again(self, guest: Guest | None) -> None:
        while self.turns and self.turns[-1].sender != ME:
            self.turns.pop()
        if self.turns:
            self._answer(guest)
        else:
            self._listener.notes("there is no answer yet that could be given again")

    def _answer(self, guest: Guest | None) -> None:
        number = len(self.turns)
        self._listener.starts(self._name, number)
        heard = [Heard(turn.turn, turn.sender, turn.content) for turn in self.turns]
        try:
            reply = answer(self._voice, self._name, heard, self._listener, system=self._system, guest=guest)
        except MessageError as too_large:
            self._listener.notes(f"{too_large}; your last message is taken back")
            self.turns.pop()
        except PipesError as failed:  # who talks decides whether that is the end
            if not guest or isinstance(failed, Ended):
                raise
            self._listener.notes(f"{failed}; /retry asks again")
        else:
            turn = Turn(
                number, self._name, reply.content, reply.stop, reply.usage, reply.timing, reply.dropped, reply.thinking
            )
            if reply.content or reply.stop != "cancelled":
                self._record(replace(turn, at=moment()))
            else:
                self._listener.notes(f"{self._name} was stopped before its first word")

    def _record(self, turn: Turn) -> None:
        self.turns.append(turn)
        self._listener.ends(turn)


def _lines() -> Iterator[Wish]:
    """What a person types where nothing can be edited, line by line; ProgramError at the end."""
    voice = TerminalVoice(ME, leave=lambda: None)
    while True:
        work = Work(Say(new_id(), ME, ME), (), lambda *_: None)
        voice.answer(work)
        yield Wish("say", "".join(work.content))
