"""Whether the terminal that we were started from is still there."""

from __future__ import annotations

import os


def has_terminal() -> bool:
    """Whether our session has a terminal. One that was closed is gone for the kernel before we hear of it by SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
