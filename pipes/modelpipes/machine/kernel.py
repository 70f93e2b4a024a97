"""What the kernel says in its files: of the CPU, of the limits to pipes, of whom it killed for want of memory."""

from __future__ import annotations

import contextlib
from typing import NamedTuple


class PipeLimits(NamedTuple):
    """Of the pipes of a user who is not root (pipe(7)); None where /proc does not say, pages of 0 are no limit."""

    max_bytes: int | None  # up to which anybody may widen a pipe
    soft_pages: int | None  # of all open pipes of a user; further ones hold two pages
    hard_pages: int | None  # further ones cannot be opened


def read_text(path: str) -> str:
    """What a file of the kernel says; "" where it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def read_number(path: str) -> int | None:
    """The number in a file of the kernel; None where it is not there, or says something else."""
    text = read_text(path).strip()
    return int(text) if text.isdecimal() else None


def read_pipe_limits() -> PipeLimits:
    """The limits to pipes now."""
    root = "/proc/sys/fs"
    pages = [read_number(f"{root}/pipe-user-pages-{kind}") for kind in ("soft", "hard")]
    return PipeLimits(read_number(f"{root}/pipe-max-size"), *pages)


def read_cpuinfo() -> str:
    """/proc/cpuinfo; "" where the kernel does not say."""
    return read_text("/proc/cpuinfo")


def read_cpu_features() -> tuple[str, ...]:
    """Every feature of this CPU, as the kernel names them; () where it does not say."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:  # of the first core: the file has all of them
            if line.startswith(("flags", "Features")):
                return tuple(line.partition(":")[2].split())
    return ()


def count_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it booted, also those over a
    control group's limit (mm/oom_kill.c); 0 where it does not say.
    """
    for line in read_text("/proc/vmstat").splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill":
            return int(number)
    return 0
