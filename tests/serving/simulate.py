"""Workloads run through the residency decision by events alone: `python -m tests.serving.simulate --workloads 1000`."""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.serving.residency import decide, wake_at
from modelpipes.serving.situation import (
    CLASSES,
    Action,
    Class,
    Model,
    Move,
    Refuse,
    Resident,
    Situation,
    Start,
    State,
    Use,
    Waiters,
    Waiting,
    Yield,
    Yielding,
)

RECENT_USES = 64
MAX_ROUNDS = 20  # of decisions at one moment: more is a livelock
MAX_EVENTS = 200_000


@dataclass(frozen=True)
class Request:
    """One request: `gap_s` after the one before (of its client, or of all), `serve_s` long once it runs.

    `leaves_after_s`: its client goes if it still waits then. `yields`: so many times it gives way, to one who has
    waited for `yields_after_s`, and is asked again from the start.
    """

    name: str
    serve_s: float
    gap_s: float = 0.0
    leaves_after_s: float | None = None
    of_class: Class = "interactive"
    yields: int = 0
    yields_after_s: float = 0.0


@dataclass(frozen=True)
class Workload:
    """Clients that ask one thing after another (closed loop), arrivals that wait for nobody (open loop), troubles.

    `failing` has how many loads of a model fail, from the first; `pin_changes` are (moment, model, is pinned).
    """

    models: tuple[Model, ...]
    budget: Bytes
    clients: tuple[tuple[Request, ...], ...] = ()
    arrivals: tuple[Request, ...] = ()
    pinned: frozenset[str] = frozenset()
    pin_changes: tuple[tuple[float, str, bool], ...] = ()
    failing: Mapping[str, int] = field(default_factory=dict)
    back_off_s: float = 10.0
    idle_unload_s: float | None = None
    min_resident_s: float = 0.0
    max_wait_s: float = 60.0
    stop_s: float = 0.0
    head_starts_s: Mapping[Class, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a workload; waits in seconds, from arrival to start."""

    loads: int = 0
    failed: int = 0
    drains: int = 0
    yields: int = 0
    served: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    bounds_s: list[float] = field(default_factory=list)
    refused: int = 0
    left: int = 0
    ended_at: float = 0.0


@dataclass
class _Running:
    """A request in flight; `is_asked`: it gives way."""

    request: Request
    client: Sequence[Request]
    ends_at: float
    is_asked: bool = False


@dataclass
class _Engine:
    model: Model
    state: State = "loading"
    running: dict[int, _Running] = field(default_factory=dict)
    last_class: Class = "interactive"
    loaded_at: float = 0.0
    last_used: float = 0.0
    served: int = 0


@dataclass
class _Asked:
    """A request that waits, and what its bound is made of."""

    request: Request
    waiting: Waiting
    client: Sequence[Request]
    ahead: int | None = None
    setbacks_before: int = 0


class World:
    """Engines without processes: time passes from event to event, and every action is checked as it is carried out."""

    def __init__(self, workload: Workload, *, is_checked: bool = True) -> None:
        self.workload = workload
        self.is_checked = is_checked
        self.now = 0.0
        self.models = {model.name: model for model in workload.models}
        self.engines: dict[str, _Engine] = {}
        self.asked: dict[int, _Asked] = {}
        self.pinned = set(workload.pinned)
        self.failing = dict(workload.failing)
        self.blocked_until: dict[str, float] = {}
        self.backed_off_s: dict[str, float] = {}
        self.recent: dict[int, Use] = {}
        self.outcome = Outcome()
        self.setbacks = 0  # loads that failed and pins that changed: each may cost a waiting one a turn
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.next_wake: float | None = None

    def run(self) -> Outcome:
        for client in self.workload.clients:
            self._next_of(client)
        at = 0.0
        for request in self.workload.arrivals:
            at += request.gap_s
            self._at(at, partial(self._ask, request, ()))
        for moment, name, is_pinned in self.workload.pin_changes:
            self._at(moment, partial(self._pin, name, is_pinned))
        handled = 0
        while self.events:
            self.now, _, event = heapq.heappop(self.events)
            event()
            self._decide()
            handled += 1
            assert handled < MAX_EVENTS, "livelock: events without end"
        assert not self.asked, f"starved: {[asked.waiting for asked in self.asked.values()]}"
        return self.outcome

    def situation(self) -> Situation:
        residents = tuple(
            Resident(
                name,
                engine.model.needs,
                engine.state,
                len(engine.running),
                engine.loaded_at,
                engine.last_used,
                name in self.pinned,
                self.workload.idle_unload_s,
                work=engine.model.work,
                yielding=tuple(
                    Yielding(number, one.request.of_class, one.request.yields_after_s, one.is_asked)
                    for number, one in engine.running.items()
                    if one.request.yields
                ),
                last_class=engine.last_class,
            )
            for name, engine in self.engines.items()
        )
        waiting = [asked.waiting for asked in self.asked.values()]
        return Situation(
            now=self.now,
            budget=self.workload.budget,
            models=self.models,
            residents=residents,
            waiting=waiters_of(waiting, self.models),
            min_resident_s=self.workload.min_resident_s,
            max_wait_s=self.workload.max_wait_s,
            blocked_until=dict(self.blocked_until),
            recent=tuple(self.recent.values()),
            arrivals=tuple(one.since for one in waiting[-RECENT_USES:]),
            head_starts_s=self.workload.head_starts_s,
        )

    # Events.

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.numbers), event))

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._at(self.now + seconds, event)

    def _next_of(self, client: Sequence[Request]) -> None:
        if client:
            self._after(client[0].gap_s, lambda: self._ask(client[0], client[1:]))

    def _ask(self, request: Request, client: Sequence[Request]) -> None:
        number = next(self.numbers)
        self.asked[number] = _Asked(request, Waiting(number, request.name, self.now, request.of_class), client)
        if self.is_checked:
            self._after(self._behind_s(request) + self.workload.max_wait_s, lambda: self._note_overdue(number))
        if request.leaves_after_s is not None:
            self._after(request.leaves_after_s, lambda: self._leave(number))

    def _note_overdue(self, number: int) -> None:
        asked = self.asked.get(number)
        if asked is not None:
            asked.ahead = sum(self._order(other) < self._order(asked) for other in self.asked.values())
            asked.setbacks_before = self.setbacks

    def _behind_s(self, request: Request) -> float:
        """By what its head start is shorter than the longest."""
        given_s = self.workload.head_starts_s
        return max(given_s.get(one, 0.0) for one in CLASSES) - given_s.get(request.of_class, 0.0)

    def _order(self, asked: _Asked) -> tuple[float, int]:
        return asked.waiting.since + self._behind_s(asked.request), asked.waiting.id

    def _leave(self, number: int) -> None:
        asked = self.asked.pop(number, None)
        if asked is not None:
            self.outcome.left += 1
            self._next_of(asked.client)

    def _pin(self, name: str, is_pinned: bool) -> None:
        (self.pinned.add if is_pinned else self.pinned.discard)(name)
        self.setbacks += 1

    def _loaded(self, name: str) -> None:
        engine = self.engines[name]
        if self.failing.get(name, 0) > 0:
            self.failing[name] -= 1
            del self.engines[name]
            self.blocked_until[name] = self.now + self.workload.back_off_s
            self.backed_off_s[name] = self.backed_off_s.get(name, 0.0) + self.workload.back_off_s
            self.outcome.failed += 1
            self.setbacks += 1
            return
        engine.state = "ready"
        engine.loaded_at = engine.last_used = self.now

    def _ended(self, name: str, number: int) -> None:
        engine = self.engines.get(name)
        if engine is None or number not in engine.running:  # it gave way before
            return
        running = engine.running.pop(number)
        engine.last_used = self.outcome.ended_at = self.now
        engine.last_class = running.request.of_class
        if number in self.recent:
            self.recent[number] = dataclasses.replace(self.recent[number], ended_at=self.now)
        if self.now < running.ends_at:
            again = dataclasses.replace(running.request, yields=running.request.yields - 1)
            self._ask(again, running.client)
        else:
            self._next_of(running.client)

    def _gone(self, name: str) -> None:
        del self.engines[name]

    # Decisions.

    def _decide(self) -> None:
        for _ in range(MAX_ROUNDS):
            situation = self.situation()
            actions = decide(situation)
            if not actions:
                break
            if self.is_checked:
                assert decide(dataclasses.replace(situation)) == actions
            for action in actions:
                self._carry_out(action)
        else:
            raise AssertionError(f"livelock: {actions}")
        wake = wake_at(situation)
        if wake is not None and wake != self.next_wake:
            self._at(wake, lambda: None)
        self.next_wake = wake

    def _carry_out(self, action: Action) -> None:
        engine = self.engines.get(action.name)
        match action:
            case Start():
                assert engine is not None and engine.state == "ready", action
                assert len(engine.running) < engine.model.sequences, action
                self._begin(engine, self.asked.pop(action.id))
            case Move("load"):
                assert engine is None and self.blocked_until.get(action.name, 0.0) <= self.now, action
                self.engines[action.name] = _Engine(self.models[action.name])
                used = sum((one.model.charge for one in self.engines.values()), NOTHING)
                assert used <= self.workload.budget, f"over the budget: {action}"
                self.outcome.loads += 1
                self._after(self.models[action.name].load_s, lambda: self._loaded(action.name))
            case Move("drain"):
                assert engine is not None and engine.state == "ready" and engine.running, action
                assert action.name not in self.pinned, action
                others = [asked for asked in self.asked.values() if asked.request.name != action.name]
                assert any(
                    self._order(asked)[0] + self.workload.max_wait_s <= self.now
                    or all(self._has_to_yield(one, asked) for one in engine.running.values())
                    for asked in others
                ), f"drained for nobody: {action}"
                engine.state = "draining"
                self.outcome.drains += 1
            case Move("undrain"):
                assert engine is not None and engine.state == "draining", action
                engine.state = "ready"
            case Move("stop"):
                assert engine is not None and engine.state in ("ready", "draining"), action
                assert not engine.running and action.name not in self.pinned, action
                is_wanted = any(asked.request.name == action.name for asked in self.asked.values())
                assert engine.served > 0 or not is_wanted, f"loaded and stopped without serving: {action}"
                engine.state = "stopping"
                self._after(self.workload.stop_s, lambda: self._gone(action.name))
            case Yield():
                assert engine is not None and engine.state in ("ready", "draining"), action
                running = engine.running[action.id]
                assert not running.is_asked, action
                assert any(self._has_to_yield(running, asked) for asked in self.asked.values()), action
                running.is_asked = True
                self.outcome.yields += 1
                takes_s = min(self.workload.stop_s, running.ends_at - self.now)
                self._after(takes_s, partial(self._ended, action.name, action.id))
            case Refuse():
                needs = self.models[action.name].charge
                rest = (engine.model.charge for name, engine in self.engines.items() if name in self.pinned)
                assert not sum(rest, needs) <= self.workload.budget, action
                refused = [number for number, asked in self.asked.items() if asked.request.name == action.name]
                assert action.count == len(refused), action
                for number in refused:
                    self.outcome.refused += 1
                    self._next_of(self.asked.pop(number).client)

    def _has_to_yield(self, one: _Running, asked: _Asked) -> bool:
        """Whether a request in flight has to give way to one that waits."""
        is_below = self._behind_s(one.request) > self._behind_s(asked.request)
        waited_s = self.now - asked.waiting.since
        return bool(one.request.yields) and is_below and (one.is_asked or waited_s >= one.request.yields_after_s)

    def _begin(self, engine: _Engine, asked: _Asked) -> None:
        name = asked.request.name
        engine.served += 1
        number = next(self.numbers)
        engine.running[number] = _Running(asked.request, asked.client, self.now + asked.request.serve_s)
        self.recent[number] = Use(name, asked.waiting.since, self.now)
        if len(self.recent) > RECENT_USES:
            del self.recent[next(iter(self.recent))]
        self.outcome.served.append(name)
        wait = self.now - asked.waiting.since
        self.outcome.waits_s.append(wait)
        self._after(asked.request.serve_s, partial(self._ended, name, number))
        if self.is_checked:
            bound = self._bound(asked)
            self.outcome.bounds_s.append(bound)
            assert wait <= bound + 1e-6, f"{asked.waiting} waited {wait:.3f} s, over its bound of {bound:.3f} s"

    def _bound(self, asked: _Asked) -> float:
        """The longest wait that residency.py promises this request."""
        patience_s = self.workload.max_wait_s + self._behind_s(asked.request)
        if asked.ahead is None:
            return patience_s
        load_s = max(model.load_s for model in self.models.values())
        serve_s = max(request.serve_s for request in requests_of(self.workload))
        turns = asked.ahead + 1 + self.setbacks - asked.setbacks_before
        back_off_s = self.backed_off_s.get(asked.request.name, 0.0)
        return patience_s + turns * (2 * load_s + self.workload.stop_s + 2 * serve_s) + back_off_s


def simulate(workload: Workload, *, is_checked: bool = True) -> Outcome:
    """Run the workload to its end; AssertionError where a promise is broken."""
    return World(workload, is_checked=is_checked).run()


def waiters_of(waiting: Sequence[Waiting], models: Mapping[str, Model]) -> tuple[Waiters, ...]:
    """Those who wait, given in order of arrival, as the decision is told of them."""
    groups: dict[tuple[str, Class], list[Waiting]] = {}
    for one in waiting:
        groups.setdefault((one.name, one.of_class), []).append(one)
    return tuple(
        Waiters(tuple(some[: models[name].sequences if name in models else 1]), len(some))
        for (name, _), some in groups.items()
    )


def requests_of(workload: Workload) -> Iterable[Request]:
    return itertools.chain(workload.arrivals, *workload.clients)


def random_workload(chance: random.Random) -> Workload:
    """Any mixture of sizes, speeds, clients and troubles; moments are often equal, on purpose."""
    names = [chr(ord("a") + number) for number in range(chance.randint(1, 7))]
    unit = chance.choice([0.5, 1.0])
    models = tuple(
        Model(
            name,
            Bytes.of(chance.randint(1, 10), chance.choice([0, 0, chance.randint(0, 5)])),
            unit * chance.randint(1, 20),
            chance.choice([1, 1, 2, 4]),
        )
        for name in names
    )

    def request(gap_s: float) -> Request:
        leaves = unit * chance.randint(1, 60) if chance.random() < 0.05 else None
        return Request(chance.choice(names), unit * chance.randint(1, 20), gap_s, leaves)

    is_closed = chance.random() < 0.6
    clients = tuple(
        tuple(request(unit * chance.choice([0, 0, chance.randint(0, 30)])) for _ in range(chance.randint(1, 8)))
        for _ in range(chance.randint(1, 8) if is_closed else 0)
    )
    spread = chance.choice([2, 20, 80])
    count = chance.randint(1, 30) if not is_closed or chance.random() < 0.2 else 0
    arrivals = tuple(request(unit * chance.randint(0, spread)) for _ in range(count))
    if chance.random() < 0.15:  # a crowd that never rests, and a few who come for other models
        few = chance.sample(names, max(1, len(names) - 1))
        clients += tuple(
            tuple(Request(chance.choice(few), unit * chance.randint(1, 4)) for _ in range(40))
            for _ in range(chance.randint(1, 4))
        )
    is_pinning = chance.random() < 0.3
    return Workload(
        models,
        Bytes.of(chance.randint(8, 24), chance.randint(4, 12)),
        clients,
        arrivals,
        frozenset(name for name in names if is_pinning and chance.random() < 0.2),
        tuple(
            (unit * chance.randint(0, 200), chance.choice(names), chance.random() < 0.5)
            for _ in range(chance.randint(0, 3) if is_pinning else 0)
        ),
        {name: chance.randint(1, 3) for name in names if chance.random() < 0.1},
        unit * chance.randint(0, 40),
        chance.choice([None, None, unit * chance.randint(0, 40)]),
        unit * chance.choice([0, 5, 30]),
        unit * chance.choice([0, 5, 40, 200]),
        unit * chance.choice([0, 1]),
    )


def random_workload_with_classes(chance: random.Random) -> Workload:
    """As any, where requests are of all classes, some yield, models lie at more places, and some take more to work."""
    base = random_workload(chance)
    places = [place for place in ("card 1", "box") if chance.random() < 0.4]
    unit = chance.choice([0.5, 1.0])

    def model(one: Model) -> Model:
        elsewhere = Bytes({place: chance.randint(0, 10) for place in places})
        work = Bytes.of(chance.choice([0, 0, 1, 3])) + Bytes({place: chance.randint(0, 2) for place in places})
        return dataclasses.replace(one, needs=one.needs + elsewhere, work=work)

    def request(one: Request) -> Request:
        of_class = chance.choice(CLASSES)
        yields = 0 if of_class == "interactive" else chance.choice([0, 1, 3])
        return dataclasses.replace(
            one, of_class=of_class, yields=yields, yields_after_s=unit * chance.choice([0, 0, 9])
        )

    return dataclasses.replace(
        base,
        models=tuple(map(model, base.models)),
        budget=base.budget + Bytes({place: chance.randint(8, 24) for place in places}),
        clients=tuple(tuple(map(request, client)) for client in base.clients),
        arrivals=tuple(map(request, base.arrivals)),
        head_starts_s={one: unit * chance.choice([0, 10, 60, 400]) for one in CLASSES if chance.random() < 0.8},
    )


# Traces over models of one size, and what a clairvoyant would need for them.


def equal_models(count: int, load_s: float, sequences: int = 1) -> tuple[Model, ...]:
    return tuple(Model(chr(ord("a") + number), Bytes.of(1), load_s, sequences) for number in range(count))


def optimal_swaps(trace: Sequence[str], capacity: int) -> int:
    """Loads of Belady's optimum, which serves in this order and evicts what is needed farthest in the future.

    Loads into empty places count as well. L. A. Belady, "A study of replacement algorithms", 1966.
    """
    uses: dict[str, deque[int]] = {}
    for place, name in enumerate(trace):
        uses.setdefault(name, deque()).append(place)
    resident: set[str] = set()
    loads = 0
    for name in trace:
        uses[name].popleft()
        if name in resident:
            continue
        loads += 1
        if len(resident) == capacity:
            resident.remove(max(sorted(resident), key=lambda one: uses[one][0] if uses[one] else len(trace)))
        resident.add(name)
    return loads


def best_with_reordering(clients: Sequence[Sequence[str]], capacity: int) -> int:
    """The fewest loads that any order of serving needs which keeps each client's own order: a lower bound.

    It knows the future and may let anybody wait for ever, so it is a lower bound for every bound on the wait too.
    Exact: after each load all clients go as far as they can (never worse), and of the places reached with the same
    models in memory only those are kept that no other is ahead of in every client. For few clients and models.
    """
    names = sorted({name for client in clients for name in client})
    ends = tuple(len(client) for client in clients)

    def advanced(places: tuple[int, ...], resident: frozenset[str]) -> tuple[int, ...]:
        return tuple(
            next((at for at in range(place, len(client)) if client[at] not in resident), len(client))
            for place, client in zip(places, clients, strict=True)
        )

    reached = {frozenset[str](): {(0,) * len(clients)}}
    for loads in itertools.count():
        if any(ends in places for places in reached.values()):
            return loads
        after: dict[frozenset[str], set[tuple[int, ...]]] = {}
        for resident, all_places in reached.items():
            for name in names:
                if name in resident:
                    continue
                rests = [resident] if len(resident) < capacity else [resident - {one} for one in resident]
                for rest in rests:
                    kept = after.setdefault(rest | {name}, set())
                    kept.update(advanced(places, rest | {name}) for places in all_places)
        reached = {resident: _foremost(places) for resident, places in after.items()}
    raise AssertionError("never: every load brings the foremost further")


def _foremost(places: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Those that no other is ahead of, or level with, everywhere."""
    kept: list[tuple[int, ...]] = []
    for one in sorted(places, key=sum, reverse=True):
        if not any(all(a >= b for a, b in zip(other, one, strict=True)) for other in kept):
            kept.append(one)
    return set(kept)


def random_clients(seed: int, clients: int, requests: int, models: int = 3) -> list[list[str]]:
    """So many clients which choose a model at random each time, and so many requests in all."""
    chance = random.Random(seed)
    return [[chr(ord("a") + chance.randrange(models)) for _ in range(requests // clients)] for _ in range(clients)]


def quick_workload(clients: Sequence[Sequence[str]], capacity: int, sequences: int = 1) -> Workload:
    """Tiny models as measured on two cores: 26 ms to load, 3 to stop, 2 to 6 for an answer, 1 until the next question.

    The time until the next question is exponential: clients do not march in step.
    """
    names = {name for client in clients for name in client}
    chance = random.Random(0)
    return Workload(
        tuple(model for model in equal_models(26, 0.026, sequences) if model.name in names),
        Bytes.of(capacity),
        tuple(
            tuple(Request(name, chance.uniform(0.002, 0.006), chance.expovariate(1 / 0.001)) for name in client)
            for client in clients
        ),
        stop_s=0.003,
    )


def served_in_turn(trace: Sequence[str], capacity: int) -> Outcome:
    """One client that asks for the models of the trace one after the other."""
    return simulate(quick_workload([trace], capacity), is_checked=False)


def trace_with_phases(seed: int, phases: int = 12, length: int = 40) -> list[str]:
    """Locality: each phase uses 3 of 8 models at random, and now and then another one."""
    chance = random.Random(seed)
    trace = []
    for _ in range(phases):
        few = chance.sample("abcdefgh", 3)
        trace += [chance.choice("abcdefgh") if chance.random() < 0.02 else chance.choice(few) for _ in range(length)]
    return trace


def trace_with_favourites(seed: int, length: int = 500) -> list[str]:
    """Zipf: the n-th of 6 models is asked for 1/n^2 as often as the first."""
    chance = random.Random(seed)
    return chance.choices("abcdef", [1 / rank**2 for rank in range(1, 7)], k=length)


def traces() -> dict[str, tuple[list[str], int]]:
    """Traces of one client, with the number of places."""
    return {
        "3 models take turns, 2 resident": (list("abc" * 60), 2),
        "5 models take turns, 3 resident": (list("abcde" * 40), 3),
        "2 models take turns, 2 resident": (list("ab" * 60), 2),
        "a moderator between two, 2 resident": (list("abac" * 45), 2),
        "phases of 3 of 8 models, 3 resident": (trace_with_phases(1), 3),
        "phases of 3 of 8 models, 4 resident": (trace_with_phases(2), 4),
        "6 models, some liked more, 4 resident": (trace_with_favourites(3), 4),
        "3 models at random, 2 resident": (random_clients(4, 1, 300)[0], 2),
    }


def table() -> str:
    """Loads beside the optimum, for one client and for four (medians of the seeds; the wait is the longest of all)."""
    lines = [f"{'one client, served in order':40} {'loads':>6} {'Belady':>7} {'ratio':>6}"]
    for title, (trace, capacity) in traces().items():
        loads, best = served_in_turn(trace, capacity).loads, optimal_swaps(trace, capacity)
        lines.append(f"{title:40} {loads:6} {best:7} {loads / best:6.2f}")
    lines.append("")
    lines.append(
        f"{'four clients at random, 3 models, 2 resident':40} {'loads':>6} {'least':>6} {'ratio':>6} {'in order':>9}"
        f" {'longest wait':>13} {'whole run':>10}"
    )
    for requests, seeds in [(40, 5), (1000, 3)]:
        chosen = [random_clients(seed, 4, requests) for seed in range(seeds)]
        least = statistics.median(best_with_reordering(clients, 2) for clients in chosen)
        in_order = statistics.median(
            optimal_swaps(list(itertools.chain(*zip(*clients, strict=True))), 2) for clients in chosen
        )
        for sequences in (1, 4):
            outcomes = [simulate(quick_workload(clients, 2, sequences), is_checked=False) for clients in chosen]
            made = statistics.median(outcome.loads for outcome in outcomes)
            wait = max(max(outcome.waits_s) for outcome in outcomes)
            whole = statistics.median(outcome.ended_at for outcome in outcomes)
            lines.append(
                f"{f'{requests} requests, {sequences} at a time, {seeds} seeds':44} {made:6} {least:6} "
                f"{made / least:6.2f} {in_order:9} {wait * 1e3:10.0f} ms {whole:8.2f} s"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for title, make in (("workloads", random_workload), ("with classes", random_workload_with_classes)):
        outcomes = [simulate(make(random.Random(given.seed + n))) for n in range(given.workloads)]
        print(
            f"{len(outcomes)} {title}: {sum(len(one.served) for one in outcomes)} served, "
            f"{sum(one.refused for one in outcomes)} refused, {sum(one.left for one in outcomes)} left, "
            f"{sum(one.loads for one in outcomes)} loads ({sum(one.failed for one in outcomes)} failed), "
            f"{sum(one.drains for one in outcomes)} drains, {sum(one.yields for one in outcomes)} yields"
        )
    print()
    print(table())


if __name__ == "__main__":
    main()
