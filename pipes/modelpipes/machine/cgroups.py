"""Control groups that limit memory (cgroups(7), version 2): made beside or below our own, where that is ours to do."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator

from modelpipes.machine.kernel import read_text
from modelpipes.machine.processes import family, is_alive
from modelpipes.values.deadline import Deadline

PREFIX = "modelpipes-"  # of the name of every group that we make; our pid follows
OURS = f"{PREFIX}own"  # the leaf that we move into: processes live in leaves only (cgroup-v2, "No Internal Process")
REMOVAL_S = 2.0  # the kernel takes a killed group's processes out of it within milliseconds
REMOVAL_INTERVAL_S = 0.005
_numbers = itertools.count(1)


class MemoryGroup:
    """A control group whose processes together have at most so many bytes of memory; `remove` kills what is in it."""

    def __init__(self, folder: str, limit_bytes: int) -> None:
        """Make it. OSError where that cannot be."""
        self.folder = folder
        os.mkdir(folder)
        try:
            _write(folder, "memory.max", str(limit_bytes))
            # Else what is over the limit goes to the disk, and the machine drags on.
            with contextlib.suppress(OSError):  # a kernel without swap
                _write(folder, "memory.swap.max", "0")
            _write(folder, "memory.oom.group", "1")  # half an engine is of no use
        except OSError:
            os.rmdir(folder)
            raise

    @property
    def processes(self) -> str:
        """The file into which a process writes its pid to belong here."""
        return os.path.join(self.folder, "cgroup.procs")

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for its limit."""
        return _event(self.folder, "oom_kill")

    def remove(self) -> bool:
        """End it with whatever is still in it; whether it has gone."""
        with contextlib.suppress(OSError):  # before Linux 5.14
            _write(self.folder, "cgroup.kill", "1")
        deadline = Deadline.after(REMOVAL_S)
        while not _remove(self.folder):
            if deadline.has_passed():
                return False
            time.sleep(REMOVAL_INTERVAL_S)
        return True


def make_memory_group(limit_bytes: int, root: str = "", own_pid: int = 0) -> MemoryGroup | None:
    """A group with this limit; None where the system lets us make none.

    It lies below our own group, where that is given to us as a whole (systemd's Delegate=), or else beside it, as in
    a person's session under systemd. `root` is where the hierarchy of version 2 is mounted ("": where the system says),
    `own_pid` whose group is ours (0: our own).
    """
    own_pid = own_pid or os.getpid()
    for parent in _parents(root or _root(), own_pid):
        _sweep(parent)
        if not _has_memory(parent, own_pid):
            continue
        with contextlib.suppress(OSError):
            return MemoryGroup(os.path.join(parent, f"{PREFIX}{own_pid}-{next(_numbers)}"), limit_bytes)
    return None


def _parents(root: str, pid: int) -> Iterator[str]:
    """Our own group and the one above it, never the root, which is the machine's."""
    own = next((line[3:] for line in read_text(f"/proc/{pid}/cgroup").splitlines() if line.startswith("0::")), "")
    if not root or not own.startswith("/"):
        return
    own = os.path.dirname(own) if os.path.basename(own) == OURS else own  # moved there by an earlier call
    for group in (own, os.path.dirname(own)):
        if group.strip("/") and os.access(folder := root + group, os.W_OK):
            yield folder


def _root() -> str:
    """Where cgroup2 is mounted; "" where it is not. proc_pid_mountinfo(5): after " - " stands the kind."""
    for line in read_text("/proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return place.split()[4]
    return ""


def _has_memory(parent: str, own_pid: int) -> bool:
    """Whether groups below this one can limit memory, made so if need be and nobody else is concerned."""
    if "memory" in read_text(f"{parent}/cgroup.subtree_control").split():
        return True
    inside = [int(pid) for pid in read_text(f"{parent}/cgroup.procs").split()]
    # A folder in which we are with others, as a shell, is not ours to arrange.
    if own_pid not in inside or not set(inside) <= set(family(own_pid)):
        return False
    if "memory" not in read_text(f"{parent}/cgroup.controllers").split():
        return False
    try:
        leaf = os.path.join(parent, OURS)
        os.makedirs(leaf, exist_ok=True)
        for pid in inside:
            _write(leaf, "cgroup.procs", str(pid))
        _write(parent, "cgroup.subtree_control", "+memory")
    except OSError:
        return False
    return True


def _sweep(parent: str) -> None:
    """Remove what was left by those of us that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            pid = name.removeprefix(PREFIX).partition("-")[0]
            if name.startswith(PREFIX) and pid.isdecimal() and not is_alive(int(pid)):
                _remove(os.path.join(parent, name))


def _remove(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _event(folder: str, name: str) -> int:
    for line in read_text(f"{folder}/memory.events").splitlines():
        key, _, number = line.partition(" ")
        if key == name:
            return int(number)
    return 0


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="ascii") as file:
        file.write(text)
