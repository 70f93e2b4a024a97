"""A small pool of real engines for tests of the gateway, and the gateway in front of it in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import uvloop

from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice
from modelpipes.errors import EngineError, ServingError
from modelpipes.gateway.wire import DecisionReport, Residency, ResidentReport, WaitingReport
from modelpipes.serving.gateway import Gateway, GatewaySettings, Mounts, make_app
from modelpipes.serving.grant import Address, Grant, ModelReport
from modelpipes.serving.listening import Server
from modelpipes.values.deadline import Deadline

LIMIT_S = 30.0  # far more than anything here takes; the deadline of every wait
ENGINE_KEY = "of-the-engine"
Result = TypeVar("Result")


class CountedGrant(Grant):
    """A grant that its pool hears of."""

    on_release: Callable[[Grant], None]
    is_released = False

    def release(self) -> None:
        if not self.is_released:
            self.is_released = True
            self.on_release(self)


class SmallPool:
    """Every model has its engine, started when first asked for; none is ever evicted."""

    def __init__(
        self,
        files: Mapping[str, str | Path],
        *,
        kind: EngineChoice = "embedded",
        parallel: int = 4,
        ctx_size: int = 1024,
    ) -> None:
        key = ["--api-key", ENGINE_KEY]
        self.engines = {
            name: Engine(str(file), engine=kind, ctx_size=ctx_size, parallel=parallel, name=name, engine_args=key)
            for name, file in files.items()
        }
        self.aliases = {"also-" + name: name for name in files}
        self.changed = threading.Condition()
        self.grants: list[CountedGrant] = []
        self.granted = 0
        self.waiting: list[str] = []
        self.pinned: set[str] = set()
        self.gate: asyncio.Event | None = None  # where given, nothing is granted before it is set
        self.on_grant: Callable[[Grant], None] = lambda grant: None
        self._watched: dict[int, str] = {}

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Block until it is so; from another thread than the pool's."""
        with self.changed:
            assert self.changed.wait_for(is_so, LIMIT_S), (self.grants, self.waiting)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for pidfd in self._watched:
            loop.remove_reader(pidfd)
        for engine in self.engines.values():
            engine.stop(term_s=0.2)

    # -- what the gateway asks

    def models(self) -> list[ModelReport]:
        return [
            ModelReport(
                name,
                engine.model,
                [alias for alias, real in self.aliases.items() if real == name],
                0,
                engine.ctx_size,
                engine.state.value if engine.state.value == "ready" else "unloaded",
            )
            for name, engine in self.engines.items()
        ]

    async def acquire(self, name: str) -> Grant:
        name = self._real(name)
        self._note(lambda: self.waiting.append(name))
        try:
            if self.gate is not None:
                await self.gate.wait()
            await self.load(name)
        finally:
            self._note(lambda: self.waiting.remove(name))
        parts = urlsplit(self.engines[name].base_url)
        grant = CountedGrant(name, Address(parts.hostname or "", parts.port or 0, ENGINE_KEY))
        grant.on_release = self._release
        self._note(lambda: self.grants.append(grant))
        self.granted += 1
        self.on_grant(grant)
        return grant

    def residency(self) -> Residency:
        resident = [
            ResidentReport(name, "ready", 1, 1, self._busy(name), 0.0, name in self.pinned)
            for name, engine in self.engines.items()
            if engine.state.value == "ready"
        ]
        waiting = [WaitingReport(name, place, 0.0) for place, name in enumerate(self.waiting, start=1)]
        decision = DecisionReport(datetime.now(UTC).isoformat(), "load", "nothing", "it was asked for")
        return Residency(1, 1, 1, 1, resident, waiting, [decision])

    def metrics(self) -> bytes:
        return b"# TYPE small_pool_engines gauge\nsmall_pool_engines %d\n" % len(self.engines)

    async def load(self, name: str) -> None:
        engine = self.engines[self._real(name)]
        if engine.state.value != "ready":
            try:
                await asyncio.to_thread(engine.be_ready, Deadline.after(LIMIT_S))
            except EngineError as error:
                raise ServingError(str(error), 503, "load_failed", 10.0) from None
        if engine.pidfd not in self._watched:
            self._watched[engine.pidfd] = name
            asyncio.get_running_loop().add_reader(engine.pidfd, self._lose, engine.pidfd)

    async def unload(self, name: str) -> None:
        engine = self.engines[self._real(name)]
        if self._watched.pop(engine.pidfd, None):
            asyncio.get_running_loop().remove_reader(engine.pidfd)
        await asyncio.to_thread(engine.stop, 0.2)

    def pin(self, name: str, *, is_pinned: bool) -> None:
        (self.pinned.add if is_pinned else self.pinned.discard)(self._real(name))

    async def logs(self, name: str, *, follow: bool) -> AsyncIterator[str]:
        if name.startswith("mute"):
            raise ServingError(f"{name} has no log", 503, "no_log")
        for line in self.engines[self._real(name)].last_lines():
            yield line
        if follow:
            yield "and now?"
            await asyncio.Event().wait()

    # -- inside

    def _real(self, name: str) -> str:
        name = self.aliases.get(name, name)
        if name not in self.engines:
            raise ServingError(f"there is no model {name}", 404, "model_not_found")
        return name

    def _busy(self, name: str) -> int:
        return sum(grant.name == name for grant in self.grants)

    def _note(self, change: Callable[[], object]) -> None:
        with self.changed:
            change()
            self.changed.notify_all()

    def _release(self, grant: Grant) -> None:
        self._note(lambda: self.grants.remove(grant))  # type: ignore[arg-type] # one of ours

    def _lose(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        name = self._watched.pop(pidfd)
        for grant in self.grants:
            if grant.name == name:
                grant.is_lost = True


class Running:
    """A gateway at work in a thread of its own."""

    def __init__(self, pool: SmallPool, settings: GatewaySettings, listen: str, mounts: Mounts = ()) -> None:
        self.pool = pool
        self.app: Gateway
        self.server: Server
        self._settings = settings
        self._listen = listen
        self._mounts = mounts
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway")

    @property
    def url(self) -> str:
        return self.server.base_url

    @property
    def port(self) -> int:
        return self.server.listen.port

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run it in the gateway's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def call(self, act: Callable[[], Result]) -> Result:
        """Call it in the gateway's thread."""

        async def work() -> Result:
            return act()

        return self.do(work())

    async def _start(self) -> None:
        self.app = make_app(self.pool, self._settings, self._mounts)
        self.server = Server(self.app, self._listen)
        await self.server.start()

    def stop(self, grace_s: float = 0.2) -> None:
        self.do(self.server.stop(grace_s))

    def __enter__(self) -> Running:
        self._thread.start()
        try:
            self.do(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *given: object) -> None:
        try:
            self.stop()
            self.call(self.pool.close)
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@contextlib.contextmanager
def gateway(
    pool: SmallPool, settings: GatewaySettings | None = None, listen: str = "127.0.0.1:0", mounts: Mounts = ()
) -> Iterator[Running]:
    """A gateway in front of this pool, and its end with the pool's engines."""
    with Running(pool, settings or GatewaySettings(), listen, mounts) as running:
        yield running
