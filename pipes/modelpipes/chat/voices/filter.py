"""Any program as a voice, kept running: a line in, a line out."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator

from modelpipes.chat.voices import Finish, Work
from modelpipes.chat.voices.command import require_program, split_command
from modelpipes.chat.voices.exchange import BREAK_OFF_S, HISTORY_BYTES, LAST_READ_BYTES, READ_BYTES, Exchange, fate
from modelpipes.child import Child
from modelpipes.errors import DeadlineError, MessageError, ProgramError
from modelpipes.machine.processes import awaits_input
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

DYING_S = 0.05  # between the end of a dying program's output and its own
# What a program has for what it says unasked: it may load an interpreter first, and write the second line of an answer
# some moments after the first. One that is seen to be busy takes no question meanwhile, so that nothing is lost; of
# one that may wait for its input it cannot be told whether it will say more.
BUSY_S = 5.0
BEGINNING_S = 0.5
SETTLING_S = 0.02
FIRST_LOOK_S, LOOK_S = 0.00002, 0.001  # between two looks at what it does: doubled from the one to the other
SHOWN_CHARS = 60  # of what it said in vain

_NEWLINE = re.compile(r"\r\n|\r|\n")


class FilterVoice:
    """Keeps one program running: a line in, a line out.

    What it says before it is asked, and beyond the line that answers, is dropped and told: else each answer would be
    that of the question before.
    """

    parallel = 1
    history_bytes = HISTORY_BYTES
    _advice = "an answer is one line; --exec and --json take several"

    def __init__(
        self,
        command: str,
        *,
        silence_s: float | None = None,
        log: str | None = None,
        report: Callable[[str], None] = output.say,
    ) -> None:
        """`report` is told in a line what the program said in vain."""
        self.kind = f"filter {command}"
        self._silence_s = silence_s
        self._argv = split_command(command)
        self._log = log
        self._report = report
        self._child: Child | None = None
        self._rest = bytearray()  # of its output: what was read and not yet used
        self._settled = self._idle = Deadline.after(0)  # then what it says unasked has come: if it may wait, if not
        self._is_asked = False  # since it was started
        self._vain = 0  # how often it spoke in vain
        self._talking = threading.Lock()  # held in an answer, when its output is not for others to read

    def prepare(self, deadline: Deadline) -> None:
        require_program(self._argv[0])
        self._child = self._start()

    def _start(self) -> Child:
        self._rest.clear()
        self._is_asked = False
        self._await_more(BEGINNING_S)
        return Child(self._argv, name=self._argv[0], pipe_stdin=True, pipe_stdout=True, log=self._log)

    def answer(self, work: Work) -> Finish:
        with self._talking:
            if self._child is None:
                self._child = self._start()  # the last answer was broken off, and the program with it
            child = self._child
            self._drop_unasked(child, lambda: self._has_more_to_say(child, work))
            try:
                with contextlib.closing(self._exchange(child, self._question(work), work)) as lines:
                    self._take_answer(child, lines, work)
            except (DeadlineError, MessageError):
                self._end()  # what is still to come would answer the next message
                raise
            finally:
                self._await_more(SETTLING_S)
            if work.is_cancelled:
                self._end()  # as above
            return Finish()

    def _question(self, work: Work) -> bytes:
        """What the program is told, as one line."""
        return _NEWLINE.sub(" ", work.turns[-1].content.rstrip("\r\n")).encode("utf-8", "replace") + b"\n"

    def _take_answer(self, child: Child, lines: Iterator[bytes], work: Work) -> None:
        """Emit what the program's lines say, as far as they answer."""
        for line in lines:
            work.emit(line.decode("utf-8", "replace").removesuffix("\r"))
            return

    def _exchange(self, child: Child, asked: bytes, work: Work) -> Generator[bytes, None, None]:
        """The lines that the program writes from now on, until the work is cancelled."""
        self._is_asked = True
        with Exchange(child, asked, work, self._silence_s) as exchange:
            for piece in exchange:
                looked_at = len(self._rest)
                self._rest += piece
                while (end := self._rest.find(b"\n", looked_at)) >= 0:
                    line = bytes(self._rest[:end])
                    del self._rest[: end + 1]
                    looked_at = 0
                    yield line
                if len(self._rest) > MAX_MESSAGE_BYTES:
                    raise MessageError(f"{child.name} wrote more than {MAX_MESSAGE_BYTES} bytes without a newline")
        if not work.is_cancelled:
            raise ProgramError(self._why_it_ended(child))

    def _why_it_ended(self, child: Child) -> str:
        with contextlib.suppress(DeadlineError):
            return fate(child, child.wait(Deadline.after(DYING_S)))
        self._end()  # it lives on, and never answers again
        return f"{child.name} closed its output"

    def _await_more(self, settling_s: float) -> None:
        """Begin to wait for what it says unasked, which `_has_more_to_say` then does."""
        self._settled = Deadline.after(settling_s)
        self._idle = Deadline.after(BUSY_S).earlier(Deadline.after(self._silence_s))

    def _has_more_to_say(self, child: Child, work: Work) -> bool:
        """May it go on without being asked? Who reads its input does not."""
        if self._idle.has_passed() or (waits := awaits_input(child.pid)):
            return False
        work.show_life("thinking")
        is_over = work.is_cancelled or child.exit_code() is not None
        return not is_over and not (waits is None and self._settled.has_passed())

    def _drop_unasked(self, child: Child, has_more: Callable[[], bool] = lambda: False) -> None:
        """Drop what it says until it has no more to say: that answers nothing."""
        said, self._rest = self._rest, bytearray()
        pause_s = FIRST_LOOK_S
        while True:
            will_say_more = has_more()  # asked first: what it said before it began to wait is there to be read
            with contextlib.suppress(OSError):  # there is no more now, or it is being ended
                while len(said) < LAST_READ_BYTES and (data := os.read(child.stdout_fd, READ_BYTES)):
                    said += data
            if not will_say_more or len(said) >= LAST_READ_BYTES:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_S)
        if said.strip():
            self._tell_vain(child, said)

    def _tell_vain(self, child: Child, said: bytes | bytearray) -> None:
        """Tell what was dropped; the second, the fourth, the eighth … time it happens."""
        self._vain += 1
        if self._vain & (self._vain - 1):
            return
        first, *more = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
        first = first if len(first) <= SHOWN_CHARS else f"{first[: SHOWN_CHARS - 1]}…"
        also = f" and {len(more)} more line{'s' * (len(more) > 1)}" if more else ""
        when = "beyond its answer" if self._is_asked else "before it was asked"
        times = f" (so {self._vain} times now)" if self._vain > 1 else ""
        advice = f"; {self._advice}" if self._is_asked else ""
        self._report(f"{child.name} said {when}: '{first}'{also}; dropped{times}{advice}")

    def _end(self) -> None:
        child, self._child = self._child, None  # from here on its death is our own doing
        if child:
            child.stop(term_s=BREAK_OFF_S)

    def about(self) -> None:
        return None

    def death_fd(self) -> int:
        return -1  # `tend` looks: a program whose answer is broken off is ended, and another one started

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        child = self._child
        if child and self._talking.acquire(blocking=False):
            try:
                self._drop_unasked(child)  # told soon; and a program that speaks for itself is not held up
            finally:
                self._talking.release()
        if child and (code := child.exit_code()) is not None and child is self._child:
            raise ProgramError(fate(child, code))

    def close(self) -> None:
        self._end()
