"""The answer of one model that sits nowhere: as it comes, or as JSON; and how long it took."""

from __future__ import annotations

import contextlib
from types import TracebackType

from modelpipes.chat.conversation import Listener
from modelpipes.commands.views.answer import Answered, figures
from modelpipes.commands.views.talk import PHASES
from modelpipes.errors import PipesError
from modelpipes.pipe.message import Phase, Reply
from modelpipes.terminal import output


class Single(Listener):
    """Prints one answer. Within `with`, what breaks it off ends the line that was being said."""

    def __init__(self, name: str, *, as_json: bool, show_thinking: bool, verbose: bool) -> None:
        self._name = name
        self._as_json = as_json
        self._show_thinking = show_thinking
        self._verbose = verbose
        self._speech = output.Speech(show_thinking=show_thinking)
        self._sign = output.Sign(f"waiting for {name}")

    def __enter__(self) -> Single:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sign.wipe()
        if error and not self._as_json:
            with contextlib.suppress(BrokenPipeError, PipesError):  # what broke it off is told, not this
                self._speech.void()

    def starts(self, speaker: str, turn: int) -> None:
        if not self._as_json:
            self._speech.void()

    def waits(self, speaker: str, phase: Phase) -> None:
        self._sign.say(f"{speaker} {PHASES[phase]}")

    def says(self, content: str, thinking: str) -> None:
        if content or self._show_thinking:
            self._sign.wipe()
        if not self._as_json:
            self._speech.say(content, thinking)

    def end(self, reply: Reply, round_trip_ms: float) -> None:
        """The answer is whole."""
        self._sign.wipe()
        if self._as_json:
            output.write_json(Answered.of(reply, round_trip_ms))
        else:
            self._speech.end(reply.content, reply.thinking)
        if self._verbose:
            output.say(figures(reply, round_trip_ms))
