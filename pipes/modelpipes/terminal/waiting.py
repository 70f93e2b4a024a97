"""What a person reads while something takes long: one line in place at a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import time
from types import TracebackType

from modelpipes.terminal.output import STDERR, Progress, say

FIRST_S = 1.0  # who waits longer wants to know for what
AGAIN_S = 10.0  # between two lines in a pipe: a log of an hour has 360
BAR_COLUMNS = 20


class Waiting:
    """Tells on stderr how far something is, from its first second on.

        with Waiting() as waiting:
            waiting.show("loading alice: 3.1 of 4.7 GiB, 12 s", 0.66)

    The end of `with`, or `done`, wipes a line in place.
    """

    def __init__(self) -> None:
        self._is_in_place = _is_ours(STDERR)
        self._progress: Progress | None = None
        self._since_s: float | None = time.monotonic()
        self._said_s: float | None = None

    def show(self, line: str, share: float | None = None, *, may_wipe: bool = True) -> None:
        """Say it, unless it is too early; `share`, of 1, is what is done. Unless it `may_wipe` a line, it stays one."""
        now_s = time.monotonic()
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < FIRST_S:
            return
        if self._is_in_place and may_wipe:
            self._progress = progress = self._progress or Progress(0)
            progress.show(line if share is None else f"{line} {draw_share(share)}")
        elif self._said_s is None or now_s - self._said_s >= AGAIN_S:
            self._said_s = now_s
            say(line)

    def say(self, line: str) -> None:
        """Say a line that stays, above the one in place."""
        progress = self._progress
        if progress:
            progress.say(line)
        else:
            say(line)

    def done(self) -> None:
        """What was waited for is over; what is shown next begins anew."""
        if self._progress:
            self._progress.end()
        self._progress = self._since_s = self._said_s = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done()


def draw_share(share: float) -> str:
    """A bar: ██████░░░░."""
    full = round(BAR_COLUMNS * min(max(share, 0.0), 1.0))
    return "█" * full + "░" * (BAR_COLUMNS - full)


def _is_ours(descriptor: int) -> bool:
    """Is it a terminal with a width, whose line can be wiped, and are we in its foreground?

    A line in place would wipe the prompt of a shell that has us in the background.
    """
    if os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(descriptor).columns > 0 and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
