"""What happens, as values, and the Sink that takes them; who listens is not known here.

As JSON each has its `kind`, the name of its class in lower case with hyphens: engine-ready. Bytes are by place ("card",
"host", a back-end's name), times in seconds.

EngineState      a model's engine is in another state
EngineReady      an engine is loaded
EngineGone       an engine has ended as decided, and what that freed
EngineStuck      an engine is there and computes nothing
EngineFailed     an engine could not be loaded, or died
StopFailed       an engine could not be ended as it should be
MemoryNotFreed   an engine has ended, and its memory is not free
FileReplaced     the file of a model in memory is another one now
Decided          what was decided about a model, and why
Listening        the daemon is there for others
LeftOut          a model is not served
NotCounted       what of a model's engine no prediction has
DoesNotFit       a model is served and can never be loaded
Reloaded         the configuration was read again and is in force
NotReloaded      the configuration was read again and is not
NeedsRestart     what of a new configuration has to wait for the next start
Trouble          something failed that has no kind of its own
RequestQueued    a request has to wait for an engine
RequestStarted   a request has an engine
FirstToken       a request's answer begins
RequestEnded     a request is over: its end, its tokens
Machine          the cards and host memory, a look
Missed           events that a reader, or the file, did not get
Leaving          the daemon ends, and with it this stream
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec


def _kind(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class Kind(msgspec.Struct, frozen=True, tag_field="kind", tag=_kind):
    """What all events have in common."""


class EngineState(Kind, frozen=True):
    """The engine of a model is unloaded, loading, ready, draining or stopping, and was something else before."""

    name: str
    state: str
    before: str


class EngineReady(Kind, frozen=True):
    """The engine of a model is loaded, and its process.

    What was `predicted` from its files, what it is `charged` with from now on, and what was `measured` (null: nobody
    could); `restored` conversations of earlier go on.
    """

    name: str
    load_s: float
    pid: int
    predicted: dict[str, int] = {}
    charged: dict[str, int] = {}
    measured: dict[str, int] | None = None
    restored: int = 0


class EngineGone(Kind, frozen=True):
    """The engine of a model has ended as decided; so much that it was charged with is free."""

    name: str
    stop_s: float
    freed: dict[str, int]


class EngineStuck(Kind, frozen=True):
    """The engine of a model is there and computes nothing; it is ended."""

    name: str


class EngineFailed(Kind, frozen=True):
    """The engine of a model could not be loaded, or died, and when it may be loaded again.

    With `is_lasting`, once its file or the configuration has changed; else after `pause_s`. `in_a_row` counts what came
    of this model without a life between; 0: of one whose name another has now, by file or configuration, which has no
    part in it.
    """

    name: str
    why: str
    in_a_row: int = 0
    pause_s: float = 0.0
    is_lasting: bool = False


class StopFailed(Kind, frozen=True):
    """The engine of a model could not be ended as it should be."""

    name: str
    why: str


class MemoryNotFreed(Kind, frozen=True):
    """The engine of a model has ended, and its memory on the card is not free."""

    name: str


class FileReplaced(Kind, frozen=True):
    """The file of a model in memory is another one now, which is loaded next; with `why`, not: it cannot be."""

    name: str
    why: str = ""


Rule: TypeAlias = Literal[
    "fits", "too-large", "idle", "yielding", "overdue-idle", "overdue-busy", "over-budget",
    "replaced", "asked", "idle-unload", "drain-timeout", "unneeded", "class",
]  # fmt: skip


class Candidate(msgspec.Struct, frozen=True):
    """A model that could go, and what its going costs; `is_chosen`: it is one of those that make the room.

    `cost` is, of an idle one, the seconds of its load for each second until its next use, which is taken to be as far
    off as the last one was, or as its rhythm says; of a busy one what it disturbs.
    """

    name: str
    bytes: dict[str, int]
    cost: float
    idle_s: float
    running: int
    is_chosen: bool


class Facts(msgspec.Struct, frozen=True):
    """What a decision was made from.

    `model` is for whom ("": for nobody), who has waited for `waited_s` and needs so much. `held` is in use now,
    `planned` once all has gone that is going and all has come that is promised. Of the candidates the set goes that
    makes room (planned + needs - what it frees is within the budget) at the least cost, with `is_fewest_first` the
    cheapest of the smallest sets; of more than ten, the cheapest first until there is room.
    """

    rule: Rule
    model: str = ""
    waited_s: float = 0.0
    needs: dict[str, int] = {}
    budget: dict[str, int] = {}
    held: dict[str, int] = {}
    planned: dict[str, int] = {}
    candidates: tuple[Candidate, ...] = ()
    idle: int = 0  # models that are idle, also those that may not go yet
    is_fewest_first: bool = True


class Decided(Kind, frozen=True):
    """What was decided about a model: load, drain, undrain, stop, refuse, yield; why, in words and as facts."""

    action: str
    name: str
    reason: str
    facts: Facts | None = None


class Listening(Kind, frozen=True):
    """The daemon takes requests for so many models at an address; `memory` is its budget in words."""

    models: int
    address: str
    memory: str


class LeftOut(Kind, frozen=True):
    """A model is not served."""

    name: str
    why: str


class NotCounted(Kind, frozen=True):
    """Something of a model's engine is not, or not wholly, in the prediction of its memory."""

    name: str
    what: str


class DoesNotFit(Kind, frozen=True):
    """A model can never be loaded into this budget, and what would."""

    name: str
    advice: str


class Reloaded(Kind, frozen=True):
    """The configuration was read again: so many models now, which ones are new, gone or changed.

    `memory` is the new budget in words; "" where it is as it was.
    """

    models: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    memory: str = ""


class NotReloaded(Kind, frozen=True):
    """The configuration was read again and is wrong: nothing was changed."""

    why: str


class NeedsRestart(Kind, frozen=True):
    """These keys of a new configuration are read at the start only."""

    keys: tuple[str, ...]


class Trouble(Kind, frozen=True):
    """Something failed that has no kind of its own, and the work goes on."""

    why: str


class RequestQueued(Kind, frozen=True):
    """A request waits for an engine, at this position of all that wait; the wait is a guess, null where there is none.

    `request` is the same in all events of one request, and another one for each.
    """

    request: int
    name: str
    position: int
    expected_wait_s: float | None


class RequestStarted(Kind, frozen=True):
    """A request has its engine."""

    request: int
    name: str
    waited_s: float


class FirstToken(Kind, frozen=True):
    """A request's answer begins, so long after its engine was asked."""

    request: int
    name: str
    first_token_s: float


class RequestEnded(Kind, frozen=True):
    """A request is over, so long after it had its engine; before that (`cancelled`, `refused`) after it came.

    `lost`: its engine died; it may be asked again, as another request. Tokens as the engine counts them, null where it
    does not say; `cached_tokens` of the prompt it had read before.
    """

    request: int
    name: str
    how: Literal["end", "cancelled", "refused", "lost", "failed"]
    total_s: float
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    tokens: int | None = None


class Card(msgspec.Struct, frozen=True):
    """A card at one moment; null is what its driver does not tell."""

    index: int
    name: str | None
    used_bytes: int | None
    total_bytes: int | None
    utilization_percent: int | None
    temperature_celsius: int | None


class Machine(Kind, frozen=True):
    """The cards and host memory at one moment, looked at each second while somebody reads events."""

    host_total_bytes: int
    host_available_bytes: int
    cards: tuple[Card, ...] = ()
    problem: str = ""


class Missed(Kind, frozen=True):
    """Here events are missing: so many, null: of an earlier daemon; and why."""

    count: int | None
    why: str


class Leaving(Kind, frozen=True):
    """The daemon ends, and with it this stream."""


Event: TypeAlias = (
    EngineState
    | EngineReady
    | EngineGone
    | EngineStuck
    | EngineFailed
    | StopFailed
    | MemoryNotFreed
    | FileReplaced
    | Decided
    | Listening
    | LeftOut
    | NotCounted
    | DoesNotFit
    | Reloaded
    | NotReloaded
    | NeedsRestart
    | Trouble
    | RequestQueued
    | RequestStarted
    | FirstToken
    | RequestEnded
    | Machine
    | Missed
    | Leaving
)
Sink: TypeAlias = Callable[[Event], None]  # called from any thread; returns at once, and raises nothing
