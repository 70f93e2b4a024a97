"""Processes of the drill: started, found in /proc, and gone or not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from modelpipes.values.deadline import Deadline


class Id(NamedTuple):
    """One process for ever: its number may come again, with another start."""

    pid: int
    start: int  # clock ticks since boot


def _stat(pid: int) -> tuple[Id, int, str] | None:
    """Who it is, its parent, its state; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return Id(pid, int(fields[19])), int(fields[1]), fields[0]


def descendants(pid: int) -> set[Id]:
    """Every process that this one started, and what those started."""
    children: dict[int, list[Id]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (found := _stat(int(entry))):
            children.setdefault(found[1], []).append(found[0])
    family: set[Id] = set()
    new = children.get(pid, [])
    while new:
        family |= set(new)
        new = [child for one in new for child in children.get(one.pid, [])]
    return family


def living(family: Iterable[Id]) -> set[Id]:
    """Those that still run; a zombie only waits to be reaped."""
    return {one for one in family if (found := _stat(one.pid)) and found[0] == one and found[2] not in "ZX"}


def marked(mark: str) -> set[Id]:
    """Every process with this text in its environment."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    has_mark = mark.encode() in file.read().split(b"\0")
            except OSError:
                continue
            if has_mark and (stat := _stat(int(entry))):
                found.add(stat[0])
    return living(found)


def command_line(pid: int) -> list[str]:
    """Its arguments; none where it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def wait_for_end(pidfd: int, deadline: Deadline) -> bool:
    """Whether a process has ended, waiting for it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(deadline.poll_ms()))


class Process:
    """One process that we started; it may be traced to its death by a thread of ours."""

    def __init__(self, argv: list[str], env: dict[str, str], log: str, *, is_stopped: bool = False) -> None:
        """What it says goes to the end of `log`. `is_stopped`: it waits for SIGCONT before its first instruction."""
        self.log = log
        if is_stopped:
            argv = ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *argv]
        with open(log, "ab") as out:
            self._popen = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        if is_stopped:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self._pidfd, signum)

    def was_reaped(self, status: int) -> None:
        """A tracer of ours has waited for it."""
        self._popen.returncode = os.waitstatus_to_exitcode(status)

    def wait(self, deadline: Deadline) -> int | None:
        """How it ended; None where it has not before the deadline."""
        if self._popen.returncode is None and wait_for_end(self._pidfd, deadline):
            self._popen.wait()
        if self._popen.returncode is not None and self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return self._popen.returncode

    def has_ended(self) -> bool:
        return self.wait(Deadline.after(0)) is not None

    def said(self, lines: int = 3) -> str:
        """The last that it said."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return " | ".join(file.read().splitlines()[-lines:])
