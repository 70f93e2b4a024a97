"""What a process, with all that it started, holds of the machine's memories now."""

from __future__ import annotations

from typing import NamedTuple

from modelpipes.machine.cards import card_bytes
from modelpipes.machine.processes import family, host_bytes


class Taken(NamedTuple):
    """Bytes that a process holds, as the system tells them; `card` is None where the driver does not."""

    card: int | None
    host: int


def look(pid: int, *, has_cards: bool) -> Taken:
    """What a process and its descendants hold now: on the cards, where there are any, by NVML, of the host by PSS."""
    pids = family(pid)
    return Taken(card_bytes(pids) if has_cards else None, sum(map(host_bytes, pids)))
