"""A conversation as chat-models shows it: each turn as it is spoken, or as JSON; at the end a summary."""

from __future__ import annotations

import contextlib
import statistics
from array import array
from collections.abc import Collection
from types import TracebackType

from modelpipes.chat.conversation import Listener
from modelpipes.chat.transcript import Choice, Turn
from modelpipes.errors import Ended, PipesError
from modelpipes.pipe.message import Phase
from modelpipes.terminal import output

# What a member does of which it shows life.
PHASES: dict[Phase, str] = {
    "queued": "has others to answer first",
    "loading": "is loading",
    "reading": "is reading",
    "thinking": "is thinking",
}


class Watcher(Listener):
    """Prints a conversation as it happens. Within `with`, what breaks it off ends the line that was being spoken."""

    def __init__(
        self, *, as_json: bool, show_thinking: bool, guests: Collection[str] = (), name: str = "chat-models"
    ) -> None:
        """The times of `guests` do not count: a person may take any. `name` is what the command is called."""
        self._name = name
        self._as_json = as_json
        self._show_thinking = show_thinking
        self._guests = guests
        self._speech: output.Speech | None = None
        self._speakers: dict[str, int] = {}  # each has a colour, by the order in which they came to speak
        self._sign: output.Sign | None = None
        self._asked = ("", -1)
        self._heard = self._count = self._tokens = 0
        self._total_ms = 0.0
        self._first_ms = array("d")
        self._beside: list[str] = []  # to be said when the line that is being spoken has ended

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wipe_sign()
        if error is None:
            return
        if self._speech and not self._as_json:
            with contextlib.suppress(BrokenPipeError, PipesError):  # what broke it off is told, not this
                self._speech.void()
        self._speech = None
        self._say_rest()
        if isinstance(error, Ended) and self._heard:
            self.sum_up("a signal")

    def starts(self, speaker: str, turn: int) -> None:
        self._wipe_sign()
        if self._speech and self._asked == (speaker, turn):
            self._speech.void()
        else:
            self._asked = (speaker, turn)
            self._speech = self._speech_of(speaker, show_thinking=self._show_thinking)
        if speaker not in self._guests:
            self._sign = output.Sign(f"waiting for {speaker}")

    def waits(self, speaker: str, phase: Phase) -> None:
        if self._sign:
            self._sign.say(f"{speaker} {PHASES[phase]}")

    def says(self, content: str, thinking: str) -> None:
        if content or self._show_thinking:
            self._wipe_sign()
        if self._speech and not self._as_json:
            self._speech.say(content, thinking)

    def notes(self, line: str) -> None:
        self._wipe_sign()
        output.say(f"{self._name}: {line}")

    def _speech_of(self, speaker: str, *, show_thinking: bool = False) -> output.Speech:
        number = self._speakers.setdefault(speaker, len(self._speakers))
        return output.Speech(f"{speaker}: ", speaker=number, show_thinking=show_thinking)

    def _wipe_sign(self) -> None:
        if self._sign:
            self._sign.wipe()
            self._sign = None

    def ends(self, turn: Turn) -> None:
        self._wipe_sign()
        self._add_up(turn)
        if self._as_json:
            output.write_json(turn)
            return
        speech = self._speech or self._speech_of(turn.sender)
        speech.end(turn.content, turn.thinking)
        self._speech = None
        if turn.stop == "cancelled":
            output.say(f"{self._name}: {turn.sender} was stopped")
        self._say_rest()

    def say_beside(self, line: str) -> None:
        """Say a line on stderr, between two turns."""
        self._beside.append(line)
        if self._as_json or not self._speech:
            self._say_rest()

    def _say_rest(self) -> None:
        if self._beside:
            self._wipe_sign()
        for line in self._beside:
            output.say(line)
        self._beside.clear()

    def chose(self, choice: Choice) -> None:
        self._wipe_sign()
        if choice.why:
            output.say(f"{self._name}: {choice.chose} speaks next: {choice.why}")

    def _add_up(self, turn: Turn) -> None:
        self._heard += 1
        self._count += not turn.is_opening
        self._tokens += turn.usage.completion_tokens if turn.usage else 0
        if turn.timing and turn.sender not in self._guests:
            self._total_ms += turn.timing.total_ms
            if turn.timing.first_token_ms is not None:
                self._first_ms.append(turn.timing.first_token_ms)

    def sum_up(self, why: str) -> None:
        """Say on stderr turns, tokens, times, and why it stopped, in one line."""
        output.say(self._summary(why))

    def _summary(self, why: str) -> str:
        if not self._heard:
            return f"nothing was left to say; ended by: {why}"
        parts = [f"{self._count} turn{'s' if self._count != 1 else ''}"]
        if self._tokens:
            parts.append(f"{self._tokens} tokens")
        if self._first_ms:
            parts.append(f"first token {statistics.median(self._first_ms):.0f} ms (median)")
        return f"{', '.join(parts)}, {self._total_ms / 1000:.1f} s in all; ended by: {why}"
