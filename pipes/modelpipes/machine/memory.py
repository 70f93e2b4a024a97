"""How much memory the machine, or the container that we run in, can still give.

psutil tells of the machine; it knows nothing of control groups, whose limits are read here, of both versions:
cgroups(7), and the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from modelpipes.machine.kernel import read_number, read_text

_CGROUP = "/sys/fs/cgroup"
_FILES = ("inactive_file", "active_file")  # of memory.stat; shared memory is not among them
_KIB = 1024  # in which proc(5) counts memory

# Of fields that we do not ask for, and that a container's /proc may lack.
warnings.filterwarnings("ignore", message=".*memory stats couldn't be determined", category=RuntimeWarning)


class Memory(NamedTuple):
    """Of the machine, or what a control group may have of it; `available_bytes` is what a new process can have."""

    total_bytes: int
    available_bytes: int


def read_memory() -> Memory:
    """The memory now, as psutil has it (`MemAvailable`, without swapping), or less where a cgroup sets a limit.

    All 0 where there is no /proc.
    """
    import psutil

    try:
        found = psutil.virtual_memory()
    except OSError:
        return Memory(0, 0)
    limits = list(_limits())
    return Memory(
        min([found.total, *(limit for limit, _ in limits)]),
        min([found.available, *(max(0, limit - used) for limit, used in limits)]),
    )


def available_bytes() -> int:
    """What `read_memory` tells as available, for who wants nothing else: psutil is a tenth of find-gguf's time."""
    available = 0  # before Linux 3.14
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * _KIB
            break
    return min([available, *(max(0, limit - used) for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    return find_limits(read_text("/proc/self/cgroup"), _CGROUP)


def find_limits(groups: str, mount: str) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of our control group and of each around it, where there is a limit.

    Files that the kernel keeps in memory count as used by a group, and are given up when it needs more: they are left
    out here, as in the machine's own `MemAvailable`. A model file that was read would seem to fill a container else.

    `groups` is what /proc/self/cgroup says, `mount` where control groups are. In a container the names may be those of
    the host: what is mounted as the root is then our own.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, now, prefix = mount, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, most, now = f"{mount}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"  # of the groups within, too
        else:
            continue
        while True:
            limit, used = read_number(f"{root}{path}/{most}"), read_number(f"{root}{path}/{now}")
            if limit is not None and used is not None:
                yield limit, max(0, used - _files_bytes(f"{root}{path}/memory.stat", prefix))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)


def _files_bytes(path: str, prefix: str) -> int:
    """What a group's `memory.stat` says of files in memory."""
    names = [f"{prefix}{name}" for name in _FILES]
    lines = (line.split() for line in read_text(path).splitlines())
    return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] in names and words[1].isdecimal())
