"""The person as a voice: a line typed is an answer, or a message that the line editor has."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from modelpipes.chat.guest import Guest
from modelpipes.chat.voices import Finish, Work
from modelpipes.errors import MessageError, ProgramError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

LIFE_S = 0.5  # a person thinks for as long as they like; their peers are told so
READ_BYTES = 65536
STDIN = 0


class TerminalVoice:
    """Asks the person whose terminal this is; they have no time limit."""

    kind = "the terminal"
    parallel = 1
    history_bytes = 65536  # a person remembers; only the last turn is needed

    def __init__(self, name: str, *, leave: Callable[[], None]) -> None:
        """`leave` is called when the person ends the input (Ctrl-D)."""
        self._name = name
        self._leave = leave
        self._typed = b""  # beyond the line that answered

    def prepare(self, deadline: Deadline) -> None:
        pass

    def answer(self, work: Work) -> Finish:
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        work.when_cancelled(lambda: os.eventfd_write(wake, 1))
        answer = b""
        try:
            while not answer.strip():  # a stray Enter is no answer
                output.prompt(f"{self._name}> ")
                self._await_line(work, wake)
                if work.is_cancelled:
                    return Finish()  # what was typed by then begins the next answer
                answer, _, self._typed = self._typed.partition(b"\n")
        finally:
            work.when_cancelled(None)
            os.close(wake)
        work.emit(answer.decode("utf-8", "replace").removesuffix("\r"))
        return Finish()

    def _await_line(self, work: Work, wake: int) -> None:
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while b"\n" not in self._typed and not work.is_cancelled:
            work.show_life("thinking")
            if STDIN not in dict(poll.poll(int(LIFE_S * 1000))):
                continue
            try:
                data = os.read(STDIN, READ_BYTES)
            except BlockingIOError:
                continue  # a neighbour made it so, and was faster
            except OSError:
                data = b""  # the terminal has gone, or stdin was never open
            if not data and not self._typed:
                output.prompt("\n")  # Ctrl-D leaves the cursor behind the prompt
                self._leave()
                raise ProgramError(f"{self._name} has left (end of input)")
            self._typed += data or b"\n"
            if len(self._typed) > MAX_MESSAGE_BYTES and b"\n" not in self._typed:
                self._typed = b""
                raise MessageError(f"more than {MAX_MESSAGE_BYTES} bytes were typed without a newline")

    def about(self) -> None:
        return None

    def death_fd(self) -> int:
        return -1

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        pass

    def close(self) -> None:
        pass


class GuestVoice(TerminalVoice):
    """Gives what the person typed at the line editor; a wish is no answer, and is put off for who leads the talk."""

    def __init__(self, guest: Guest, *, leave: Callable[[], None]) -> None:
        super().__init__(guest.name, leave=leave)
        self._guest = guest

    def answer(self, work: Work) -> Finish:
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        work.when_cancelled(lambda: os.eventfd_write(wake, 1))
        try:
            wish = self._guest.next(wake, lambda: work.show_life("thinking"))
        except ProgramError:
            self._leave()
            raise
        finally:
            work.when_cancelled(None)
            os.close(wake)
        if wish is None:
            return Finish()
        if wish.kind != "say":
            self._guest.put_off(wish)
            return Finish("cancelled")
        work.emit(wish.text)
        return Finish()
