"""The daemon of `serve-models`: a pool of engines, the gateway in front of it, and the signals that steer both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator

import msgspec
import uvloop
from msgspec.structs import replace

from modelpipes.config.reading import load, read_key
from modelpipes.config.settings import Budget, Config, Model
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import find_engine, find_model
from modelpipes.engine.logs import RotatedFile
from modelpipes.errors import Ended, FileError, PipesError
from modelpipes.fit.rating import largest
from modelpipes.gateway.record import Daemon, is_running, recorded, taken
from modelpipes.gguf.catalog import Catalog
from modelpipes.serving import budget
from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.serving.changes import difference
from modelpipes.serving.gateway import Settings, make_app
from modelpipes.serving.kept import Kept
from modelpipes.serving.listening import GRACE_S, Server
from modelpipes.serving.pool import Pool, Servable
from modelpipes.values.paths import cache_dir

LEAST_CONTEXT = 512  # tokens; with fewer, nobody talks
MOST_LAYERS = 200
Say = Callable[[str], None]


def run(
    path: str | None, *, listen: str | None = None, vram: int | None = None, is_private: bool = False, say: Say
) -> None:
    """Serve until SIGINT or SIGTERM (Ended). `path` is a configuration, None: all models where they usually lie.

    Raises UsageError for a wrong configuration, PipesError where the address cannot be had.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a request in flight has two descriptors
    uvloop.run(_Daemon(path, listen, vram, is_private, say).run())


class _Daemon:
    def __init__(self, path: str | None, listen: str | None, vram: int | None, is_private: bool, say: Say) -> None:
        self._path = os.path.abspath(path) if path else None
        self._listen = listen
        self._vram = vram
        self._is_private = is_private
        self._say = say
        self._config = self._read()
        self._logs = os.path.join(cache_dir(), "serve", self._config.server.listen.replace("/", "%"))
        self._place = budget.Place(0, False)
        self._ended_by: signal.Signals | None = None

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
        loop.add_signal_handler(signal.SIGHUP, again.set)
        limits, self._place, words = self._budget(config)
        pool = Pool(
            [],
            limits,
            min_resident_s=config.memory.min_resident_s,
            max_wait_s=config.memory.max_wait_s,
            kept=Kept(os.path.join(cache_dir(), "slots")) if config.memory.keep_conversations else None,
            settles=self._place.n_devices > 0,
            say=self._say,
        )
        settings = Settings(key=server.key, max_waiting=server.max_waiting, max_lease_s=server.max_lease_s)
        gateway = Server(make_app(pool, settings), server.listen)
        try:
            pool.serve(self._servables(config))
            if not pool.models():
                raise FileError("there is no model to serve: name some in a CONFIG.toml (see config/serve.toml)")
            if is_running(str(gateway.listen)):
                raise taken(str(gateway.listen))
            await gateway.start()
            address = str(gateway.listen)  # with the port, where any free one was asked for
            with recorded(Daemon(os.getpid(), address, self._path or "", server.key, self._is_private)):
                self._say(f"{_count(pool)} on {address}, with {words}")
                self._warn(pool)
                pool.load_pinned()
                reloads = asyncio.ensure_future(self._reload_when(again, pool))
                await ended.wait()
                reloads.cancel()
        finally:
            await gateway.stop(GRACE_S)
            await pool.close()
        assert self._ended_by is not None
        raise Ended(self._ended_by)

    def _end(self, signum: signal.Signals, ended: asyncio.Event) -> None:
        self._ended_by = signum
        ended.set()

    def _warn(self, pool: Pool) -> None:
        """Say which of the models that were named can never be loaded."""
        for name, advice in pool.unfit():
            if name in self._config.models:
                self._say(f"{name} does not fit: {advice}")

    def _budget(self, config: Config, held: Bytes = NOTHING) -> tuple[Bytes, budget.Place, str]:
        memory = config.memory
        try:
            has_gpu = find_engine().has_gpu
        except PipesError as error:
            self._say(str(error))
            has_gpu = False
        return budget.find_budget(memory.budget, memory.host_budget, memory.reserve, has_gpu=has_gpu, held=held)

    async def _reload_when(self, again: asyncio.Event, pool: Pool) -> None:
        while await again.wait():
            again.clear()
            try:
                await self._reload(pool)
            except (PipesError, OSError) as error:
                self._say(f"nothing was changed: {error}")

    async def _reload(self, pool: Pool) -> None:
        """Take over what changed in the configuration; a wrong one changes nothing."""
        config = await asyncio.to_thread(self._read)
        change = difference(self._config, config)
        # What takes a new start stays as it is, and is told again.
        memory = replace(config.memory, keep_conversations=self._config.memory.keep_conversations)
        was = self._config
        config = replace(config, server=was.server, memory=memory, find_gguf=was.find_gguf, voice=was.voice)
        limits, place, words = self._budget(config, pool.used) if change.budget else (pool.budget, self._place, "")
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
        told = {"added": change.added, "removed": change.removed, "changed": (*change.changed, *change.touched)}
        news = [f"{what} {', '.join(names)}" for what, names in told.items() if names]
        self._say(f"read again: {_count(pool)}" + "".join(f"; {each}" for each in (*news, words) if each))
        if change.restart:
            self._say(f"{', '.join(change.restart)}: to change that takes a new start")
        self._warn(pool)

    # -- models

    def _servables(self, config: Config) -> Iterator[Servable]:
        """What the configuration names, and what lies in its folders; what cannot be read is said and left out."""
        names = set(config.models) | {alias for model in config.models.values() for alias in model.aliases}
        for name, model in config.models.items():
            if found := self._servable(name, model):
                yield found
        scan = config.scan
        if config.models and not scan.directories:
            return
        for file in Catalog.scan(scan.directories).files:
            if file.name in names or not budget.is_model(file.path):
                continue
            names.add(file.name)
            model = Model(file.path, ctx_size=scan.ctx_size, parallel=scan.parallel)
            if found := self._servable(file.name, model):
                yield found

    def _servable(self, name: str, model: Model) -> Servable | None:
        place = self._place
        try:
            path = find_model(model.file)
            if model.engine != "auto":
                place = place.for_engine(has_gpu=find_engine(model.engine).has_gpu)
            predict = Predict(path, place, model)
            needs = predict()
        except PipesError as error:
            self._say(f"{name} is left out: {error}")
            return None
        return Servable(
            name=name,
            file=path,
            # What leaves a running engine as it is makes no other one.
            start=Start(
                name,
                path,
                replace(model, pin=False, idle_unload_s=None, aliases=()),
                self._logs,
            ),
            needs=needs,
            file_bytes=budget.file_bytes(path),
            created=int(os.path.getmtime(path)) if os.path.exists(path) else int(time.time()),
            context_length=model.ctx_size,
            sequences=model.parallel,
            aliases=model.aliases,
            is_pinned=model.pin,
            idle_unload_s=model.idle_unload_s,
            measure=Measure(needs, place),
            advise=predict.advise,
        )


def _count(pool: Pool) -> str:
    number = len(pool.models())
    return f"{number} model{'s' if number != 1 else ''}"


class Start(msgspec.Struct, frozen=True):
    """How the engine of a model is made; two that are equal make the same."""

    name: str
    path: str
    model: Model
    logs: str

    def __call__(self, slot_folder: str | None) -> Engine:
        """An engine that does not run yet."""
        model = self.model
        with contextlib.suppress(OSError):  # the engine has no file for its log then, and runs all the same
            os.makedirs(self.logs, mode=0o700, exist_ok=True)
        return Engine(
            self.path,
            ctx_size=model.ctx_size,
            kv_type=model.kv_type,
            gpu_layers=model.gpu_layers,
            parallel=model.parallel,
            engine=model.engine,
            engine_args=(*(["--cpu-moe"] if model.cpu_moe else []), *model.engine_args),
            name=self.name,
            log=RotatedFile(os.path.join(self.logs, f"{self.name.replace('/', '%')}.log")),
            with_key=True,
            slot_folder=slot_folder,
        )


class Predict(msgspec.Struct, frozen=True):
    """What the engine of a model will take."""

    path: str
    place: budget.Place
    model: Model

    def __call__(self, ctx_size: int | None = None, gpu_layers: int | None = None) -> Bytes:
        """With these settings, or the model's own. PipesError where that cannot be told."""
        model = self.model
        return budget.predict(
            self.path,
            self.place,
            ctx_size=model.ctx_size if ctx_size is None else ctx_size,
            parallel=model.parallel,
            kv_type=model.kv_type,
            gpu_layers=model.gpu_layers if gpu_layers is None else gpu_layers,
            cpu_moe=model.cpu_moe,
        )

    def advise(self, limits: Bytes) -> str:
        """The plan that would fit: a smaller context, fewer layers on the card, or another model."""

        def spare(needs: Bytes) -> int:
            card = limits.card - needs.card if self.place.is_charged else limits.host
            return min(card, limits.host - needs.host)

        tokens = largest(LEAST_CONTEXT, self.model.ctx_size, lambda n: spare(self(ctx_size=n)))
        if tokens >= LEAST_CONTEXT:
            return f"ctx_size = {tokens} would fit"
        if self.place.n_devices:
            layers = largest(0, MOST_LAYERS, lambda n: spare(self(gpu_layers=n)))
            if layers >= 0:
                return f"gpu_layers = {layers} would fit"
        return "a smaller model, or a smaller quantisation, would fit (find-gguf --fits)"


class Measure(msgspec.Struct, frozen=True):
    """What a running engine of a model has taken."""

    predicted: Bytes
    place: budget.Place

    def __call__(self, pid: int) -> Bytes:
        return budget.measure(pid, self.predicted, self.place)
