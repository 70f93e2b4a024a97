"""What makes a member's answers: the contract that every voice keeps.

A voice knows nothing of pipes: it is given turns and emits words. `answer` runs in a thread of its own,
up to `parallel` of them at a time; everything else is called by the member.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from modelpipes.errors import MessageError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.pipe.message import Heard, Phase, Say, Stop, Usage
from modelpipes.pipe.room import About
from modelpipes.values.deadline import Deadline

LEAVING_S = 3.0  # for a member that said it leaves, and its engine, to be gone
LOAD_S = 600.0  # for a voice to be ready: a large model from a slow disk


class Finish(Struct, frozen=True):
    """How an answer ended."""

    stop: Stop = "end"
    usage: Usage | None = None
    tokens_per_second: float | None = None
    dropped: tuple[int, int] | None = None  # first and last turn left out of the prompt
    is_cut: bool = False  # before words that were another's


class Work:
    """One message in work: the `say` that asks, all turns heard, and where the voice puts its answer."""

    def __init__(self, say: Say, turns: Sequence[Heard], notify: Callable[[Work, str, str, bool], None]) -> None:
        """`notify` is told each piece: content, thinking, and whether those before it do not count any more."""
        self.say = say
        self.turns = turns
        self.content: list[str] = []
        self.thinking: list[str] = []
        self.phase: Phase = "reading"
        self.first_word_s: float | None = None
        self.life_s = time.monotonic()  # when the voice last showed life
        self.is_cancelled = False
        self._size_bytes = 0
        self._notify = notify
        self._break_off: Callable[[], object] | None = None
        self._lock = threading.Lock()

    def emit(self, content: str = "", thinking: str = "") -> None:
        """Add a piece to the answer, or to the thoughts before it; MessageError where it grows too large to travel."""
        if not content and not thinking:
            return
        self._size_bytes += len(content) + len(thinking)
        if self._size_bytes > MAX_MESSAGE_BYTES:
            raise MessageError(f"the answer is larger than the {MAX_MESSAGE_BYTES} bytes that can travel")
        self.life_s = time.monotonic()
        if content:
            self.first_word_s = self.first_word_s or self.life_s
            self.content.append(content)
        if thinking:
            self.phase = "thinking"
            self.thinking.append(thinking)
        self._notify(self, content, thinking, False)

    def begin_anew(self, content: str = "", thinking: str = "") -> None:
        """What was emitted does not count, and this takes its place: words that turn out to be thoughts."""
        self.content, self.thinking = [content] if content else [], [thinking] if thinking else []
        self._size_bytes = len(content) + len(thinking)
        self.life_s = time.monotonic()
        self.first_word_s = self.life_s if content else None
        self._notify(self, content, thinking, True)

    def show_life(self, phase: Phase | None = None) -> None:
        """Tell that the answer is on its way."""
        self.life_s = time.monotonic()
        self.phase = phase or self.phase

    def when_cancelled(self, break_off: Callable[[], object] | None) -> None:
        """Name what breaks the answer off, quickly and from any thread; called at once if that was asked already.

        None: there is nothing to break off any more, and what was named is not called again.
        """
        with self._lock:
            self._break_off = break_off
            if break_off and self.is_cancelled:
                break_off()

    def cancel(self) -> None:
        """Break the answer off; `answer` then returns soon, with what there is."""
        with self._lock:
            self.is_cancelled = True
            if self._break_off:
                self._break_off()


class Voice(Protocol):
    """What makes a member's answers."""

    kind: str  # for a person: "model tiny-chat.gguf", "filter cat"
    parallel: int  # messages that it can work on at a time
    history_bytes: int  # what of a conversation is worth keeping for it

    def prepare(self, deadline: Deadline) -> None:
        """Load what answers; raises a PipesError that says why it cannot."""

    def about(self) -> About | None:
        """What is known of the model that answers, once it is prepared; None where it is none."""

    def answer(self, work: Work) -> Finish:
        """Answer the last turn, emitting words.

        Raises MessageError where it is too large to answer, DeadlineError where what answers is silent
        for too long, another PipesError where it fails.
        """

    def death_fd(self) -> int:
        """A descriptor that becomes readable when what answers has died; -1 where it cannot die."""

    def last_words(self) -> str:
        """Why it died, in one line."""

    def tend(self) -> None:
        """Called twice a second; raises a PipesError if what answers has died."""

    def close(self) -> None:
        """End what was started; harmless again, and where nothing was."""
