"""The engines that the daemon owns. `residency` decides; here it is carried out, and nothing else is decided.

Everything but what blocks (`Pool._blocking`) runs in the event loop, so that no two decisions meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from modelpipes import events
from modelpipes.engine.cachekey import key_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.pulse import Pulse
from modelpipes.errors import Cause, EngineFailure, PipesError, ServingError
from modelpipes.events import Sink
from modelpipes.gateway.wire import DecisionReport, Residency, ResidentReport, WaitingReport
from modelpipes.gguf.identity import Stamp, stamp_of
from modelpipes.serving.budget import Ours, free_on_cards, settle
from modelpipes.serving.bytes import Bytes
from modelpipes.serving.failures import Failures
from modelpipes.serving.figures import PoolFigures
from modelpipes.serving.files import Watched
from modelpipes.serving.grant import Address, Grant, ModelReport
from modelpipes.serving.held import Held, HeldGrant
from modelpipes.serving.kept import Kept
from modelpipes.serving.learnt import Learnt, Load
from modelpipes.serving.residency import decide, wake_at
from modelpipes.serving.servable import Servable
from modelpipes.serving.situation import (
    Action,
    Loadable,
    Move,
    Refuse,
    Resident,
    Situation,
    Start,
    State,
    Use,
    Waiting,
    Yield,
)
from modelpipes.serving.uses import expected_wait_s
from modelpipes.serving.waiters import Waiter, WaitingList
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline

LOG_LINES = 100  # of the past, where a log is asked for
# Between two looks at an engine. llama-server looks for clients that left when nothing came for a second: any other
# answer, as of its metrics, puts that off.
LOOK_INTERVAL_S = 3.0
LOOK_LIMIT_S = 30.0  # for a proof that an engine computes
LATE_S = 5.0  # beyond an engine's own limit for its load, which it keeps itself, and tells better
HEALTHY_S = 30.0  # an engine that lived so long has not failed at its start
KEPT_DECISIONS = 100
KEPT_USES = 64  # enough to see that models take turns
DISK_BYTES_PER_S = 1e9  # before a load was measured
WORKERS = 64  # threads: starts and stops wait in them
UNLOADED = "unloaded"  # of a model that has no engine
CLOCK_S = 0.05  # by which two clocks may differ


class Pool:
    """See `grant.EnginePool` for what it is asked; `close` ends every engine."""

    def __init__(
        self,
        servables: Iterable[Servable],
        budget: Bytes,
        *,
        min_resident_s: float = 5.0,
        max_wait_s: float = 60.0,
        kept: Kept | None = None,
        settles: bool = False,
        sink: Sink = lambda event: None,
    ) -> None:
        """`kept` keeps conversations across swaps; `settles`: memory of a card is waited for after an engine's end;
        `sink` is told of each decision, each load and each failure.
        """
        self.budget = budget
        self.min_resident_s = min_resident_s
        self.max_wait_s = max_wait_s
        self._kept = kept
        self._settles = settles
        self._tell = sink
        self._loop = asyncio.get_running_loop()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="engine")
        self._servables: dict[str, Servable] = {}
        self._names: dict[str, str] = {}  # and aliases
        self._pinned: set[str] = set()
        self._held: dict[str, Held] = {}
        self._waiters = WaitingList()
        self._ids = itertools.count(1)
        self._learnt = Learnt()
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._failures = Failures()
        self._recent: dict[int, Use] = {}
        self._decisions: deque[DecisionReport] = deque(maxlen=KEPT_DECISIONS)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._figures = PoolFigures()
        self.serve(servables)

    # -- what it is asked

    def models(self) -> list[ModelReport]:
        """What can be served, by name."""
        return [
            ModelReport(
                one.name,
                one.file,
                list(one.aliases),
                one.created,
                one.context_length,
                self._held[one.name].state if one.name in self._held else UNLOADED,
                one.needs.card,
                one.needs.host,
                one.estimate,
            )
            for one in self._servables.values()
        ]

    def unfit(self) -> Iterator[tuple[str, str]]:
        """The models that are larger than the budget, each with what would fit."""
        for one in self._servables.values():
            if not one.needs <= self.budget and one.advise:
                yield one.name, one.advise(self.budget)

    async def acquire(self, name: str) -> Grant:
        """Wait for an engine of this model; a cancelled wait leaves the queue. ServingError."""
        if self._is_closed:
            raise ServingError("the daemon is ending", 503, "shutting_down")
        name = self._known(name)
        now = time.monotonic()
        if name not in self._held and self._is_changed(name):
            await self._renewed(name)
            name = self._known(name)  # there may be another configuration now
        self._failures.check(name, self._servables[name].files, now)
        waiter = Waiter(Waiting(next(self._ids), name, now), self._loop.create_future())
        self._waiters[waiter.waiting.id] = waiter
        self._consider()
        if not waiter.granted.done():
            self._tell_queued(waiter.waiting)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
                waiter.granted.result().release()  # it came together with the cancel
            self._tell(events.RequestEnded(waiter.waiting.id, name, "cancelled", time.monotonic() - now))
            raise
        except ServingError:
            self._tell(events.RequestEnded(waiter.waiting.id, name, "refused", time.monotonic() - now))
            raise
        finally:
            if self._waiters.pop(waiter.waiting.id, None):
                self._consider()

    def _tell_queued(self, waiting: Waiting) -> None:
        held = self._held.get(waiting.name)
        model = self._model(self._servables[waiting.name])
        wait_s = expected_wait_s(
            waiting.name,
            self._waiters.count(waiting.name) - 1,
            model.sequences,
            model.load_s,
            tuple(self._recent.values()),
            is_ready=held is not None and held.state == "ready",
        )
        self._tell(events.RequestQueued(waiting.id, waiting.name, len(self._waiters), wait_s))

    def set_budget(self, budget: Bytes) -> None:
        """What all engines together may take from now on."""
        if budget != self.budget:
            self.budget = budget
            self._consider()

    def ours(self) -> Ours:
        """The engines that are there now."""
        held_ones = self._held.values()
        pids = tuple(held.engine.pid for held in held_ones if held.engine.pid > 0)
        return Ours(pids, self.used, all(held.state in ("ready", "draining") for held in held_ones))

    @property
    def used(self) -> Bytes:
        """What the engines are charged with now."""
        return Bytes.total(held.bytes for held in self._held.values())

    def residency(self) -> Residency:
        """The state of it all now."""
        now, used = time.monotonic(), self.used
        return Residency(
            budget_bytes=self.budget.card,
            used_bytes=used.card,
            host_budget_bytes=self.budget.host,
            host_used_bytes=used.host,
            resident=[
                ResidentReport(
                    name=name,
                    state=held.state,
                    bytes=held.bytes.card,
                    host_bytes=held.bytes.host,
                    busy=len(held.grants),
                    idle_s=0.0 if held.grants or held.state == "loading" else round(now - held.last_used, 3),
                    pinned=name in self._pinned,
                    replaced=held.watched is not None and held.watched.are_replaced,
                )
                for name, held in self._held.items()
            ],
            waiting=[
                WaitingReport(waiter.waiting.name, position, round(now - waiter.waiting.since, 3))
                for position, waiter in enumerate(self._waiters.values(), start=1)
            ],
            decisions=list(self._decisions),
        )

    def metrics(self) -> bytes:
        """Figures in Prometheus' text format."""
        return self._figures.text(self.residency())

    async def load(self, name: str) -> None:
        """Have it resident as its files are now, also where it failed and nothing has changed. ServingError.

        An engine of other files is ended once it is idle, and takes no more requests until then; not where what lies
        there now is no model.
        """
        name = self._known(name)
        self._failures.allow(name)
        held = self._held.get(name)
        if held is not None and held.key is not None and not await self._blocking(held.key.is_of_now):
            try:
                await self._renew(self._servables[self._known(name)])
            except ServingError:
                raise
            except PipesError as error:
                why = f"{name} serves what it was loaded from: its file was replaced, and {make_line(str(error))}"
                raise ServingError(why, 503, "model_load_failed") from None
            held.is_unwanted = True
        await self._have(name)

    async def _have(self, name: str) -> None:
        (await self.acquire(name)).release()

    async def unload(self, name: str) -> None:
        """Have it gone, once it is idle; returns when it is. ServingError."""
        name = self._known(name)
        held = self._held.get(name)
        if held is None:
            return
        if name in self._pinned:
            raise ServingError(f"{name} is pinned: unpin it first", 409, "model_pinned")
        held.is_unwanted = True
        self._consider()
        await held.gone.wait()

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Keep it resident once it is, or no longer. ServingError."""
        name = self._known(name)
        if is_pinned:
            self._pinned.add(name)
        else:
            self._pinned.discard(name)
        self._consider()

    async def logs(self, name: str, *, follow: bool) -> AsyncIterator[str]:
        """The engine's last lines, and with `follow` those to come until it ends. ServingError."""
        name = self._known(name)
        held = self._held.get(name)
        if held is None:
            raise ServingError(f"{name} is not loaded", 409, "model_not_loaded")
        if not follow:
            for line in held.engine.logs(LOG_LINES):
                yield line
            return
        came = asyncio.Event()
        with held.engine.log.follow(LOG_LINES, lambda: self._loop.call_soon_threadsafe(came.set)) as follower:
            gone = asyncio.ensure_future(held.gone.wait())
            try:
                while True:
                    for line in follower.read(Deadline.after(0)):
                        yield line
                    if gone.done():
                        return
                    news = asyncio.ensure_future(came.wait())
                    await asyncio.wait({news, gone}, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    came.clear()
            finally:
                gone.cancel()

    def serve(self, servables: Iterable[Servable]) -> None:
        """Have these models, and no others; those that stay the same stay as they are."""
        new = {one.name: one for one in servables}
        for name, held in self._held.items():
            one = new.get(name)
            if one is not None and one.is_same(held.servable):
                held.servable = one
            else:
                held.is_unwanted = True
        for name, one in new.items():
            before = self._servables.get(name)
            if before is not None and not one.is_same(before):
                self._forget_figures(name)
            if one.is_pinned != (before is not None and before.is_pinned):  # else as it was told meanwhile
                (self._pinned.add if one.is_pinned else self._pinned.discard)(name)
        for name in self._servables.keys() - new.keys():
            self._forget_figures(name)
        # What made a start fail was mended, perhaps: it is tried anew.
        self._failures.forget_all()
        self._pinned &= new.keys()
        self._servables = new
        self._names = {alias: one.name for one in new.values() for alias in (*one.aliases, one.name)}
        for waiter in list(self._waiters.values()):
            if waiter.waiting.name not in new:
                self._refuse(waiter, ServingError(f"{waiter.waiting.name} is no longer served", 404, "model_not_found"))
        self._consider()

    def _forget_figures(self, name: str) -> None:
        """What was learnt of a model that is another one now."""
        self._learnt.forget(name)
        if self._kept:
            self._kept.forget_model(name)

    def load_pinned(self) -> None:
        """Begin to load what is pinned."""
        if self._is_closed:
            return
        staying = {name for name, held in self._held.items() if not held.is_unwanted}
        for name in sorted(self._pinned - staying):
            self._spawn(self._quietly(self._have(name)))

    async def close(self) -> None:
        """End every engine; who waits is told."""
        self._is_closed = True
        for waiter in list(self._waiters.values()):
            self._refuse(waiter, ServingError("the daemon is ending", 503, "shutting_down"))
        if self._timer is not None:
            self._timer.cancel()
        for held in self._held.values():
            self._unwatch(held)
        held_ones = list(self._held.values())
        await asyncio.gather(*(self._blocking(held.engine.stop) for held in held_ones), return_exceptions=True)
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._held.clear()
        self._workers.shutdown()
        if self._kept:
            self._kept.close()

    # -- what is decided, done

    def _consider(self) -> None:
        if self._is_closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        situation = self._situation()
        while actions := decide(situation):
            for action in actions:
                self._carry_out(action)
            situation = self._situation()
        if (at := wake_at(situation)) is not None:
            self._timer = self._loop.call_at(max(at, situation.now), self._consider)

    def _situation(self) -> Situation:
        models = {
            name: self._model(held.servable if (held := self._held.get(name)) else self._servables[name])
            for name in {**self._servables, **self._held}
        }
        return Situation(
            now=time.monotonic(),
            budget=self.budget,
            models=models,
            residents=tuple(
                Resident(
                    name=name,
                    bytes=held.bytes,
                    state=held.state,
                    running=len(held.grants),
                    loaded_at=held.loaded_at,
                    last_used=held.last_used,
                    is_pinned=name in self._pinned and not held.is_unwanted,  # changed: another takes its place
                    idle_unload_s=held.servable.idle_unload_s,
                    is_unwanted=held.is_unwanted,
                    is_outdated=held.is_outdated,
                    drained_by=held.drained_by,
                )
                for name, held in self._held.items()
            ),
            waiting=self._waiters.situation(lambda name: models[name].sequences),
            min_resident_s=self.min_resident_s,
            max_wait_s=self.max_wait_s,
            blocked_until=self._failures.retry_moments(),
            recent=tuple(self._recent.values()),
            arrivals=self._waiters.arrivals(KEPT_USES),
        )

    def _model(self, servable: Servable) -> Loadable:
        load = self._learnt.of(servable.name, servable.stamp)
        needs = load.taken if load and load.taken else servable.needs
        load_s = load.seconds if load else servable.file_bytes / DISK_BYTES_PER_S + 0.03
        return Loadable(servable.name, needs, load_s, servable.sequences)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Start):
            self._start(action)
            return
        if isinstance(action, Refuse):
            advise = self._servables[action.name].advise
            why = f"{action.reason}; {advise(self.budget)}" if advise else action.reason
            for waiter in self._waiters.of_model(action.name):
                self._note(action)
                self._refuse(waiter, ServingError(why, 400, "model_does_not_fit"))
            return
        self._note(action)
        if isinstance(action, Yield):
            for grant in self._held[action.name].grants:
                if grant.id == action.id:
                    grant.drain.set()
        elif action.to_do == "load":
            self._begin_load(self._servables[action.name])
        else:
            held = self._held[action.name]
            if action.to_do == "drain":
                self._become(held, "draining")
                held.drained_by = time.monotonic() + held.servable.drain_timeout_s
                for grant in held.grants:
                    grant.drain.set()
            elif action.to_do == "undrain":
                self._become(held, "ready")
                held.drained_by = math.inf
            elif held.grants:  # it has had its time: what still runs on it breaks off
                self._lose(held)
                self._spawn(self._stop(held, keeps=False))
            else:
                self._become(held, "stopping")
                self._unwatch(held)
                self._spawn(self._stop(held))

    def _start(self, action: Start) -> None:
        waiter = self._waiters.pop(action.id)
        if waiter.granted.done():  # it was cancelled in this very moment
            return
        held = self._held[action.name]
        now = time.monotonic()
        self._figures.waited.observe(now - waiter.waiting.since)
        grant = HeldGrant(action.name, _address(held.engine), held.identity, release_to=self._release, id=action.id)
        self._recent[grant.id] = Use(action.name, waiter.waiting.since, now)
        if len(self._recent) > KEPT_USES:
            del self._recent[next(iter(self._recent))]
        held.grants.add(grant)
        waiter.granted.set_result(grant)
        self._tell(events.RequestStarted(action.id, action.name, now - waiter.waiting.since))

    def _begin_load(self, servable: Servable) -> None:
        stamp = stamp_of(*servable.files)
        try:
            engine = servable.start(self._kept.place() if self._kept else None)
        except PipesError as error:
            self._failed(servable, str(error), stamp)
            return
        held = self._held[servable.name] = Held(servable, engine, self._model(servable).needs, stamp)
        self._tell(events.EngineState(servable.name, held.state, UNLOADED))
        self._spawn(self._load(held))

    def _note(self, action: Move | Refuse | Yield) -> None:
        what = action.to_do if isinstance(action, Move) else type(action).__name__.lower()
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._decisions.append(DecisionReport(at, what, action.name, action.reason))
        self._figures.decisions.labels(what).inc()
        self._tell(events.Decided(what, action.name, action.reason, action.facts))

    def _refuse(self, waiter: Waiter, error: ServingError) -> None:
        self._waiters.pop(waiter.waiting.id, None)
        if not waiter.granted.done():
            waiter.granted.set_exception(error)

    def _release(self, grant: HeldGrant) -> None:
        now = time.monotonic()
        if use := self._recent.get(grant.id):
            self._recent[grant.id] = replace(use, ended_at=now)
        held = self._held.get(grant.name)
        if held is not None and grant in held.grants:
            held.grants.discard(grant)
            held.last_used = now
            self._consider()

    # -- engines

    async def _load(self, held: Held) -> None:
        name, began, engine = held.servable.name, time.monotonic(), held.engine
        try:
            if held.servable.stamp != held.stamp and not await self._is_still_decided(held):
                self._forget(held)
                self._consider()
                return
            held.key = await self._blocking(key_of, engine.spec, engine.binary)
            held.identity, held.watched = held.key.digest, Watched(held.key.files.stamp)
            await self._blocking(engine.be_ready, Deadline.after(held.servable.load_timeout_s + LATE_S))
            restored = 0
            if self._kept:
                with self._figures.restore.time():
                    restored = await self._blocking(self._kept.restore, name, engine, held.key)
                self._figures.restored.inc(restored)
            taken = held.servable.measure and await self._blocking(held.servable.measure, engine.pid)
            # What became of files that changed meanwhile says nothing about any.
            is_theirs = await self._blocking(stamp_of, *held.servable.files) == held.servable.stamp
        except PipesError as error:
            await self._blocking(engine.stop)
            self._forget(held)
            if not self._is_closed:
                is_lasting = isinstance(error, EngineFailure) and error.cause.is_lasting
                self._failed(held.servable, str(error), held.stamp, is_lasting=is_lasting)
                self._consider()
            return
        if self._is_closed:  # it may have begun after `close` found nothing to stop
            await self._blocking(engine.stop)
            return
        now = time.monotonic()
        if is_theirs:
            self._learnt.note(name, Load(held.servable.stamp, now - began, taken or None))
        self._figures.load.observe(now - began)
        held.loaded_at = held.last_used = now
        if taken:
            held.bytes = taken
        self._become(held, "ready")
        self._loop.add_reader(engine.pidfd, self._died, held)
        self._tell(
            events.EngineReady(
                name,
                now - began,
                engine.pid,
                predicted=dict(held.servable.needs.by_place),
                charged=dict(held.bytes.by_place),
                measured=dict(taken.by_place) if taken else None,
                restored=restored,
            )
        )
        held.watch = self._spawn(self._look_after(held))
        self._consider()

    async def _look_after(self, held: Held) -> None:
        """End the engine if it is there and computes nothing; its death does the rest."""
        pulse = Pulse(held.engine)
        while held.state != "stopping":  # what is seen here may be why
            await asyncio.sleep(LOOK_INTERVAL_S)
            if not await self._blocking(pulse.is_alive, Deadline.after(LOOK_LIMIT_S)):
                self._tell(events.EngineStuck(held.servable.name))
                self._lose(held)
                await self._quietly(self._blocking(partial(held.engine.stop, cause=Cause.WEDGED, why="it hung")))
                self._forget(held)
                self._failed(held.servable, "it hung", held.stamp, was_ready=True)
                self._consider()
                return
            await self._look_at_files(held)

    async def _stop(self, held: Held, *, keeps: bool = True) -> None:
        """End its engine; `keeps` its conversations for the next load, which waits for what runs."""
        name, began = held.servable.name, time.monotonic()
        try:
            # Not where its name has another model now.
            if keeps and self._kept and held.key and self._servables.get(name) is held.servable:
                with self._figures.save.time():
                    await self._blocking(self._kept.save, name, held.engine, held.key)
            before = await self._blocking(free_on_cards) if self._settles else 0
            await self._blocking(held.engine.stop)
            if self._settles and not await self._blocking(settle, held.bytes.card, before, free_on_cards):
                self._tell(events.MemoryNotFreed(name))
        except PipesError as error:
            self._tell(events.StopFailed(name, str(error)))
        self._figures.stop.observe(time.monotonic() - began)
        self._failures.forget(name)  # its life was no failure
        self._forget(held)
        self._tell(events.EngineGone(name, time.monotonic() - began, dict(held.bytes.by_place)))
        self._consider()

    def _died(self, held: Held) -> None:
        """The engine has ended, and nobody told it to."""
        self._lose(held)
        self._spawn(self._bury(held))

    def _lose(self, held: Held) -> None:
        """It can no longer be used; who does is told."""
        self._unwatch(held)
        if time.monotonic() - held.loaded_at > HEALTHY_S:
            self._failures.forget(held.servable.name)
        for grant in held.grants:
            grant.is_lost = True
            grant.drain.set()
        self._become(held, "stopping")

    async def _bury(self, held: Held) -> None:
        why = await self._blocking(held.engine.exit_reason) or "it ended"
        await self._quietly(self._blocking(held.engine.stop))
        self._forget(held)
        self._failed(held.servable, why, held.stamp, was_ready=True)
        self._consider()

    def _failed(
        self,
        servable: Servable,
        why: str,
        stamp: Stamp,
        *,
        is_lasting: bool = False,
        was_ready: bool = False,
        was_begun: bool = True,
    ) -> None:
        """Files with this stamp failed: wait before the next load of them, or where it lasts for a change; who waits
        for it is told, unless it was ready and may be loaded again at once.

        What is pinned is tried again by itself; where it lasts only if no engine was begun, which is cheap to see and
        may be mended without our being told, as when a disk comes back.
        """
        name, why = servable.name, make_line(why)
        self._figures.failures.inc()
        if self._servables.get(name) is not servable:  # says nothing about the one that has its name now
            self._tell(events.EngineFailed(name, why))
            return
        failure = self._failures.count(name, why, time.monotonic(), stamp, is_lasting=is_lasting)
        self._tell(events.EngineFailed(name, why, failure.in_a_row, failure.pause_s, is_lasting=is_lasting))
        if name in self._pinned and not (is_lasting and was_begun):
            # The loop's clock counts milliseconds: on the moment may be before it, and nobody asks a second time.
            self._loop.call_later(failure.pause_s + CLOCK_S, self.load_pinned)
        if was_ready and not failure.pause_s:
            return
        for waiter in self._waiters.of_model(name):
            retry_after_s = None if is_lasting else failure.pause_s
            self._refuse(waiter, ServingError(why, 503, "model_load_failed", retry_after_s))

    def _forget(self, held: Held) -> None:
        if self._held.get(held.servable.name) is held:
            del self._held[held.servable.name]
            self._tell(events.EngineState(held.servable.name, UNLOADED, held.state))
        held.gone.set()
        if held.is_outdated:  # however it ended: what is pinned is wanted as it is now
            self.load_pinned()

    def _become(self, held: Held, state: State) -> None:
        before, held.state = held.state, state
        if before != state:
            self._tell(events.EngineState(held.servable.name, state, before))

    def _unwatch(self, held: Held) -> None:
        if held.engine.pidfd >= 0:
            self._loop.remove_reader(held.engine.pidfd)
        if held.watch is not None and held.watch is not asyncio.current_task():
            held.watch.cancel()
        held.watch = None

    # -- files that change

    def _is_changed(self, name: str) -> bool:
        """Whether what is known of a model is of other files than those that lie there now."""
        servable = self._servables[name]
        return servable.stamp != stamp_of(*servable.files)

    async def _renewed(self, name: str) -> None:
        """Find out anew what is known of a model, once for all who wait for that; a failure is one to load it."""
        renewal = self._renewals.get(name)
        if renewal is None:
            servable = self._servables[name]
            renewal = self._renewals[name] = self._spawn(self._renew_or_fail(servable))
            renewal.add_done_callback(lambda _: self._renewals.pop(name))
        await asyncio.shield(renewal)

    async def _renew_or_fail(self, servable: Servable) -> None:
        stamp = await self._blocking(stamp_of, *servable.files)
        try:
            await self._renew(servable)
        except PipesError as error:
            self._failed(servable, str(error), stamp, is_lasting=True, was_begun=False)

    async def _renew(self, servable: Servable) -> Servable:
        """The model as its files are now, which it is from now on. PipesError where they are none."""
        if servable.renew is not None:
            renewed: Servable = await self._blocking(servable.renew)
        else:
            renewed = replace(servable, stamp=await self._blocking(stamp_of, *servable.files))
        if self._servables.get(servable.name) is servable:  # no other configuration came meanwhile
            self._servables[servable.name] = renewed
        return renewed

    async def _is_still_decided(self, held: Held) -> bool:
        """Whether what was decided of a model holds for its files as they are now. PipesError where they are none."""
        decided = held.servable
        held.servable = await self._renew(decided)
        held.stamp = held.servable.stamp
        return held.servable.start == decided.start and self._model(held.servable).needs <= held.bytes

    async def _look_at_files(self, held: Held) -> None:
        """Where others have come to rest that can be loaded, have the engine gone at its next idle moment."""
        name = held.servable.name
        if held.key is None or held.watched is None or held.is_unwanted:
            return
        came = held.watched.look(await self._blocking(held.key.stamp_now))
        held.is_outdated &= held.watched.are_replaced
        servable = self._servables.get(name)
        if not came or servable is None:
            return
        why = ""
        try:
            await self._renew(servable)
            held.is_outdated = True
        except PipesError as error:
            why = make_line(str(error))
        self._tell(events.FileReplaced(name, why))
        self._consider()

    # -- small things

    def _known(self, name: str) -> str:
        if name not in self._names:
            there = ", ".join(sorted(self._servables)) or "none"
            raise ServingError(f"no model is called {name!r}; there are: {there}", 404, "model_not_found")
        return self._names[name]

    async def _blocking(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._workers, work, *arguments)

    async def _quietly(self, work: Any) -> None:
        try:
            await work
        except PipesError as error:
            self._tell(events.Trouble(str(error)))

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _address(engine: Engine) -> Address:
    parts = urlsplit(engine.base_url)
    return Address(parts.hostname or "", parts.port or 0, engine.api_key or "")
