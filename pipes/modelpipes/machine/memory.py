"""How much memory the machine, or the container that we run in, can still give."""

from __future__ import annotations

from modelpipes.machine.kernel import KIB, read_number, read_text

_CGROUP = "/sys/fs/cgroup"


def available_bytes() -> int:
    """Bytes that a new process can have without swapping: `MemAvailable`, or less where a cgroup sets a limit."""
    available = _meminfo("MemAvailable")
    limit, used = read_number(f"{_CGROUP}/memory.max"), read_number(f"{_CGROUP}/memory.current")
    return available if limit is None or used is None else max(0, min(available, limit - used))


def total_bytes() -> int:
    """Bytes of memory in the machine, or those that the cgroup may use."""
    limit = read_number(f"{_CGROUP}/memory.max")
    return _meminfo("MemTotal") if limit is None else min(limit, _meminfo("MemTotal"))


def _meminfo(key: str) -> int:
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * KIB
    return 0  # before Linux 3.14
