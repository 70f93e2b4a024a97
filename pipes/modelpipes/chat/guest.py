"""The person at a terminal, who types while others speak: messages, and wishes that begin with a slash."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from modelpipes.errors import ProgramError
from modelpipes.terminal import output
from modelpipes.terminal.lineeditor import LineEditor

TWICE_S = 2.0  # between two Ctrl-C that together end the talk
LIFE_MS = 500  # a person thinks for as long as they like; their peers are told so

HELP = """\
/help         this
/system TEXT  what the models are told first from now on; NAME=TEXT: one only
/retry        have the last answer given once more
/save FILE    write the talk there, as a transcript
/stop         stop the answer, as Ctrl-C does
/bye          end the talk, as Ctrl-D does, and Ctrl-C twice
Alt-Enter begins a line; \"\"\" begins and ends a message of several lines.
Ctrl-R searches what you typed before. // begins a message with a slash.
"""

Kind: TypeAlias = Literal["say", "system", "retry", "save"]
LOCAL = ("help", "stop", "bye")  # done at once
LASTING: tuple[Kind, ...] = ("system", "retry", "save")  # done when it is the person's turn


class Wish(Struct, frozen=True):
    """What the person wants: to `say` a text, or something of the talk."""

    kind: Kind
    text: str = ""


class Unknown(Struct, frozen=True):
    """A slash, and no command."""

    why: str


def read_wish(text: str) -> Wish | Unknown | str:
    """What was typed: a wish, one of LOCAL, or why it is none. Pure."""
    if text.startswith("//"):
        return Wish("say", text[1:])
    if not text.startswith("/"):
        return Wish("say", text)
    word, _, rest = text[1:].partition(" ")
    rest = rest.strip()
    if word in LOCAL:
        return word
    for kind in LASTING:
        if word == kind:
            if kind == "save" and not rest:
                return Unknown("/save wants a FILE")
            return Wish(kind, rest)
    return Unknown(f"/{word}: no such command; /help lists them, and // begins a message with a slash")


class Guest:
    """The person at the line editor. Within `with` they can type; what they typed is taken in its order.

    An answer is stopped within `answering`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._items: deque[Wish] = deque()
        self._has_left = False
        self._stop: Callable[[], object] | None = None
        self._interrupted_s = -TWICE_S
        self._lock = threading.RLock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wishes: list[Wish] = []
        self._editor = LineEditor(name, self)

    def __enter__(self) -> Guest:
        self._editor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._editor.__exit__()
        with self._lock:
            os.close(self._wake)
            self._wake = -1

    # -- for who leads the talk

    @contextlib.contextmanager
    def answering(self, stop: Callable[[], object]) -> Iterator[None]:
        """Within, an answer runs; `stop` is called from another thread, once, when the person stops it."""
        with self._lock:
            self._stop = stop
            if self._has_left:
                self._stop_answer()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None

    def next(self, cancelled_fd: int, wait: Callable[[], object]) -> Wish | None:
        """The next that they want; None where the descriptor becomes readable before. `wait` is called at times.

        Raises ProgramError when they have left.
        """
        poll = select.poll()
        for fd in (self._wake, cancelled_fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        while True:
            with self._lock:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                if self._has_left:
                    raise ProgramError(f"{self.name} has left (end of input)")
                if self._items:
                    item = self._items.popleft()
                    self._show_waiting()
                    return item
            wait()
            if dict(poll.poll(LIFE_MS)).get(cancelled_fd):
                return None

    def put_off(self, wish: Wish) -> None:
        """A wish that the leader is to fulfil."""
        self._wishes.append(wish)

    def wishes(self) -> Sequence[Wish]:
        """Those put off until now."""
        taken, self._wishes = self._wishes, []
        return taken

    # -- for the editor, in its thread

    def typed(self, text: str) -> None:
        wish = read_wish(text)
        if isinstance(wish, Unknown):
            output.say(wish.why)
        elif wish == "help":
            output.prompt(HELP)
        elif wish == "bye":
            self.left()
        elif wish == "stop":
            if not self._stop_answer():
                output.say("nobody answers now")
        elif isinstance(wish, Wish):
            with self._lock:
                self._items.append(wish)
                if wish.kind == "retry":
                    self._stop_answer()
                self._show_waiting()
                os.eventfd_write(self._wake, 1)

    def interrupted(self, has_text: bool) -> bool:
        now_s, before_s = time.monotonic(), self._interrupted_s
        self._interrupted_s = now_s
        if now_s - before_s < TWICE_S:
            self.left()
        elif not self._stop_answer():
            if has_text:
                self._interrupted_s = -TWICE_S  # that was for the text
                return True
            output.say("Ctrl-C once more, or Ctrl-D, ends the talk; /help tells what else there is")
        return False

    def left(self) -> None:
        with self._lock:
            self._has_left = True
            self._items.clear()
            self._show_waiting()
            self._stop_answer()
            if self._wake >= 0:  # else the talk is over
                os.eventfd_write(self._wake, 1)

    def _stop_answer(self) -> bool:
        """Stop the answer that runs; whether one does."""
        with self._lock:
            stop, self._stop = self._stop, None
            if stop:
                stop()
            return stop is not None

    def _show_waiting(self) -> None:
        # While it is their turn, what they typed is on its way already.
        self._editor.show_waiting([_shown(item) for item in self._items])


def _shown(wish: Wish) -> str:
    return wish.text if wish.kind == "say" else f"/{wish.kind} {wish.text}"
