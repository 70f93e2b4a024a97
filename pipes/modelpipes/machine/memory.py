"""How much memory the machine, or the container that we run in, can still give.

psutil tells of the machine, and is imported when it is first asked (10 ms); it knows nothing of control groups, whose
limits are read here, of both versions: cgroups(7), and the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from modelpipes.machine.kernel import read_number, read_text

_CGROUP = "/sys/fs/cgroup"

# Of fields that we do not ask for, and that a container's /proc may lack.
warnings.filterwarnings("ignore", message=".*memory stats couldn't be determined", category=RuntimeWarning)


class _Memory(NamedTuple):
    total_bytes: int
    available_bytes: int


def available_bytes() -> int:
    """Bytes that a new process can have without swapping: `MemAvailable`, or less where a cgroup sets a limit."""
    rooms = [max(0, limit - used) for limit, used in _limits()]
    return min([_of_machine().available_bytes, *rooms])


def total_bytes() -> int:
    """Bytes of memory in the machine, or those that the cgroup may use."""
    return min([_of_machine().total_bytes, *(limit for limit, _ in _limits())])


def _of_machine() -> _Memory:
    import psutil

    try:
        found = psutil.virtual_memory()
    except OSError:  # no /proc
        return _Memory(0, 0)
    return _Memory(found.total, found.available)


def _limits() -> Iterator[tuple[int, int]]:
    return find_limits(read_text("/proc/self/cgroup"), _CGROUP)


def find_limits(groups: str, mount: str) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of our control group and of each around it, where there is a limit.

    `groups` is what /proc/self/cgroup says, `mount` where control groups are. In a container the names may be those of
    the host: what is mounted as the root is then our own.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, now = mount, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, now = f"{mount}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        while True:
            limit, used = read_number(f"{root}{path}/{most}"), read_number(f"{root}{path}/{now}")
            if limit is not None and used is not None:
                yield limit, used
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
