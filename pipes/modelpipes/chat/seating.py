"""Seat members as processes of ours, one after the other, and bring back those that die."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from modelpipes.chat.voices import LEAVING_S, LOAD_S
from modelpipes.chat.voices.loading import Arriving, Show, show_nothing
from modelpipes.child import Child
from modelpipes.errors import DeadlineError, PeerError, PeerGone, UsageError
from modelpipes.pipe.room import Room, Sitting
from modelpipes.values.deadline import Deadline

PATIENCE_S = 30.0  # for a person who starts a member again by hand


def say_nothing(line: str) -> None:
    """Where nobody wants to hear how a member is brought back."""


class Seating:
    """Members that this process seated.

        with Seating(room) as seating:
            seating.seat({"alice": ["--model", "tiny-chat"], "bob": ["--filter", "cat"]})

    Its end ends them, last seated first; so does our own death.
    """

    def __init__(
        self,
        room: Room,
        *,
        patience_s: float = PATIENCE_S,
        report: Callable[[str], None] = say_nothing,
        show: Show = show_nothing,
    ) -> None:
        """`patience_s` is how long a member that somebody else seated is waited for; 0: not at all, inf: for ever.

        `report` is told in a line when a member is waited for, or seated again; `show` again and again how far the
        member is that loads, and None once it is there or has failed.
        """
        self.room = room
        self._patience_s = patience_s
        self._report = report
        self._show = show
        self._commands: dict[str, Sequence[str]] = {}
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Seating:
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children.values()):
            child.stop()

    def seat(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Start `attach-model SEAT …`, with the options given, for each seat; return when all of them are ready.

        One loads after the other, as they share the memory. Raises PeerGone, with the member's last words, where one
        cannot be seated, UsageError where it is already, and DeadlineError where one is not ready after ten minutes.
        """
        for number, (seat, options) in enumerate(commands.items(), 1):
            if child := self._children.get(seat):
                if child.exit_code() is None and self._sits(seat, child):
                    raise UsageError(f"{seat} is seated already, by process {child.pid}")
                child.stop()
            self._commands[seat] = [sys.executable, "-P", "-m", "modelpipes", "attach", seat, "-d", self.room.path]
            self._commands[seat] = [*self._commands[seat], *options]
            self._start(Arriving(seat, number, len(commands)), Deadline.never())

    def _sits(self, seat: str, child: Child) -> bool:
        """Does it hold the seat? Who leaves, or dies, frees it before it can be waited for."""
        sitting = self.room.sitting(seat)
        return sitting.pid == child.pid and sitting.state not in ("free", "died")

    def _start(self, arriving: Arriving, limit: Deadline) -> None:
        seat, began_s = arriving.seat, time.monotonic()
        child = Child(self._commands[seat], name=f"member {seat}")
        self._children[seat] = child

        def check() -> None:
            if child.exit_code() is not None:
                raise PeerGone(_last_words(seat, child))

        def tell(who: Sitting) -> None:
            loading = who.loading if who.pid == child.pid else None
            self._show(replace(arriving, elapsed_s=time.monotonic() - began_s, loading=loading))

        try:
            deadline = Deadline.after(LOAD_S).earlier(limit)
            self.room.wait_for_process(seat, child.pid, deadline, check=check, tell=tell)
        finally:
            self._show(None)

    def bring_back(self, seat: str, why: PeerError, limit: Deadline) -> None:
        """Return when the member is there again: started again if we seated it, else waited for.

        Raises `why` where nobody comes, PeerGone where it cannot be seated again, DeadlineError at the limit.
        """
        child = self._children.get(seat)
        if child is None:
            if self._patience_s == 0:
                raise why
            how_long = "" if self._patience_s == math.inf else f" {self._patience_s:g} s"
            self._report(f"{why}; waiting{how_long} for it")
            try:
                self.room.wait_for([seat], Deadline.after(self._patience_s).earlier(limit), grace_s=math.inf)
            except DeadlineError:
                raise why from None
            return
        with contextlib.suppress(DeadlineError):
            child.wait(Deadline.after(LEAVING_S).earlier(limit))
        self._report(f"{_last_words(seat, child)}; seating it again")
        child.stop()
        self._start(Arriving(seat), limit)


def _last_words(seat: str, child: Child) -> str:
    """How a member ended, and what it said last."""
    code = child.exit_code()
    if code is None:
        return f"{seat} (pid {child.pid}) no longer answers"
    if code < 0:
        return f"{seat} was killed by signal {-code}"
    said = (child.last_lines(1) or ["it said nothing"])[0]
    return f"{seat} ended with {code}: {said.removeprefix('modelpipes attach: ').removeprefix(f'{seat}: ')}"
