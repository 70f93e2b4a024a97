"""Which models are in memory: a decision over values; no clock, no process, no chance.

The owner of the engines describes what is (`Situation`), carries out what `decide` answers, and asks again after
every change: a request came, ended or left, an engine became ready, failed or has gone; and at `wake_at`. An action
carried out is seen in the next situation (a stopped model is "stopping" until its memory is free), so asking twice
orders nothing twice, and once nothing is left to do the answer is empty.

Fairness. A request whose model is not in memory is a newcomer. Newcomers are looked at in order of arrival; each keeps
the room found for it from those behind it. Until it has waited `max_wait_s` only idle models make room for it; after
that busy ones are drained, and from then on start only requests that came before it. No wait is longer than

    max_wait_s + (ahead + 1 + failed) * (2 * load + stop + 2 * serve) + back-off

where `ahead` counts the requests that came before and still wait once it has waited `max_wait_s` (at most clients - 1
in a closed loop), `failed` the loads that failed and the pins that changed since, and the times are the longest of
their kind: a load in the way, the first requests of that model, the stop, the load, the service. Back-off is that of
the model asked for. It holds for requests that end; the owner bounds leases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from modelpipes.values.units import format_bytes, format_seconds

KEEP_LOADS = 3.0
"""While others are served, an idle model is kept, and a newcomer held back, for this many times its load time: its
client may come back. Swapping sooner costs loads, later costs waits."""

LINGER_LOADS = 0.3
"""For this share of a model's load time one who was just answered, and has not asked again, counts as still served:
a client in a loop takes a moment between answer and question."""

MAX_LINGER_S = 0.25
"""Of dear models, for no longer than this: a program that asks again has done so by then."""

EXACT_VICTIMS = 10
"""Up to so many candidates every set of victims is looked at (1,023 sets); with more, one pass over the best."""


@dataclass(frozen=True)
class Bytes:
    """Memory on the card and of the host, in bytes; both are budgets."""

    card: int
    host: int = 0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.card + other.card, self.host + other.host)

    def __sub__(self, other: Bytes) -> Bytes:
        return Bytes(self.card - other.card, self.host - other.host)

    def __le__(self, other: Bytes) -> bool:
        """Whether both fit; not an order: neither of two may be below the other."""
        return self.card <= other.card and self.host <= other.host


NOTHING = Bytes(0, 0)


@dataclass(frozen=True)
class Model:
    """What can be loaded: predicted or measured bytes, seconds of a load, requests it runs at a time."""

    name: str
    needs: Bytes
    load_s: float
    sequences: int = 1


State = Literal["loading", "ready", "draining", "stopping"]


@dataclass(frozen=True)
class Resident:
    """A model in memory, on its way in or out; moments in seconds on the clock of `Situation.now`.

    `running` counts requests and leases in flight; `loaded_at` is when it became ready; `last_used` when its last
    request ended (`loaded_at` before the first). `is_unwanted`: to be gone once idle, as asked from outside.
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

    @property
    def is_idle(self) -> bool:
        return self.state == "ready" and self.running == 0

    @property
    def is_unused(self) -> bool:
        """Whether it has not begun a request since it was loaded."""
        return self.is_idle and self.last_used <= self.loaded_at


@dataclass(frozen=True)
class Waiting:
    """A request that has no engine yet; `since` is the moment of its arrival."""

    id: int
    name: str
    since: float

    @property
    def order(self) -> tuple[float, int]:
        return self.since, self.id


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
    """

    now: float
    budget: Bytes
    models: Mapping[str, Model]
    residents: tuple[Resident, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    min_resident_s: float = 5.0
    max_wait_s: float = 60.0
    blocked_until: Mapping[str, float] = field(default_factory=dict)
    recent: tuple[Use, ...] = ()


@dataclass(frozen=True)
class Start:
    """Give the waiting request `id` an engine of the model, which is ready."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class Refuse:
    """The waiting request `id` can never be served."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class Move:
    """What becomes of a model.

    load: the room is free now. drain: start nothing more on it, and ask its leases to end. undrain: nobody needs its
    room any more, it is ready again. stop: end its engine, which is idle.
    """

    to_do: Literal["load", "drain", "undrain", "stop"]
    name: str
    reason: str


Action = Start | Refuse | Move


def decide(situation: Situation) -> tuple[Action, ...]:
    """What to do now, in this order; empty when there is nothing to do but wait."""
    return _Decision(situation).made()


def wake_at(situation: Situation) -> float | None:
    """The next moment when time alone may change the decision; None: only an event can."""
    return _Decision(situation).next_moment()


def next_uses(recent: Sequence[Use], now: float) -> dict[str, float]:
    """Seconds until the next use of each model that takes turns regularly (its last two intervals are equal).

    Counted in turns, where requests of one model in a row are one turn, and then in the mean time of a turn. Least
    recently used is the worst choice there is where models take turns: it evicts the one whose turn is next.
    """
    turns = [next(group) for _, group in itertools.groupby(recent, key=lambda use: use.name)]
    places: dict[str, list[int]] = {}
    for place, use in enumerate(turns):
        places.setdefault(use.name, []).append(place)
    uses = {}
    for name, at in places.items():
        if len(at) < 3 or at[-1] - at[-2] != at[-2] - at[-3]:
            continue
        to_come = 2 * at[-1] - at[-2] - len(turns)
        if to_come > 0:
            uses[name] = to_come * (now - turns[0].began_at) / len(turns)
    return uses


class _Decision:
    """One decision in the making: what is held, promised and going, and the actions so far."""

    def __init__(self, situation: Situation) -> None:
        self.s = situation
        self.residents = {resident.name: resident for resident in situation.residents}
        self.queues: dict[str, list[Waiting]] = {}
        for waiting in sorted(situation.waiting, key=lambda one: one.order):
            self.queues.setdefault(waiting.name, []).append(waiting)
        self.actions: list[Action] = []
        self.stopped: set[str] = set()
        self.draining: set[str] = set()
        self.promised: set[str] = set()
        self.limits: dict[str, tuple[float, int]] = {}
        # Bytes in use now, and bytes in use once all that is going has gone and all that is promised has come.
        self.held = _sum(situation.residents)
        self.planned = _sum(r for r in situation.residents if not _is_leaving(r))
        # Whether anybody is served, or about to be, who may then come back for what is idle now.
        self.is_at_work = any(
            r.running > 0 or r.state == "loading" or (r.state == "ready" and r.name in self.queues)
            for r in situation.residents
        )
        self._uses: dict[str, float] | None = None
        self._answer: float | None = None

    def made(self) -> tuple[Action, ...]:
        self._stop_what_is_over()
        if not self.planned <= self.s.budget:
            self._shed()
        for first in self._newcomers():
            self._make_room(first)
        self._settle_draining()
        self._start()
        return tuple(self.actions)

    def next_moment(self) -> float | None:
        now = self.s.now
        moments: list[float] = []
        for first in self._newcomers():
            blocked_until = self.s.blocked_until.get(first.name, now)
            if blocked_until > now:
                moments.append(blocked_until)
                continue
            moments.append(first.since + self.s.max_wait_s)
            moments += (
                self._free_from(r, first, is_at_work=is_at_work)
                for r in self.s.residents
                if r.is_idle and r.name not in self.queues
                for is_at_work in (True, False)
            )
        moments += (self._unload_at(r) for r in self.s.residents)
        return min((moment for moment in moments if now < moment < math.inf), default=None)

    # What goes without anybody waiting for its room.

    def _stop_what_is_over(self) -> None:
        for r in self.s.residents:
            if r.is_pinned:
                continue
            if r.is_unwanted:
                if r.running == 0 and r.state in ("ready", "draining"):
                    self._stop(r, f"{r.name} is to be unloaded, as asked")
                elif r.state == "ready":
                    self._drain(r, f"{r.name} is to be unloaded, as asked, once its {r.running} running have ended")
            elif self._unload_at(r) <= self.s.now:
                self._stop(r, f"{r.name} is idle for {self._idle(r)}: unloaded, as configured")
                self.planned -= r.bytes

    def _unload_at(self, r: Resident) -> float:
        """When the model will have been idle for as long as it may; never for one that is wanted."""
        if r.is_pinned or r.idle_unload_s is None or not r.is_idle or r.name in self.queues:
            return math.inf
        return _idle_since(r) + r.idle_unload_s

    def _shed(self) -> None:
        """The budget shrank, or an engine took more than was predicted: idle models go, busy ones may end."""
        idle = [r for r in self._candidates() if r.is_idle and r.name not in self.queues]
        excess = self.planned - self.s.budget
        over = f"{_amount(excess, excess)} over the budget"
        for r in self._smallest(idle, NOTHING, self._weight) or idle:
            self._stop(r, f"{over}; {r.name} is idle for {self._idle(r)}")
            self.planned -= r.bytes

    # Newcomers.

    def _newcomers(self) -> list[Waiting]:
        """The first request of each model that is not in memory, or about to leave it, in order of arrival."""
        firsts = [
            queue[0]
            for name, queue in self.queues.items()
            if name not in self.residents or self.residents[name].state == "stopping"
        ]
        return sorted(firsts, key=lambda one: one.order)

    def _make_room(self, first: Waiting) -> None:
        model = self.s.models.get(first.name)
        if model is None:
            return self._refuse(first.name, f"{first.name} is no model of this server")
        needs, budget = model.needs, self.s.budget
        wanted = f"{first.name}: {_amount(needs, needs)} needed"
        pinned = [r for r in self.s.residents if r.is_pinned and r.state != "stopping" and r.name != first.name]
        if not needs + _sum(pinned) <= budget:
            beside = f", {_named(pinned, needs)} pinned" if pinned else ""
            return self._refuse(first.name, f"{wanted}, the budget is {_amount(budget, needs)}{beside}")
        if self.s.blocked_until.get(first.name, self.s.now) > self.s.now:
            return None
        needed = f"{wanted}, {_amount(budget - self.held, needs)} free"
        if first.name not in self.residents and self._fits_now(needs):
            self.actions.append(Move("load", first.name, needed))
            self.held += needs
        elif not self.planned + needs <= budget:
            is_overdue = first.since + self.s.max_wait_s <= self.s.now
            if not (self._claim(first, needs, needed) if is_overdue else self._ask(first, needs, needed)):
                return None
        self.planned += needs
        self.is_at_work = True
        return None

    def _fits_now(self, needs: Bytes) -> bool:
        return self.held + needs <= self.s.budget and self.planned + needs <= self.s.budget

    def _ask(self, first: Waiting, needs: Bytes, needed: str) -> bool:
        """Room from idle models that may go now; or else a promise of those that may go soonest."""
        idle = [r for r in self._candidates() if r.is_idle and r.name not in self.queues]
        free_from = {r.name: self._free_from(r, first, is_at_work=self.is_at_work) for r in idle}
        victims = self._smallest([r for r in idle if free_from[r.name] <= self.s.now], needs, self._weight)
        for r in victims or ():
            others = "the only idle one" if len(idle) == 1 else "the least used for what it costs to load again"
            self._stop(r, f"{needed}; {r.name} is idle for {self._idle(r)} and {others}")
        if victims is None:
            victims = self._smallest(idle, needs, lambda r: free_from[r.name])
        if victims is None:
            return False
        self._promise(victims)
        return True

    def _claim(self, first: Waiting, needs: Bytes, needed: str) -> bool:
        """Room for one that waited too long: idle models, however young, or else busy ones, which are drained."""
        all_ = self._candidates()
        idle = [r for r in all_ if r.is_idle and not self._is_due_before(r, first)]
        old = [r for r in idle if r.loaded_at + self.s.min_resident_s <= self.s.now]
        victims = self._smallest(old, needs, self._weight) or self._smallest(idle, needs, self._weight)
        if victims is None:
            victims = self._smallest(all_, needs, lambda r: self._disturbance(r, first), is_fewest_first=False)
        if victims is None:
            return False
        waited = f"{needed}; it has waited {format_seconds(round(self.s.now - first.since, 3))}"
        for r in victims:
            if r.state == "loading" or (r.is_unused and r.name in self.queues):
                continue  # it serves the requests that it was loaded for, or two models would evict each other unused
            self.limits[r.name] = first.order
            if self._is_due_before(r, first):
                continue
            if r.running > 0:
                self._drain(r, f"{waited}; {r.name} is busy with {r.running} and takes no more")
            else:
                self._stop(r, f"{waited}; {r.name} is idle")
        self._promise(victims)
        return True

    def _candidates(self) -> list[Resident]:
        gone = self.stopped | self.promised
        return [r for r in self.s.residents if not (r.is_pinned or _is_leaving(r) or r.name in gone)]

    def _is_due_before(self, r: Resident, first: Waiting) -> bool:
        """Whether the model has to serve somebody before it may make room for this one."""
        queue = self.queues.get(r.name)
        return queue is not None and (queue[0].order < first.order or r.is_unused)

    def _free_from(self, r: Resident, first: Waiting, *, is_at_work: bool) -> float:
        """The moment from which an idle model may make room for a newcomer."""
        load_s = self.s.models[r.name].load_s
        comes_back_by = self._last_answer() + min(LINGER_LOADS * load_s, MAX_LINGER_S)
        patience_s = KEEP_LOADS * self.s.models[first.name].load_s if first.name in self.s.models else 0.0
        kept_until = min(
            math.inf if is_at_work else comes_back_by,
            _idle_since(r) + KEEP_LOADS * load_s,
            first.since + patience_s,
        )
        return min(max(r.loaded_at + self.s.min_resident_s, kept_until), first.since + self.s.max_wait_s)

    def _last_answer(self) -> float:
        """When the last of those was answered who have not asked again.

        An arrival is taken for the one answered last: whoever has left for good is soon too long ago to matter.
        """
        if self._answer is None:
            moments = [(use.ended_at, True) for use in self.s.recent if use.ended_at is not None]
            moments += [(use.since, False) for use in self.s.recent]
            moments += [(waiting.since, False) for waiting in self.s.waiting]
            away: list[float] = []
            for moment, is_answer in sorted(moments, key=lambda one: (one[0], not one[1])):
                if is_answer:
                    away.append(moment)
                elif away:
                    away.pop()
            self._answer = away[-1] if away else -math.inf
        return self._answer

    def _weight(self, r: Resident) -> float:
        """What evicting an idle model costs: its load, the dearer the sooner it will be used again.

        Without a rhythm the best guess for the time until the next use is the time since the last one.
        """
        if self._uses is None:
            self._uses = next_uses(self.s.recent, self.s.now)
        until = self._uses.get(r.name, self.s.now - _idle_since(r))
        return self.s.models[r.name].load_s / max(until, 1e-6)

    def _disturbance(self, r: Resident, first: Waiting) -> float:
        """What draining costs; steps far apart, so that one of a higher step is never chosen for many of a lower.

        Time has no part in it: what is draining must not look the worse choice a moment later.
        """
        step = 0
        if r.state == "loading":
            step = 3
        elif self._is_due_before(r, first):
            step = 2
        elif r.state == "ready" and r.running > 0:
            step = 1
        return 1e6**step * (1 + min(self.s.models[r.name].load_s, 1e3) / 1e3)

    def _smallest(
        self,
        candidates: list[Resident],
        needs: Bytes,
        cost: Callable[[Resident], float],
        *,
        is_fewest_first: bool = True,
    ) -> tuple[Resident, ...] | None:
        """The set whose going makes room: of the fewest the cheapest, or the cheapest; None where all are too few."""

        def makes_room(victims: Iterable[Resident]) -> bool:
            return self.planned + needs - _sum(victims) <= self.s.budget

        if not candidates or not makes_room(candidates):
            return None
        costs = {r.name: cost(r) for r in candidates}
        ranked = sorted(candidates, key=lambda r: (costs[r.name], r.bytes.card, r.bytes.host, r.name))
        if len(ranked) > EXACT_VICTIMS:
            return _pruned(ranked, makes_room)
        best: tuple[float, tuple[Resident, ...]] | None = None
        for count in range(1, len(ranked) + 1):
            for victims in itertools.combinations(ranked, count):
                total = sum(costs[r.name] for r in victims)
                if (best is None or total < best[0]) and makes_room(victims):
                    best = total, victims
            if best is not None and is_fewest_first:
                break
        return best[1] if best is not None else None

    def _promise(self, victims: Iterable[Resident]) -> None:
        for r in victims:
            self.promised.add(r.name)
            self.planned -= r.bytes

    # What is resident.

    def _settle_draining(self) -> None:
        for r in self.s.residents:
            if r.state == "draining" and not _is_leaving(r) and r.name not in self.draining | self.stopped:
                self.actions.append(Move("undrain", r.name, f"{r.name}: nobody waits for its room any more"))

    def _start(self) -> None:
        for r in self.s.residents:
            queue = self.queues.get(r.name)
            if queue is None or r.state != "ready" or r.name in self.draining | self.stopped:
                continue
            limit = self.limits.get(r.name)
            free = max(0, self.s.models[r.name].sequences - r.running)
            for waiting in queue[:free]:
                if limit is None or waiting.order < limit:
                    self.actions.append(Start(waiting.id, r.name, f"{r.name} is ready"))

    def _stop(self, r: Resident, reason: str) -> None:
        self.stopped.add(r.name)
        self.actions.append(Move("stop", r.name, reason))

    def _drain(self, r: Resident, reason: str) -> None:
        self.draining.add(r.name)
        if r.state == "ready":
            self.actions.append(Move("drain", r.name, reason))

    def _refuse(self, name: str, reason: str) -> None:
        self.actions += (Refuse(waiting.id, name, reason) for waiting in self.queues[name])

    def _idle(self, r: Resident) -> str:
        return format_seconds(round(self.s.now - _idle_since(r), 3))


def _is_leaving(r: Resident) -> bool:
    return r.state == "stopping" or (r.is_unwanted and not r.is_pinned)


def _idle_since(r: Resident) -> float:
    return max(r.loaded_at, r.last_used)


def _sum(residents: Iterable[Resident]) -> Bytes:
    return sum((r.bytes for r in residents), NOTHING)


def _pruned(ranked: list[Resident], makes_room: Callable[[Iterable[Resident]], bool]) -> tuple[Resident, ...]:
    """The first that make room, without those, dearest first, that it does not take."""
    victims = list(
        next(itertools.dropwhile(lambda some: not makes_room(some), itertools.accumulate([r] for r in ranked)))
    )
    for r in reversed(victims[:]):
        rest = [other for other in victims if other is not r]
        if makes_room(rest):
            victims = rest
    return tuple(victims)


def _amount(size: Bytes, asked: Bytes) -> str:
    """The card's bytes, and the host's where such are asked for; never below nothing."""
    card = format_bytes(max(0, size.card))
    return f"{card} and {format_bytes(max(0, size.host))} of host memory" if asked.host > 0 else card


def _named(residents: Iterable[Resident], asked: Bytes) -> str:
    return ", ".join(f"{r.name} ({_amount(r.bytes, asked)})" for r in residents)
