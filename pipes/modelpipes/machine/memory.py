"""How much memory the machine, or the container that we run in, can still give."""

from __future__ import annotations

KIB = 1024
_CGROUP = "/sys/fs/cgroup"


def available_bytes() -> int:
    """Bytes that a new process can have without swapping: `MemAvailable`, or less where a cgroup sets a limit."""
    available = _meminfo("MemAvailable")
    limit, used = _number(f"{_CGROUP}/memory.max"), _number(f"{_CGROUP}/memory.current")
    return available if limit is None or used is None else max(0, min(available, limit - used))


def total_bytes() -> int:
    """Bytes of memory in the machine, or those that the cgroup may use."""
    limit = _number(f"{_CGROUP}/memory.max")
    return _meminfo("MemTotal") if limit is None else min(limit, _meminfo("MemTotal"))


def _meminfo(key: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * KIB
    return 0  # before Linux 3.14


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
