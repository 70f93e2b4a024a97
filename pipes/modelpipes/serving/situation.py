"""What the residency decision looks at, and what it may answer: values only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from modelpipes.events import Facts
from modelpipes.serving.bytes import NOTHING, Bytes

Class: TypeAlias = Literal["interactive", "high", "normal", "low"]
CLASSES: tuple[Class, ...] = get_args(Class)


@dataclass(frozen=True)
class Loadable:
    """What can be loaded: predicted or measured bytes, seconds of a load, requests it runs at a time.

    `work` is what its largest piece of work takes beside `needs`. It is charged from the load on: of two models in
    memory that took it with their first piece of work, each could wait for the other for ever.
    """

    name: str
    needs: Bytes
    load_s: float
    sequences: int = 1
    work: Bytes = NOTHING

    @property
    def charge(self) -> Bytes:
        """All that it counts for."""
        return self.needs + self.work


State = Literal["loading", "ready", "draining", "stopping"]


@dataclass(frozen=True)
class Yielding:
    """A request in flight that may be asked to give way to a more urgent one that has waited for `after_s`."""

    id: int
    of_class: Class
    after_s: float = 0.0
    is_asked: bool = False


@dataclass(frozen=True)
class Resident:
    """A model in memory, on its way in or out; moments in seconds on the clock of `Situation.now`.

    `running` counts requests and leases in flight, `yielding` has those of them that may give way; `loaded_at` is
    when it became ready; `last_used` when its last request ended (`loaded_at` before the first), which was of class
    `last_class`. `is_unwanted`: to be gone once idle, as asked from outside, and to take no more until then.
    `is_outdated`: its file was replaced; to be gone at its next idle moment, pinned or not. `work` is as of `Loadable`.
    Once it is draining it is stopped at `drained_by`, whatever still runs.
    """

    name: str
    bytes: Bytes
    state: State
    running: int
    loaded_at: float
    last_used: float
    is_pinned: bool = False
    idle_unload_s: float | None = None
    is_unwanted: bool = False
    work: Bytes = NOTHING
    yielding: tuple[Yielding, ...] = ()
    last_class: Class = "interactive"
    is_outdated: bool = False
    drained_by: float = math.inf

    @property
    def charge(self) -> Bytes:
        """All that it counts for."""
        return self.bytes + self.work

    @property
    def is_idle(self) -> bool:
        return self.state == "ready" and self.running == 0

    @property
    def is_unused(self) -> bool:
        """Whether it has not begun a request since it was loaded."""
        return self.is_idle and self.last_used <= self.loaded_at

    @property
    def is_leaving(self) -> bool:
        """Whether it goes, whoever waits."""
        return self.state == "stopping" or (self.is_unwanted and not self.is_pinned)

    @property
    def idle_since(self) -> float:
        return max(self.loaded_at, self.last_used)


@dataclass(frozen=True)
class Waiting:
    """A request that has no engine yet; `since` is the moment of its arrival."""

    id: int
    name: str
    since: float
    of_class: Class = "interactive"


@dataclass(frozen=True)
class Waiters:
    """All that wait for one model in one class: the first of them, in order of arrival, and how many there are.

    No more can start at once than the model has sequences: `first` are so many, or all where they are fewer.
    """

    first: tuple[Waiting, ...]
    count: int

    @property
    def name(self) -> str:
        """The model that they wait for."""
        return self.first[0].name


@dataclass(frozen=True)
class Use:
    """A request that was given an engine: when it arrived, began, and ended (None while it runs)."""

    name: str
    since: float
    began_at: float
    ended_at: float | None = None


@dataclass(frozen=True)
class Situation:
    """All that the decision looks at. `models` names every model that is resident or can be; times in seconds.

    `blocked_until`: no load before that moment (back-off after a failed one). `recent`: the last requests that began,
    oldest first; a few dozen show that models take turns and who may be back at once. Without them more is loaded.
    `arrivals`: when the last of those came that wait, as many as `recent` has; they have asked again.
    `head_starts_s`: by so much earlier than it came a request of this class counts as come; 0 where none is named.
    """

    now: float
    budget: Bytes
    models: Mapping[str, Loadable]
    residents: tuple[Resident, ...] = ()
    waiting: tuple[Waiters, ...] = ()
    min_resident_s: float = 5.0
    max_wait_s: float = 60.0
    blocked_until: Mapping[str, float] = field(default_factory=dict)
    recent: tuple[Use, ...] = ()
    arrivals: tuple[float, ...] = ()
    head_starts_s: Mapping[Class, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Give the waiting request `id` an engine of the model, which is ready."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class Refuse:
    """None of the `count` requests that wait for the model, of whatever class, can ever be served."""

    name: str
    count: int
    reason: str
    facts: Facts | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Yield:
    """Ask the request in flight `id` to end at once and make way; it may be asked for again."""

    id: int
    name: str
    reason: str
    facts: Facts | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Move:
    """What becomes of a model.

    load: the room is free now. drain: start nothing more on it, and ask its leases to end. undrain: nobody needs its
    room any more, it is ready again. stop: end its engine, which is idle, or has had its time to become so.
    """

    to_do: Literal["load", "drain", "undrain", "stop"]
    name: str
    reason: str
    facts: Facts | None = field(default=None, compare=False)


Action: TypeAlias = Start | Refuse | Yield | Move
