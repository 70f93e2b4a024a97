"""The daemon of `serve-models`: a pool of engines, the gateway in front of it, and the signals that steer both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec
import uvloop
from msgspec.structs import replace

from modelpipes import events
from modelpipes.config.reading import load, read_key
from modelpipes.config.settings import Budget, Config, Model
from modelpipes.engine.admission import uncounted
from modelpipes.engine.cachekey import files_read
from modelpipes.engine.confinement import check_machine, over_limit, remarks
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice, find_engine, find_model, found
from modelpipes.engine.logs import RotatedFile
from modelpipes.errors import Ended, FileError, PipesError, UsageError
from modelpipes.events import Event, Sink
from modelpipes.fit.flags import in_force
from modelpipes.fit.spec import EngineSpec, Given, spec_of
from modelpipes.gateway.record import Daemon, is_running, recorded, taken
from modelpipes.gguf.identity import stamp_of
from modelpipes.serving import budget
from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.serving.changes import difference
from modelpipes.serving.eventfile import EventFile
from modelpipes.serving.gateway import GatewaySettings, Mounts, make_app
from modelpipes.serving.kept import Kept
from modelpipes.serving.listening import GRACE_S, Server
from modelpipes.serving.looks import look_on
from modelpipes.serving.origins import ANY
from modelpipes.serving.pool import Pool
from modelpipes.serving.ring import Ring
from modelpipes.serving.servable import Servable
from modelpipes.serving.sources import Source
from modelpipes.terminal.controlling import has_terminal
from modelpipes.values.paths import logs_dir, make_private, slots_dir

HANG_UP_S = 0.5  # from SIGHUP until the terminal is gone, on a machine that does other things as well


def run(
    path: str | None,
    *,
    sources: Sequence[Source],
    sink: Sink,
    mounts: Mounts = (),
    listen: str | None = None,
    vram: int | None = None,
    is_private: bool = False,
    ends_with_terminal: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM (Ended). `path` is a configuration, None: all models where they usually lie.

    `ends_with_terminal`: until then or until SIGHUP tells that the terminal, which we were started from, is gone.

    The sources say which models a configuration leads to; of two with one name the first is served. Raises UsageError
    for a wrong configuration, PipesError where the address cannot be had.
    """
    os.umask(os.umask(0) | 0o077)  # what an engine saves of a conversation has the mode that its umask leaves
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a request in flight has two descriptors
    uvloop.run(_Daemon(path, sources, sink, mounts, listen, vram, is_private, ends_with_terminal).run())


class _Daemon:
    def __init__(
        self,
        path: str | None,
        sources: Sequence[Source],
        sink: Sink,
        mounts: Mounts,
        listen: str | None,
        vram: int | None,
        is_private: bool,
        ends_with_terminal: bool = False,
    ) -> None:
        self._path = os.path.abspath(path) if path else None
        self._listen = listen
        self._vram = vram
        self._is_private = is_private
        self._ends_with_terminal = ends_with_terminal
        self._sources = sources
        self._sink = sink
        self._ring = Ring()
        self._mounts = mounts
        self._config = self._read()
        self._logs = os.path.join(logs_dir(), self._config.server.listen.replace("/", "%"))
        self._place = budget.Place(0, False)
        self._ended_by: signal.Signals | None = None

    def _tell(self, event: Event) -> None:
        self._ring.put(event)
        self._sink(event)

    def _read(self) -> Config:
        """The configuration, with what the command line says instead."""
        config = load(self._path).config if self._path else Config()
        server, memory = config.server, config.memory
        server = replace(server, key=read_key(server), key_file="", listen=self._listen or server.listen)
        if self._vram is not None:
            memory = replace(memory, budget=Budget(self._vram))
        return replace(config, server=server, memory=memory)

    async def run(self) -> None:
        config, server = self._config, self._config.server
        loop = asyncio.get_running_loop()
        ended, again = asyncio.Event(), asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._end, signum, ended)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up, ended, again)
        self._look_at_terminal(ended)  # it may have gone while a SIGHUP was ignored
        limits, self._place, words = self._budget(config)
        pool = Pool(
            [],
            limits,
            min_resident_s=config.memory.min_resident_s,
            max_wait_s=config.memory.max_wait_s,
            kept=Kept(slots_dir()) if config.memory.keep_conversations else None,
            settles=self._place.n_devices > 0,
            sink=self._tell,
        )
        if ANY in server.origins and not server.key:
            raise UsageError('[server] origins = ["*"] lets every page in, and demands a key: set key_file as well')
        settings = GatewaySettings(
            key=server.key,
            origins=server.origins,
            max_waiting=server.max_waiting,
            max_lease_s=server.max_lease_s,
        )
        file = self._file_of_events(config)
        gateway = Server(make_app(pool, settings, self._mounts, self._ring), server.listen)
        try:
            pool.serve(self._servables(config))
            if not pool.models():
                raise FileError("there is no model to serve: name some in a CONFIG.toml (see config/serve.toml)")
            if is_running(str(gateway.listen)):
                raise taken(str(gateway.listen))
            await gateway.start()
            address = str(gateway.listen)  # with the port, where any free one was asked for
            with recorded(Daemon(os.getpid(), address, self._path or "", server.key, self._is_private)):
                self._tell(events.Listening(len(pool.models()), address, words))
                self._warn(pool)
                pool.load_pinned()
                tasks = [
                    asyncio.ensure_future(self._reload_when(again, pool)),
                    asyncio.ensure_future(self._look_out(pool)),
                    asyncio.ensure_future(look_on(self._ring, has_cards=self._place.n_devices > 0)),
                ]
                await ended.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await gateway.stop(GRACE_S)
            await pool.close()
            if file:
                await asyncio.to_thread(file.close)
        assert self._ended_by is not None
        raise Ended(self._ended_by)

    def _end(self, signum: signal.Signals, ended: asyncio.Event) -> None:
        self._ended_by = signum
        ended.set()

    def _hang_up(self, ended: asyncio.Event, again: asyncio.Event) -> None:
        """SIGHUP: the terminal is gone, or, while it is there or never was, read the configuration again."""
        if not self._look_at_terminal(ended):
            again.set()
            # Where its session's leader dies, the kernel sends this before it takes the terminal away.
            asyncio.get_running_loop().call_later(HANG_UP_S, self._look_at_terminal, ended)

    def _file_of_events(self, config: Config) -> EventFile | None:
        if not config.events.file:
            return None
        file = EventFile(config.events.file, config.events.size, config.events.older)
        self._ring.add_taker(file.take)
        return file

    def _look_at_terminal(self, ended: asyncio.Event) -> bool:
        """Whether we end, as the terminal that we were started from is gone."""
        if self._ends_with_terminal and not has_terminal():
            self._end(signal.SIGHUP, ended)
        return ended.is_set()

    def _warn(self, pool: Pool) -> None:
        """Say which of the models that were named can never be loaded."""
        for name, advice in pool.unfit():
            if name in self._config.models:
                self._tell(events.DoesNotFit(name, advice))

    def _budget(self, config: Config, held: Bytes = NOTHING) -> tuple[Bytes, budget.Place, str]:
        memory = config.memory
        try:
            has_gpu = find_engine().has_gpu
        except PipesError as error:
            self._tell(events.Trouble(str(error)))
            has_gpu = False
        return budget.find_budget(memory.budget, memory.host_budget, memory.reserve, has_gpu=has_gpu, held=held)

    async def _look_out(self, pool: Pool) -> None:
        """Where the budget is "auto", see what others take before the next load, and not after."""
        while True:
            await asyncio.sleep(budget.LOOK_S)
            memory, ours = self._config.memory, pool.ours()
            if memory.budget is not None and memory.host_budget is not None:
                continue
            automatic = memory.budget, memory.host_budget, memory.reserve
            limits = await asyncio.to_thread(budget.look_again, pool.budget, ours, self._place, *automatic)
            # Else it was looked at what is no more: an engine that began meanwhile passes for somebody else's.
            if memory is self._config.memory and ours.pids == pool.ours().pids:
                pool.set_budget(limits)

    async def _reload_when(self, again: asyncio.Event, pool: Pool) -> None:
        while await again.wait():
            again.clear()
            try:
                await self._reload(pool)
            except (PipesError, OSError) as error:
                self._tell(events.NotReloaded(str(error)))

    async def _reload(self, pool: Pool) -> None:
        """Take over what changed in the configuration; a wrong one changes nothing."""
        config = await asyncio.to_thread(self._read)
        change = difference(self._config, config)
        # What takes a new start stays as it is, and is told again.
        memory = replace(config.memory, keep_conversations=self._config.memory.keep_conversations)
        was = self._config
        config = replace(
            config, server=was.server, memory=memory, find_gguf=was.find_gguf, voice=was.voice, events=was.events
        )
        held = pool.ours().held(self._place) or pool.used
        limits, place, words = self._budget(config, held) if change.budget else (pool.budget, self._place, "")
        before, self._place = self._place, place
        try:
            # Headers are read from a disk, meanwhile requests are served.
            servables = await asyncio.to_thread(lambda: list(self._servables(config)))
        except BaseException:
            self._place = before
            raise
        self._config = config
        pool.min_resident_s, pool.max_wait_s = config.memory.min_resident_s, config.memory.max_wait_s
        pool.budget = limits
        pool.serve(servables)
        pool.load_pinned()
        changed = (*change.changed, *change.touched)
        self._tell(events.Reloaded(len(pool.models()), change.added, change.removed, changed, words))
        if change.restart:
            self._tell(events.NeedsRestart(change.restart))
        self._warn(pool)

    # -- models

    def _servables(self, config: Config) -> Iterator[Servable]:
        """What the sources name; what cannot be read is said and left out."""
        names: set[str] = set()
        for source in self._sources:
            for name, model in source(config):
                if name in names:
                    continue
                names |= {name, *model.aliases}
                if found := self._servable(name, model):
                    yield found

    def _servable(self, name: str, model: Model) -> Servable | None:
        try:
            servable = self._look_at(name, model)
        except PipesError as error:
            self._tell(events.LeftOut(name, str(error)))
            return None
        spec = found(spec_of(servable.file, **given_of(model)))
        for what in (*remarks(spec), *uncounted(spec)):
            self._tell(events.NotCounted(name, what))
        return servable

    def _look_at(self, name: str, model: Model) -> Servable:
        """A model by its files as they are now, also while others are served; PipesError where they are none."""
        place = self._place
        path = find_model(model.file)
        if model.engine != "auto":
            place = place.for_engine(has_gpu=find_engine(model.engine).has_gpu)
        spec = found(spec_of(path, **given_of(model)))
        check_machine(spec)
        files = files_read(spec)
        stamp = stamp_of(*files)  # before they are read
        demand = budget.Demand(spec, place)
        needs = demand()
        if why := over_limit(spec, needs.host):
            raise FileError(why)
        return Servable(
            name=name,
            file=path,
            start=Start(name, spec, model.engine, self._logs),
            needs=needs,
            file_bytes=budget.file_bytes(path),
            created=int(os.path.getmtime(path)) if os.path.exists(path) else int(time.time()),
            context_length=demand.context_size,
            sequences=in_force(spec).n_parallel,
            aliases=model.aliases,
            is_pinned=model.pin,
            idle_unload_s=model.idle_unload_s,
            measure=Measure(needs, place),
            advise=demand.advise,
            other_files=files[1:],
            stamp=stamp,
            renew=partial(self._look_at, name, model),
            estimate=demand.estimate,
            load_timeout_s=spec.load_timeout_s,
            drain_timeout_s=spec.drain_timeout_s,
        )


def given_of(model: Model) -> Given:
    """What a model's table says of its engine."""
    return {
        "ctx_size": model.ctx_size,
        "parallel": model.parallel,
        "kv_type": model.kv_type,
        "gpu_layers": model.gpu_layers,
        "cpu_moe": model.cpu_moe,
        "threads": model.threads,
        "batch_size": model.batch_size,
        "cpu_affinity": model.cpu_affinity,
        "memory_limit": model.memory_limit,
        "memory": model.memory,
        "draft": model.draft,
        "load_timeout_s": model.load_timeout_s,
        "stop_timeout_s": model.stop_timeout_s,
        "drain_timeout_s": model.drain_timeout_s,
        "engine_args": model.engine_args,
    }


class Start(msgspec.Struct, frozen=True):
    """How the engine of a model is made; two that are equal make the same."""

    name: str
    spec: EngineSpec
    engine: EngineChoice
    logs: str

    def __call__(self, slot_folder: str | None) -> Engine:
        """An engine that does not run yet."""
        with contextlib.suppress(OSError):  # the engine has no file for its log then, and runs all the same
            make_private(self.logs)
        return Engine(
            self.spec,
            engine=self.engine,
            name=self.name,
            alias=self.name,
            log=RotatedFile(os.path.join(self.logs, f"{self.name.replace('/', '%')}.log")),
            with_key=True,
            slot_folder=slot_folder,
        )


class Measure(msgspec.Struct, frozen=True):
    """What a running engine of a model has taken."""

    predicted: Bytes
    place: budget.Place

    def __call__(self, pid: int) -> Bytes:
        return budget.measure(pid, self.predicted, self.place)
