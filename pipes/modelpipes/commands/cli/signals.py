"""The signals that end a command: what it started ends, what it made goes, and the shell learns of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from modelpipes.errors import Ended

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise Ended, once; later ones find us cleaning up. After it they end us.

    SIGHUP ignored at start stays ignored (nohup). SIGINT is handled even where a script's `&` had it ignored.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        if not _is_ending():
            raise Ended(signum)

    ending = [each for each in ENDING_SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    for each in ending:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ending:
            signal.signal(each, signal.SIG_DFL)


def _is_ending() -> bool:
    """Is an Ended on its way out? Python drops one that is raised in a destructor, and then the next must count."""
    error = sys.exc_info()[1]
    while error and not isinstance(error, Ended):
        error = error.__context__
    return error is not None


def is_at_terminal() -> bool:
    """Are we in the foreground of a terminal, where Ctrl-C comes from?"""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
