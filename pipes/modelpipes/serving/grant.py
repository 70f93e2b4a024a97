"""What the gateway asks of the pool of engines, and what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from modelpipes.errors import PipesError


class ServingError(PipesError):
    """A request that gets no engine: `status` is its HTTP status, `code` OpenAI's word for the fault."""

    def __init__(self, text: str, status: int, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Address:
    """Where an engine listens: a port on loopback, or a Unix socket where `path` is given; and its key."""

    host: str
    port: int
    key: str
    path: str = ""


@dataclass(eq=False)
class Grant:
    """Leave to speak to an engine until `release`; it counts as busy as long."""

    name: str
    address: Address
    drain: asyncio.Event = field(default_factory=asyncio.Event)  # set where others wait: end soon
    is_lost: bool = False  # the engine has died; what was asked of it can be asked again

    def release(self) -> None:
        """Give it back; a second time does nothing."""


class ResidentReport(msgspec.Struct):
    """A model in memory: loading, ready, draining, stopping or failed; its bytes of the card's and of host memory."""

    name: str
    state: str
    bytes: int
    host_bytes: int
    busy: int
    idle_s: float
    pinned: bool


class WaitingReport(msgspec.Struct):
    """A request that waits for room, the first at position 1."""

    name: str
    position: int
    waited_s: float


class DecisionReport(msgspec.Struct):
    """What was done with a model, why, and when: ISO 8601 in UTC."""

    at: str
    action: str
    name: str
    reason: str


class Residency(msgspec.Struct):
    """Who is in memory and who waits, beside the budgets of the card and the host, and the last decisions."""

    budget_bytes: int
    used_bytes: int
    host_budget_bytes: int
    host_used_bytes: int
    resident: list[ResidentReport]
    waiting: list[WaitingReport]
    decisions: list[DecisionReport]


class ModelReport(msgspec.Struct):
    """One servable model, as `/v1/models` shows it."""

    id: str
    file: str
    aliases: list[str]
    created: int
    context_length: int
    state: str  # "unloaded", or a resident's state


class Pool(Protocol):
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
