"""Processes of this machine: whether they live, their parents and descendants, their commands, their host memory."""

from __future__ import annotations

import os

from modelpipes.machine.kernel import KIB, read_text


def is_alive(pid: int) -> bool:
    """Is there such a process? One that has ended, and that nobody has waited for, counts."""
    return os.path.exists(f"/proc/{pid}")


def parent_of(pid: int) -> int | None:
    """None where it has ended. proc_pid_stat(5): the name in parentheses may itself have some."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def command_of(pid: int) -> list[str]:
    """The words of its command line; none where it has ended, or is a kernel's."""
    text = read_text(f"/proc/{pid}/cmdline")
    return text.rstrip("\0").split("\0") if text else []


def name_of(pid: int) -> str:
    """What the kernel calls it; "" where it has ended."""
    return read_text(f"/proc/{pid}/comm").strip()


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
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * KIB
    except OSError:  # before Linux 4.14, or not ours to read
        pass
    return resident_bytes(pid)


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM now; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


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
