"""How much of its files a process has taken in, however it reads them: what a program that loads does not tell.

llama.cpp maps a model file, reads it, or reads it past the kernel's cache, by device and by option (measured with
b11434 and a file of 1.5 GB: mapped, its `rchar` stays at 0 and the mapping's `Rss` grows to the size of the file; with
`--load-mode none` and `dio` it is the other way round). So both count.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from modelpipes.machine.kernel import read_text

_KIB = 1024  # in which proc(5) counts memory


class Intake(NamedTuple):
    """So much of so much."""

    done_bytes: int
    total_bytes: int


def read_intake(pid: int, paths: Collection[str]) -> Intake | None:
    """How much of these files a process has read or has in memory; None where it has gone or may not be seen.

    Takes some 5 ms for each GiB that the process has in RAM: the kernel walks its pages.
    """
    read = read_text(f"/proc/{pid}/io")
    total = sum(map(_size, paths))
    if not read or not total:
        return None
    done = _number_after(read, "rchar:") + _mapped(read_text(f"/proc/{pid}/smaps"), set(map(os.path.realpath, paths)))
    return Intake(min(done, total), total)


def _mapped(smaps: str, paths: Collection[str]) -> int:
    """Bytes in RAM of what is mapped of these files (proc(5), smaps)."""
    found, is_theirs = 0, False
    for line in smaps.splitlines():
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):  # 7f00-7f01 r--p 0000 fe:00 123    /path
            _, _, path = line.partition("/")
            is_theirs = f"/{path}" in paths
        elif is_theirs and word == "Rss:":
            found += int(rest.split()[0]) * _KIB
    return found


def _number_after(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
