"""What our own daemon says over HTTP, as types: the gateway makes its answers from them, and its clients read them."""

from __future__ import annotations

import msgspec

from modelpipes.events import Event


class Fault(msgspec.Struct):
    """What is wrong, as OpenAI's API says it; `code` is one of a fixed list."""

    message: str
    type: str
    code: str | int | None
    param: str | None = None


class ErrorAnswer(msgspec.Struct):
    """The body of every answer that is none."""

    error: Fault


class ModelEntry(msgspec.Struct):
    """One servable model, and what it will take of the card and of host memory.

    `estimate` says how that is known: exact, generic (by the general rule), own (by what its configuration says).
    """

    id: str
    created: int
    file: str
    aliases: list[str]
    context_length: int
    state: str
    object: str = "model"
    owned_by: str = "modelpipes"
    bytes: int = 0
    host_bytes: int = 0
    estimate: str = "exact"


class ModelList(msgspec.Struct):
    data: list[ModelEntry]
    object: str = "list"


class ModelState(msgspec.Struct):
    """What a model is now, after it was told to load, unload, pin or unpin."""

    name: str
    state: str
    pinned: bool


class LeaseLine(msgspec.Struct):
    """The first line of a lease: where the engine listens. `path` is a Unix socket, where it is on one.

    `identity` is the same as of another lease where the engine's files, settings and program are.
    """

    host: str
    port: int
    path: str
    key: str
    name: str
    identity: str = ""


class LeaseNews(msgspec.Struct, omit_defaults=True):
    """A later line of a lease: others wait; its time is over; the engine has died. After the latter two, the end."""

    drain: bool = False
    expired: bool = False
    lost: bool = False


class ResidentReport(msgspec.Struct):
    """A model in memory: loading, ready, draining, stopping or failed; its bytes of the card's and of host memory.

    `replaced`: its file is another one now than when it was loaded, or gone.
    """

    name: str
    state: str
    bytes: int
    host_bytes: int
    busy: int
    idle_s: float
    pinned: bool
    replaced: bool = False


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


class Snapshot(msgspec.Struct, frozen=True, tag_field="kind", tag="snapshot"):
    """All of it at one moment, with which a stream of events begins: what is served, what is in memory, who waits."""

    residency: Residency
    models: list[ModelEntry]


class EventLine(msgspec.Struct, forbid_unknown_fields=True):
    """One event, as a line of JSON: its id, which grows by one, and when it happened: ISO 8601 in UTC.

    A snapshot has the id of the last event before it.
    """

    id: int
    at: str
    event: Event | Snapshot
