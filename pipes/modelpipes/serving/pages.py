"""The gateway's own pages: what tells and steers the pool, and leases of its engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import msgspec
from starlette.routing import Mount, Route, Router

from modelpipes.errors import ServingError
from modelpipes.gateway.wire import LeaseLine, LeaseNews, Model, ModelList, ModelState
from modelpipes.serving.figures import GatewayFigures
from modelpipes.serving.grant import Grant, ModelReport, Pool
from modelpipes.serving.job import JSON, App, Headers, Job, Receive, Scope, Send
from modelpipes.serving.openapi import Health, document

LEASE_LOOK_S = 1.0  # between two looks at whether a lease's engine lives
LOG_START_S = 0.1  # time for the pool to refuse a log before it counts as begun
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
JOB = "modelpipes.job"

Mounts: TypeAlias = Sequence[tuple[str, App]]  # of others: who answers PREFIX/…, where no page of ours does


class _Endpoint:
    """A route's end, as Starlette takes it: an ASGI application."""

    def __init__(self, act: Callable[[Job], Awaitable[None]]) -> None:
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._act(scope[JOB])


class Pages:
    """Routes to them. Leases wait among the gateway's requests and end with it: `acquire` and `closing` are its own."""

    def __init__(
        self,
        pool: Pool,
        figures: GatewayFigures,
        acquire: Callable[[str], Awaitable[Grant]],
        closing: asyncio.Event,
        max_lease_s: float | None,
        mounts: Mounts = (),
    ) -> None:
        self._pool = pool
        self._figures = figures
        self._acquire = acquire
        self._closing = closing
        self._max_lease_s = max_lease_s
        self._document = msgspec.json.encode(document())
        self._router = self._make_router(mounts)

    async def answer(self, job: Job) -> None:
        """HTTPException where there is no such page, ServingError."""
        job.scope[JOB] = job
        await self._router(job.scope, job.receive, job.send)

    def _make_router(self, mounts: Mounts) -> Router:
        pages: list[tuple[str, str, Callable[[Job], Awaitable[None]]]] = [
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/openapi.json", self._openapi),
            ("GET", "/residency", self._residency),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{name:path}", self._model),
            ("POST", "/models/{name:path}/load", self._load),
            ("POST", "/models/{name:path}/unload", self._unload),
            ("POST", "/models/{name:path}/pin", self._pin),
            ("POST", "/models/{name:path}/unpin", self._unpin),
            ("POST", "/models/{name:path}/lease", self._lease),
            ("GET", "/models/{name:path}/logs", self._logs),
        ]
        routes = [Route(path, _Endpoint(act), methods=[method]) for method, path, act in pages]
        return Router([*routes, *(Mount(prefix, app) for prefix, app in mounts)], redirect_slashes=False)

    async def _health(self, job: Job) -> None:
        await job.answer_json(Health())

    async def _metrics(self, job: Job) -> None:
        await job.answer(200, TEXT, self._pool.metrics() + self._figures.text())

    async def _openapi(self, job: Job) -> None:
        await job.answer(200, JSON, self._document)

    async def _residency(self, job: Job) -> None:
        await job.answer_json(self._pool.residency())

    async def _models(self, job: Job) -> None:
        await job.answer_json(ModelList([_shown(report) for report in self._pool.models()]))

    async def _model(self, job: Job) -> None:
        await job.answer_json(_shown(self._find(job.name)))

    def _find(self, name: str) -> ModelReport:
        for report in self._pool.models():
            if name == report.id or name in report.aliases:
                return report
        raise ServingError(f"there is no model {name}: /v1/models lists them", 404, "model_not_found")

    async def _answer_state(self, job: Job) -> None:
        name = self._find(job.name).id
        for resident in self._pool.residency().resident:
            if resident.name == name:
                await job.answer_json(ModelState(name, resident.state, resident.pinned))
                return
        await job.answer_json(ModelState(name, "unloaded", False))

    async def _load(self, job: Job) -> None:
        await self._pool.load(self._find(job.name).id)
        await self._answer_state(job)

    async def _unload(self, job: Job) -> None:
        await self._pool.unload(self._find(job.name).id)
        await self._answer_state(job)

    async def _pin(self, job: Job) -> None:
        self._pool.pin(self._find(job.name).id, is_pinned=True)
        await self._answer_state(job)

    async def _unpin(self, job: Job) -> None:
        self._pool.pin(self._find(job.name).id, is_pinned=False)
        await self._answer_state(job)

    async def _logs(self, job: Job) -> None:
        """The engine's lines; with follow=1 until the client leaves or we do."""
        query = parse_qs(job.scope["query_string"].decode("latin-1"))
        follow = query.get("follow", ["0"])[-1]
        if follow not in ("0", "1"):
            raise ServingError("follow is 0 or 1", 400, "bad_query")
        lines = self._pool.logs(self._find(job.name).id, follow=follow == "1")
        closing = asyncio.ensure_future(self._closing.wait())
        coming: asyncio.Future[str] = asyncio.ensure_future(_next_line(lines))
        try:
            # What the pool refuses, it refuses at once; a silent log is begun without a line.
            await asyncio.wait([coming], timeout=LOG_START_S)
            if coming.done() and isinstance(error := coming.exception(), ServingError):
                raise error
            await job.start(200, TEXT)
            await job.write(b"")
            while not closing.done():
                both: list[asyncio.Future[Any]] = [coming, closing]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    try:
                        line = coming.result()
                    except StopAsyncIteration:
                        break
                    await job.write(line.rstrip("\n").encode("utf-8", "replace") + b"\n")
                    coming = asyncio.ensure_future(_next_line(lines))
            await job.finish()
        finally:
            closing.cancel()
            coming.cancel()

    async def _lease(self, job: Job) -> None:
        """Hold a grant as long as the client keeps its answer open, and tell it what happens meanwhile."""
        grant = await self._acquire(self._find(job.name).id)
        try:
            at = grant.address
            await job.start(200, [(b"content-type", b"application/jsonl"), (b"cache-control", b"no-store")])
            await job.write(_line(LeaseLine(at.host, at.port, at.path, at.key, grant.name)))
            await self._hold(job, grant)
            await job.finish()
        finally:
            grant.release()

    async def _hold(self, job: Job, grant: Grant) -> None:
        most_s = self._max_lease_s
        ends_at = float("inf") if most_s is None else job.loop.time() + most_s
        news = {asyncio.ensure_future(grant.drain.wait()), asyncio.ensure_future(self._closing.wait())}
        is_told = False
        try:
            while not grant.is_lost:
                left_s = ends_at - job.loop.time()
                if left_s <= 0:
                    await job.write(_line(LeaseNews(expired=True)))
                    return
                look_s = min(left_s, LEASE_LOOK_S)
                if is_told:
                    await asyncio.sleep(look_s)
                elif (await asyncio.wait(news, timeout=look_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                    is_told = True
                    await job.write(_line(LeaseNews(drain=True)))
            await job.write(_line(LeaseNews(lost=True)))
        finally:
            for future in news:
                future.cancel()


async def _next_line(lines: AsyncIterator[str]) -> str:
    return await anext(lines)


def _line(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _shown(report: ModelReport) -> Model:
    return Model(report.id, report.created, report.file, report.aliases, report.context_length, report.state)
