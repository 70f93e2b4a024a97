"""What a process, with all that it started, holds of the machine's memories now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from modelpipes.machine.cards import card_bytes
from modelpipes.machine.kernel import read_text
from modelpipes.machine.processes import family, host_bytes

_KIB = 1024  # in which proc(5) counts memory


class Taken(NamedTuple):
    """Bytes that a process holds, as the system tells them; `card` is None where the driver does not."""

    card: int | None
    host: int


def unshared_bytes(pids: Iterable[int]) -> int:
    """Host memory that would be free if these processes and their descendants ended: no pages of files, which are
    available as it is (proc_pid_status(5), RssAnon and RssShmem).
    """
    total = 0
    for pid in set().union(*map(family, pids)):
        for line in read_text(f"/proc/{pid}/status").splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * _KIB
    return total


def look(pid: int, *, has_cards: bool) -> Taken:
    """What a process and its descendants hold now: on the cards, where there are any, by NVML, of the host by PSS."""
    pids = family(pid)
    return Taken(card_bytes(pids) if has_cards else None, sum(map(host_bytes, pids)))
