"""Processes of this machine: whether they live, their parents and descendants, their commands, their host memory.

psutil answers, and is imported when it is first asked: it takes 10 ms, and most commands ask nothing. What it
answers slower by far stays ours: who descends from whom, for which it reads about every process (50 times the time of
the kernel's own lists, with 120 processes), and whose a socket is. A process that ends while it is looked at, one of
another user that may not be seen and one that is a zombie are no errors: each tells what it tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from psutil import Process

_T = TypeVar("_T")


def is_alive(pid: int) -> bool:
    """Is there such a process? One that has ended, and that nobody has waited for, counts."""
    import psutil

    try:
        return psutil.pid_exists(pid)
    except OverflowError:  # more than the kernel can count
        return False


def parent_of(pid: int) -> int | None:
    """None where it has ended."""
    return _ask(pid, lambda process: process.ppid(), None)


def command_of(pid: int) -> list[str]:
    """The words of its command line; none where it has ended, or is a kernel's."""
    none: list[str] = []
    return [_printable(word) for word in _ask(pid, lambda process: process.cmdline(), none)]


def name_of(pid: int) -> str:
    """What the kernel calls it, which cuts it off after 15 bytes: then, what its command line has; "" where it has
    ended.
    """
    return _printable(_ask(pid, lambda process: process.name(), ""))


def family(pid: int) -> tuple[int, ...]:
    """A process and all its descendants that live now; empty if it has gone."""
    if not is_alive(pid):
        return ()
    found = [pid]
    for each in found:  # grows as it goes
        found += _children(each)
    return tuple(found)


def _children(pid: int) -> list[int]:
    """Of all its threads (proc(5), /proc/PID/task/TID/children)."""
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
    except OSError:  # it ended meanwhile
        pass
    return children


def host_bytes(pid: int) -> int:
    """Host memory of one process: its proportional share of what it maps with others, else all that it has in RAM.

    0 if it has gone. PSS (proc(5), smaps_rollup) counts a model file that two engines map once between them.
    """
    return _ask(pid, lambda process: process.memory_full_info().pss, 0) or resident_bytes(pid)


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM now; 0 if there is none."""
    return _ask(pid, lambda process: process.memory_info().rss, 0)


def find_owner_of_socket(inode: int) -> int | None:
    """Who has this socket open; None where it is another user's process, whose descriptors are not ours to see."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]":
                    return int(pid)
        except OSError:
            continue
    return None


# Calls by machine, as the kernel numbers them (asm/unistd.h): read, readv and splice, whose first argument is what is
# read; and those in which one can wait for input and for something else: poll, ppoll, select, pselect6, epoll_wait,
# epoll_pwait, epoll_pwait2, wait4, waitid.
_READS, _WAITS = {
    "x86_64": ((0, 19, 275), (7, 271, 23, 270, 232, 281, 441, 61, 247)),
    "aarch64": ((63, 65, 76), (73, 72, 22, 441, 260, 95)),
}.get(os.uname().machine, ((), ()))


def awaits_input(pid: int) -> bool | None:
    """Does a child of ours wait in a read of its stdin? None where that cannot be told: it may.

    So for a process that waits for one of several things, or for a child; and where the kernel does not tell. proc(5),
    /proc/PID/task/TID/syscall: the number of the call that it waits in, then the arguments. Who may look is decided
    as for a debugger; a parent may.
    """
    try:
        if _reads_stdin(folder := f"/proc/{pid}"):  # as most do, with their first thread
            return True
        waits = [_reads_stdin(f"{folder}/task/{task}") for task in os.listdir(f"{folder}/task")]
    except (OSError, ValueError):  # it has ended, or is not ours to see
        return None
    return True if True in waits else None if None in waits else False


def _reads_stdin(thread: str) -> bool | None:
    fd = os.open(f"{thread}/syscall", os.O_RDONLY | os.O_CLOEXEC)
    try:
        call, *arguments = os.read(fd, 256).split()
    finally:
        os.close(fd)
    if call == b"running":
        return False
    number = int(call)
    if number in _READS:
        return arguments[0] == b"0x0"
    return None if number in _WAITS or not _READS else False


def _ask(pid: int, question: Callable[[Process], _T], otherwise: _T) -> _T:
    """What psutil answers of a process; `otherwise` where it has gone or may not be seen."""
    import psutil

    if pid <= 0:  # an engine without a process
        return otherwise
    try:
        return question(psutil.Process(pid))
    except (psutil.Error, OSError):
        return otherwise


def _printable(word: str) -> str:
    return os.fsencode(word).decode("utf-8", "replace")
