"""What the gateway asks of the pool of engines, and what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from modelpipes.gateway.wire import Residency


@dataclass(frozen=True)
class Address:
    """Where an engine listens: a port on loopback, or a Unix socket where `path` is given; and its key."""

    host: str
    port: int
    key: str
    path: str = ""


@dataclass(eq=False)
class Grant:
    """Leave to speak to an engine until `release`; it counts as busy as long.

    `identity` is of its files, settings and program: another one is another model, though it has the same name.
    """

    name: str
    address: Address
    identity: str = ""
    drain: asyncio.Event = field(default_factory=asyncio.Event)  # set where others wait: end soon
    is_lost: bool = False  # the engine has died; what was asked of it can be asked again
    id: int = 0  # the request's, in what is told of it

    def release(self) -> None:
        """Give it back; a second time does nothing."""


class ModelReport(msgspec.Struct):
    """One servable model, as `/v1/models` shows it."""

    id: str
    file: str
    aliases: list[str]
    created: int
    context_length: int
    state: str  # "unloaded", or a resident's state
    bytes: int = 0  # what it is predicted to take of the card
    host_bytes: int = 0
    estimate: str = "exact"  # or "generic", or "own": what a person says


class EnginePool(Protocol):
    """The engines that the daemon owns. Everything is called in the event loop; every wait is bounded by the pool."""

    def models(self) -> list[ModelReport]:
        """What can be served, by name."""

    async def acquire(self, name: str) -> Grant:
        """Wait for an engine of this model, by name or alias; a cancelled wait leaves the queue. ServingError."""

    def residency(self) -> Residency:
        """The state of it all now."""

    def metrics(self) -> bytes:
        """Figures in Prometheus' text format."""

    async def load(self, name: str) -> None:
        """Have it resident. ServingError."""

    async def unload(self, name: str) -> None:
        """Have it gone, once it is idle. ServingError."""

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Keep it resident, or no longer. ServingError."""

    def logs(self, name: str, *, follow: bool) -> AsyncIterator[str]:
        """The engine's last lines, and with `follow` those to come. ServingError."""
