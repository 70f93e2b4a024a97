"""A look at the cards and host memory each second, while anybody reads events."""

from __future__ import annotations

import asyncio

from modelpipes.errors import PipesError
from modelpipes.events import Card, Machine
from modelpipes.machine.memory import read_memory
from modelpipes.machine.watch import Watch
from modelpipes.serving.ring import Ring

LOOK_S = 1.0
DRIVER_S = 5.0  # for the driver to answer: one that wakes a card takes two


async def look_on(ring: Ring, *, has_cards: bool) -> None:
    """Put a look into the ring each second that somebody reads it, until cancelled."""
    with Watch(DRIVER_S) as watch:
        while True:
            await asyncio.sleep(LOOK_S)
            if ring.is_read:
                ring.put(await asyncio.to_thread(_look, watch if has_cards else None))


def _look(watch: Watch | None) -> Machine:
    memory = read_memory()
    if watch is None:
        return Machine(memory.total_bytes, memory.available_bytes)
    try:
        sample = watch.read()
    except PipesError as error:
        return Machine(memory.total_bytes, memory.available_bytes, problem=str(error))
    cards = tuple(
        Card(
            gpu.index,
            gpu.name,
            gpu.memory_used_bytes,
            gpu.memory_total_bytes,
            gpu.utilization_percent,
            gpu.temperature_celsius,
        )
        for gpu in sample.gpus
        if gpu.is_present
    )
    return Machine(memory.total_bytes, memory.available_bytes, cards, "; ".join(sample.problems))
