"""Which models are in memory: a decision over values; no clock, no process, no chance.

The owner of the engines describes what is (`Situation`), carries out what `decide` answers, and asks again after
every change: a request came, ended or left, an engine became ready, failed or has gone; and at `wake_at`. An action
carried out is seen in the next situation (a stopped model is "stopping" until its memory is free, a request that was
asked to give way is known as asked), so asking twice orders nothing twice, and once nothing is left to do the answer
is empty.

Fairness. A request of the class with the longest head start comes when it comes; any other counts as come later, by
what its head start is shorter. Requests are in the order in which they so count as come. A request whose model is
not in memory is a newcomer. Newcomers are looked at in that order; each keeps the room found for it from those behind
it. Until `max_wait_s` after it counts as come only idle models make room for it; after that busy ones are drained, and
from then on start only requests that are before it. No wait is longer than

    max_wait_s + behind + (ahead + 1 + failed) * (2 * load + stop + 2 * serve) + back-off

where `behind` is by what the head start of its class is shorter than the longest, `ahead` counts the requests that are
before it and still wait once it has waited `max_wait_s + behind` (at most clients - 1 in a closed loop; who comes
later is never before it), `failed` the loads that failed and the pins that changed since, and the times are the
longest of their kind: a load in the way, the first requests of that model, the stop, the load, the service. Back-off
is that of the model asked for. It holds for requests that end, and for others as far as a model that is drained is
stopped at `drained_by` with what still runs on it; the owner bounds leases.

Yielding. A request in flight that may yield is asked to give way to a waiting one of a class with a longer head start
that would wait otherwise: for a free sequence of its model, or, where all in flight on a model yield, for its room.
What has given way and is asked for again is a new request. With equal head starts nobody yields, and classes change
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from modelpipes.events import Facts, Rule
from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.serving.reasons import candidates_of, facts_for, sentence
from modelpipes.serving.situation import (
    CLASSES,
    Action,
    Class,
    Move,
    Refuse,
    Resident,
    Situation,
    Start,
    Waiting,
    Yield,
    Yielding,
)
from modelpipes.serving.uses import last_answer, next_uses
from modelpipes.serving.victims import smallest

KEEP_LOADS = 3.0
"""While others are served, an idle model is kept, and a newcomer held back, for this many times its load time: its
client may come back. Swapping sooner costs loads, later costs waits."""

LINGER_LOADS = 0.3
"""For this share of a model's load time one who was just answered, and has not asked again, counts as still served:
a client in a loop takes a moment between answer and question."""

MAX_LINGER_S = 0.25
"""Of dear models, for no longer than this: a program that asks again has done so by then."""


ALIKE: Mapping[Class, float] = dict.fromkeys(CLASSES, 0.0)


def decide(situation: Situation) -> tuple[Action, ...]:
    """What to do now, in this order; empty when there is nothing to do but wait."""
    return _Decision(situation).made()


def wake_at(situation: Situation) -> float | None:
    """The next moment when time alone may change the decision; None: only an event can."""
    return _Decision(situation).next_moment()


class _Decision:
    """One decision in the making: what is held, promised and going, and the actions so far."""

    def __init__(self, situation: Situation) -> None:
        self.s = situation
        self.residents = {resident.name: resident for resident in situation.residents}
        self.behind_s = _behind_s(situation.head_starts_s)
        self.queues: dict[str, list[Waiting]] = {}  # as far as they could start now
        for waiters in situation.waiting:
            self.queues.setdefault(waiters.name, []).extend(waiters.first)
        for queue in self.queues.values():
            if len(queue) > 1:
                queue.sort(key=self._order)
        self.actions: list[Action] = []
        self.stopped: set[str] = set()
        self.draining: set[str] = set()
        self.promised: set[str] = set()
        self.asked: set[int] = set()
        self.limits: dict[str, tuple[float, int]] = {}
        # Bytes in use now, and bytes in use once all that is going has gone and all that is promised has come.
        self.held = _sum(situation.residents)
        self.planned = _sum(r for r in situation.residents if not r.is_leaving)
        # Whether anybody is served, or about to be, who may then come back for what is idle now.
        self.is_at_work = any(
            r.running > 0 or r.state == "loading" or (r.state == "ready" and r.name in self.queues)
            for r in situation.residents
        )
        # Who may be asked to give way, or has given way and is idle now.
        self.giving = [r for r in situation.residents if r.yielding or (r.state == "draining" and r.running == 0)]
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
            moments.append(self._came(first) + self.s.max_wait_s)
            moments += (
                self._free_from(r, first, is_at_work=is_at_work)
                for r in self.s.residents
                if r.is_idle and r.name not in self.queues
                for is_at_work in (True, False)
            )
            moments += (self._may_yield_from(r, first) for r in self.giving)
            moments += self._yield_moments(first, self.giving)
        for r in self.giving:
            for waiting in self.queues.get(r.name, ()):
                moments += self._yield_moments(waiting, [r])
        moments += (self._unload_at(r) for r in self.s.residents)
        moments += (r.drained_by for r in self.s.residents if r.state == "draining" and r.running > 0)
        return min((moment for moment in moments if now < moment < math.inf), default=None)

    # What goes without anybody waiting for its room.

    def _stop_what_is_over(self) -> None:
        for r in self.s.residents:
            if r.is_outdated and r.is_idle:
                self._stop(r, f"{r.name}: its file was replaced since it was loaded", Facts("replaced"))
                if not r.is_leaving:
                    self.planned -= r.charge
                continue
            if r.is_pinned:
                continue
            if r.is_unwanted:
                if r.running == 0 and r.state in ("ready", "draining"):
                    self._stop(r, f"{r.name} is to be unloaded, as asked", Facts("asked"))
                elif r.state == "ready":
                    reason = f"{r.name} is to be unloaded, as asked, once its {r.running} running have ended"
                    self._drain(r, reason, Facts("asked"))
            elif self._unload_at(r) <= self.s.now:
                facts = Facts("idle-unload", candidates=candidates_of([r], self._weight, {r.name}, self.s.now))
                self._stop(r, sentence(facts, r.name), facts)
                self.planned -= r.charge

    def _unload_at(self, r: Resident) -> float:
        """When the model will have been idle for as long as it may; never for one that is wanted."""
        if r.is_pinned or r.idle_unload_s is None or not r.is_idle or r.name in self.queues:
            return math.inf
        return r.idle_since + r.idle_unload_s

    def _shed(self) -> None:
        """The budget shrank, or an engine took more than was predicted: idle models go, busy ones may end."""
        idle = [r for r in self._candidates() if r.is_idle and r.name not in self.queues]
        victims = smallest(idle, self._missing(NOTHING), self._weight) or idle
        facts = Facts(
            "over-budget",
            budget=dict(self.s.budget.by_place),
            held=dict(self.held.by_place),
            planned=dict(self.planned.by_place),
            candidates=candidates_of(idle, self._weight, {r.name for r in victims}, self.s.now),
            idle=len(idle),
        )
        for r in victims:
            self._stop(r, sentence(facts, r.name), facts)
            self.planned -= r.charge

    # Order.

    def _came(self, waiting: Waiting) -> float:
        """When it counts as come."""
        return waiting.since + self.behind_s[waiting.of_class]

    def _order(self, waiting: Waiting) -> tuple[float, int]:
        return self._came(waiting), waiting.id

    def _is_below(self, of_class: Class, waiting: Waiting) -> bool:
        """Whether a class is less urgent than the one of this request."""
        return self.behind_s[of_class] > self.behind_s[waiting.of_class]

    # Newcomers.

    def _newcomers(self) -> list[Waiting]:
        """The first request of each model that is not in memory, or about to leave it, in their order."""
        firsts = [
            queue[0]
            for name, queue in self.queues.items()
            if name not in self.residents or self.residents[name].state == "stopping"
        ]
        return sorted(firsts, key=self._order)

    def _make_room(self, first: Waiting) -> None:
        model = self.s.models.get(first.name)
        if model is None:
            return self._refuse(first.name, f"{first.name} is no model of this server", None)
        needs, budget = model.charge, self.s.budget
        pinned = [r for r in self.s.residents if r.is_pinned and r.state != "stopping" and r.name != first.name]
        if not needs + _sum(pinned) <= budget:
            facts = replace(
                self._facts("too-large", first, needs),
                candidates=candidates_of(pinned, _free_of_charge, (), self.s.now),
            )
            return self._refuse(first.name, sentence(facts, first.name), facts)
        if self.s.blocked_until.get(first.name, self.s.now) > self.s.now:
            return None
        if first.name not in self.residents and self._fits_now(needs):
            facts = self._facts("fits", first, needs)
            self.actions.append(Move("load", first.name, sentence(facts, first.name), facts))
            self.held += needs
        elif not self.planned + needs <= budget:
            is_overdue = self._came(first) + self.s.max_wait_s <= self.s.now
            if not (self._claim(first, needs) if is_overdue else self._ask(first, needs)):
                return None
        self.planned += needs
        self.is_at_work = True
        return None

    def _fits_now(self, needs: Bytes) -> bool:
        return self.held + needs <= self.s.budget and self.planned + needs <= self.s.budget

    def _facts(self, rule: Rule, first: Waiting, needs: Bytes) -> Facts:
        """What is known at this moment of the room that is wanted."""
        return facts_for(rule, first, self.s.now, needs, self.s.budget, self.held, self.planned)

    def _choice(
        self,
        rule: Rule,
        first: Waiting,
        needs: Bytes,
        some: Sequence[Resident],
        victims: Sequence[Resident],
        cost: Callable[[Resident], float],
        *,
        is_fewest_first: bool = True,
    ) -> Facts:
        """The same, with those of whom the victims were chosen."""
        return replace(
            self._facts(rule, first, needs),
            candidates=candidates_of(some, cost, {r.name for r in victims}, self.s.now),
            idle=sum(r.is_idle and r.name not in self.queues for r in self._candidates()),
            is_fewest_first=is_fewest_first,
        )

    def _ask(self, first: Waiting, needs: Bytes) -> bool:
        """Room from idle models that may go now; or else a promise of those that may go soonest."""
        candidates = self._candidates()
        idle = [r for r in candidates if r.is_idle and r.name not in self.queues]
        if not idle and not self.giving:
            return False
        free_from = {r.name: self._free_from(r, first, is_at_work=self.is_at_work) for r in idle}
        missing = self._missing(needs)
        free = [r for r in idle if free_from[r.name] <= self.s.now]
        victims = smallest(free, missing, self._weight)
        if victims is not None:
            facts = self._choice("idle", first, needs, free, victims, self._weight)
            for r in victims:
                self._stop(r, sentence(facts, r.name), facts)
            self._promise(victims)
            return True
        free_from |= {r.name: self._may_yield_from(r, first) for r in self.giving}
        some = [r for r in candidates if free_from.get(r.name, math.inf) < math.inf]
        victims = self._displaced(first, needs, [r for r in some if free_from[r.name] <= self.s.now])
        if victims is None:
            victims = smallest(some, missing, lambda r: free_from[r.name])
        if victims is None:
            return False
        self._promise(victims)
        return True

    def _displaced(self, first: Waiting, needs: Bytes, some: list[Resident]) -> tuple[Resident, ...] | None:
        """Those whose requests give way now, and idle ones beside them."""

        def cost(r: Resident) -> float:
            return self._disturbance(r, first)

        victims = smallest(some, self._missing(needs), cost, is_fewest_first=False)
        if victims is None:
            return None
        facts = self._choice("yielding", first, needs, some, victims, cost, is_fewest_first=False)
        for r in victims:
            if r.running > 0:
                self._drain(r, sentence(facts, r.name), facts)
                self._have_yield(r, first)
            else:
                self._stop(r, sentence(facts, r.name), facts)
        return victims

    def _claim(self, first: Waiting, needs: Bytes) -> bool:
        """Room for one that waited too long: idle models, however young, or else busy ones, which are drained."""
        all_ = self._candidates()
        idle = [r for r in all_ if r.is_idle and not self._is_due_before(r, first)]
        old = [r for r in idle if r.loaded_at + self.s.min_resident_s <= self.s.now]
        missing = self._missing(needs)

        def disturbance(r: Resident) -> float:
            return self._disturbance(r, first)

        facts = None
        for some in (old, idle):
            if (victims := smallest(some, missing, self._weight)) is not None:
                facts = self._choice("overdue-idle", first, needs, some, victims, self._weight)
                break
        if facts is None:
            victims = smallest(all_, missing, disturbance, is_fewest_first=False)
            if victims is None:
                return False
            facts = self._choice("overdue-busy", first, needs, all_, victims, disturbance, is_fewest_first=False)
        self._take(victims or (), first, facts)
        return True

    def _take(self, victims: Sequence[Resident], first: Waiting, facts: Facts) -> None:
        """Have them make room for one that waited too long."""
        for r in victims:
            if r.state == "loading" or (r.is_unused and r.name in self.queues):
                continue  # it serves the requests that it was loaded for, or two models would evict each other unused
            self.limits[r.name] = self._order(first)
            if self._is_due_before(r, first):
                continue
            if r.running > 0:
                self._drain(r, sentence(facts, r.name), facts)
                self._have_yield(r, first)
            else:
                self._stop(r, sentence(facts, r.name), facts)
        self._promise(victims)

    def _missing(self, needs: Bytes) -> Bytes:
        """By how much the budget is too small once these come as well; the budget's places first."""
        return NOTHING - self.s.budget + self.planned + needs

    def _candidates(self) -> list[Resident]:
        gone = self.stopped | self.promised
        return [r for r in self.s.residents if not (r.is_pinned or r.is_leaving or r.name in gone)]

    def _is_due_before(self, r: Resident, first: Waiting) -> bool:
        """Whether the model has to serve somebody before it may make room for this one."""
        queue = self.queues.get(r.name)
        return queue is not None and (self._order(queue[0]) < self._order(first) or r.is_unused)

    def _free_from(self, r: Resident, first: Waiting, *, is_at_work: bool) -> float:
        """The moment from which an idle model may make room for a newcomer."""
        load_s = self.s.models[r.name].load_s
        comes_back_by = self._last_answer() + min(LINGER_LOADS * load_s, MAX_LINGER_S)
        patience_s = KEEP_LOADS * self.s.models[first.name].load_s if first.name in self.s.models else 0.0
        came = self._came(first)
        kept_until = min(
            math.inf if is_at_work else comes_back_by,
            r.idle_since + KEEP_LOADS * load_s,
            came + patience_s,
        )
        if self._is_below(r.last_class, first):  # it is not kept for a less urgent one, who may come back
            kept_until = -math.inf
        return min(max(r.loaded_at + self.s.min_resident_s, kept_until), came + self.s.max_wait_s)

    def _may_yield_from(self, r: Resident, first: Waiting) -> float:
        """The moment from which all that is in flight on a model gives way to a newcomer, or has; never if it can't."""
        is_drained = r.state == "draining" and r.running == 0 and self._is_below(r.last_class, first)
        is_yielding = r.state in ("ready", "draining") and 0 < r.running == len(self._below(r, first))
        if not (is_drained or is_yielding) or self._is_due_before(r, first):
            return math.inf
        patience_s = max((one.after_s for one in r.yielding if not one.is_asked), default=0.0)
        return max(r.loaded_at + self.s.min_resident_s, first.since + patience_s)

    def _last_answer(self) -> float:
        if self._answer is None:
            self._answer = last_answer(self.s.recent, self.s.arrivals)
        return self._answer

    def _weight(self, r: Resident) -> float:
        """What evicting an idle model costs: its load, the dearer the sooner it will be used again.

        Without a rhythm the best guess for the time until the next use is the time since the last one.
        """
        if self._uses is None:
            self._uses = next_uses(self.s.recent, self.s.now)
        until = self._uses.get(r.name, self.s.now - r.idle_since)
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

    def _promise(self, victims: Iterable[Resident]) -> None:
        for r in victims:
            self.promised.add(r.name)
            self.planned -= r.charge

    # What is resident.

    def _settle_draining(self) -> None:
        for r in self.s.residents:
            if r.state != "draining" or r.name in self.stopped:
                continue
            if not r.is_leaving and r.name not in self.draining:
                reason = f"{r.name}: nobody waits for its room any more"
                self.actions.append(Move("undrain", r.name, reason, Facts("unneeded")))
            elif r.running > 0 and r.drained_by <= self.s.now:
                reason = f"{r.name} is still busy with {r.running}, and its drain_timeout_s is over"
                self._stop(r, reason, Facts("drain-timeout"))

    def _start(self) -> None:
        for r in self.s.residents:
            queue = self.queues.get(r.name)
            if queue is None or r.state != "ready" or r.name in self.draining | self.stopped:
                continue
            limit = self.limits.get(r.name)
            free = max(0, self.s.models[r.name].sequences - r.running)
            due = [waiting for waiting in queue if limit is None or self._order(waiting) < limit]
            for waiting in due[:free]:
                self.actions.append(Start(waiting.id, r.name, f"{r.name} is ready"))
            self._free_places(r, due[free:])

    def _free_places(self, r: Resident, due: Sequence[Waiting]) -> None:
        """Have one in flight yield for each that is due and gets no place; places go in order, so up to the first for
        whom nobody does. Who was asked before is on the way out, for the first of them.
        """
        for waiting in due[sum(one.is_asked for one in r.yielding) :]:
            some = [one for one in self._below(r, waiting) if self._has_to_yield(one, waiting)]
            if not some:
                break
            self._ask_to_yield(r, max(some, key=lambda one: (self.behind_s[one.of_class], one.id)), waiting)

    # Who gives way.

    def _below(self, r: Resident, waiting: Waiting) -> list[Yielding]:
        """What is in flight on a model and gives way to this request, though perhaps not yet."""
        return [one for one in r.yielding if self._is_below(one.of_class, waiting)]

    def _has_to_yield(self, one: Yielding, waiting: Waiting) -> bool:
        return not one.is_asked and one.id not in self.asked and waiting.since + one.after_s <= self.s.now

    def _have_yield(self, r: Resident, first: Waiting) -> None:
        for one in self._below(r, first):
            if self._has_to_yield(one, first):
                self._ask_to_yield(r, one, first)

    def _ask_to_yield(self, r: Resident, one: Yielding, waiting: Waiting) -> None:
        self.asked.add(one.id)
        reason = f"{waiting.name}: a request of class {waiting.of_class} goes before one of class {one.of_class}"
        self.actions.append(Yield(one.id, r.name, reason, Facts("class", waiting.name, self.s.now - waiting.since)))

    def _yield_moments(self, waiting: Waiting, residents: Iterable[Resident]) -> list[float]:
        """When the patience ends that what is in flight may ask of this request."""
        return [waiting.since + one.after_s for r in residents for one in self._below(r, waiting) if not one.is_asked]

    # Actions.

    def _stop(self, r: Resident, reason: str, facts: Facts) -> None:
        self.stopped.add(r.name)
        self.actions.append(Move("stop", r.name, reason, facts))

    def _drain(self, r: Resident, reason: str, facts: Facts) -> None:
        self.draining.add(r.name)
        if r.state == "ready":
            self.actions.append(Move("drain", r.name, reason, facts))

    def _refuse(self, name: str, reason: str, facts: Facts | None) -> None:
        count = sum(waiters.count for waiters in self.s.waiting if waiters.name == name)
        self.actions.append(Refuse(name, count, reason, facts))


def _free_of_charge(r: Resident) -> float:
    """The cost of those of whom none goes."""
    return 0.0


def _behind_s(head_starts_s: Mapping[Class, float]) -> Mapping[Class, float]:
    """By what the head start of each class is shorter than the longest."""
    if not head_starts_s:
        return ALIKE
    longest_s = max(head_starts_s.get(one, 0.0) for one in CLASSES)
    return {one: longest_s - head_starts_s.get(one, 0.0) for one in CLASSES}


def _sum(residents: Iterable[Resident]) -> Bytes:
    return Bytes.total(r.charge for r in residents)
