"""The gateway's own pages: what tells and steers the pool, and leases of its engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modelpipes.errors import ServingError
from modelpipes.gateway.wire import LeaseLine, LeaseNews, ModelEntry, ModelList, ModelState
from modelpipes.serving.asked import Asked
from modelpipes.serving.exchange import Endpoint, Exchange, Headers
from modelpipes.serving.figures import GatewayFigures
from modelpipes.serving.grant import EnginePool, Grant, ModelReport
from modelpipes.serving.openapi import Health, document
from modelpipes.serving.ring import Ring
from modelpipes.serving.viewing import Viewing

LEASE_LOOK_S = 1.0  # between two looks at whether a lease's engine lives
LOG_START_S = 0.1  # time for the pool to refuse a log before it counts as begun
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]


class Json(Response):
    """A value of ours as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


class Pages:
    """They answer `routes`. Leases wait among the gateway's requests and end with it: `acquire`, `closing` are its."""

    def __init__(
        self,
        pool: EnginePool,
        figures: GatewayFigures,
        acquire: Callable[[str], Awaitable[Grant]],
        closing: asyncio.Event,
        max_lease_s: float | None,
        ring: Ring,
    ) -> None:
        self._pool = pool
        self._figures = figures
        self._acquire = acquire
        self._tell = ring.put
        self._closing = closing
        self._max_lease_s = max_lease_s
        self._document = Json(document())
        self._viewing = Viewing(pool, ring, self._list, closing)

    def routes(self) -> list[Route]:
        """The way to each; what they refuse is a ServingError."""
        pages: list[tuple[str, str, Callable[[Request], Awaitable[Response]] | Endpoint]] = [
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
            ("POST", "/models/{name:path}/lease", Endpoint(self._lease)),
            ("GET", "/models/{name:path}/logs", Endpoint(self._logs)),
        ]
        return [self._viewing.route(), *(Route(path, act, methods=[method]) for method, path, act in pages)]

    def close(self) -> None:
        """End the streams of events."""
        self._viewing.close()

    async def _health(self, request: Request) -> Response:
        return Json(Health())

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._pool.metrics() + self._figures.text())

    async def _openapi(self, request: Request) -> Response:
        return self._document

    async def _residency(self, request: Request) -> Response:
        return Json(self._pool.residency())

    async def _models(self, request: Request) -> Response:
        return Json(self._list())

    def _list(self) -> ModelList:
        return ModelList([_shown(report) for report in self._pool.models()])

    async def _model(self, request: Request) -> Response:
        return Json(_shown(self._find(request)))

    def _find(self, request: Request) -> ModelReport:
        """The model that the path names."""
        name = request.path_params["name"]
        for report in self._pool.models():
            if name == report.id or name in report.aliases:
                return report
        raise ServingError(f"there is no model {name}: /v1/models lists them", 404, "model_not_found")

    def _state(self, request: Request) -> Response:
        name = self._find(request).id
        for resident in self._pool.residency().resident:
            if resident.name == name:
                return Json(ModelState(name, resident.state, resident.pinned))
        return Json(ModelState(name, "unloaded", False))

    async def _load(self, request: Request) -> Response:
        await self._pool.load(self._find(request).id)
        return self._state(request)

    async def _unload(self, request: Request) -> Response:
        await self._pool.unload(self._find(request).id)
        return self._state(request)

    async def _pin(self, request: Request) -> Response:
        self._pool.pin(self._find(request).id, is_pinned=True)
        return self._state(request)

    async def _unpin(self, request: Request) -> Response:
        self._pool.pin(self._find(request).id, is_pinned=False)
        return self._state(request)

    async def _logs(self, exchange: Exchange) -> None:
        """The engine's lines; with follow=1 until the client leaves or we do."""
        request = Request(exchange.scope)
        follow = request.query_params.get("follow", "0")
        if follow not in ("0", "1"):
            raise ServingError("follow is 0 or 1", 400, "bad_query")
        lines = self._pool.logs(self._find(request).id, follow=follow == "1")
        closing = asyncio.ensure_future(self._closing.wait())
        coming: asyncio.Future[str] = asyncio.ensure_future(_next_line(lines))
        try:
            # What the pool refuses, it refuses at once; a silent log is begun without a line.
            await asyncio.wait([coming], timeout=LOG_START_S)
            if coming.done() and isinstance(error := coming.exception(), ServingError):
                raise error
            await exchange.start(200, TEXT)
            await exchange.write(b"")
            while not closing.done():
                both: list[asyncio.Future[Any]] = [coming, closing]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    try:
                        line = coming.result()
                    except StopAsyncIteration:
                        break
                    await exchange.write(line.rstrip("\n").encode("utf-8", "replace") + b"\n")
                    coming = asyncio.ensure_future(_next_line(lines))
            await exchange.finish()
        finally:
            closing.cancel()
            coming.cancel()

    async def _lease(self, exchange: Exchange) -> None:
        """Hold a grant as long as the client keeps its answer open, and tell it what happens meanwhile."""
        grant = await self._acquire(self._find(Request(exchange.scope)).id)
        asked = Asked(self._tell, grant)
        try:
            at = grant.address
            await exchange.start(200, [(b"content-type", b"application/jsonl"), (b"cache-control", b"no-store")])
            await exchange.write(_line(LeaseLine(at.host, at.port, at.path, at.key, grant.name, grant.identity)))
            await self._hold(exchange, grant)
            await exchange.finish()
        finally:
            grant.release()
            asked.how = "lost" if grant.is_lost else "end"
            asked.end()

    async def _hold(self, exchange: Exchange, grant: Grant) -> None:
        most_s = self._max_lease_s
        ends_at = float("inf") if most_s is None else exchange.loop.time() + most_s
        news = {asyncio.ensure_future(grant.drain.wait()), asyncio.ensure_future(self._closing.wait())}
        is_told = False
        try:
            while not grant.is_lost:
                left_s = ends_at - exchange.loop.time()
                if left_s <= 0:
                    await exchange.write(_line(LeaseNews(expired=True)))
                    return
                look_s = min(left_s, LEASE_LOOK_S)
                if is_told:
                    await asyncio.sleep(look_s)
                elif (await asyncio.wait(news, timeout=look_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                    is_told = True
                    await exchange.write(_line(LeaseNews(drain=True)))
            await exchange.write(_line(LeaseNews(lost=True)))
        finally:
            for future in news:
                future.cancel()


async def _next_line(lines: AsyncIterator[str]) -> str:
    return await anext(lines)


def _line(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _shown(report: ModelReport) -> ModelEntry:
    return ModelEntry(
        report.id,
        report.created,
        report.file,
        report.aliases,
        report.context_length,
        report.state,
        bytes=report.bytes,
        host_bytes=report.host_bytes,
        estimate=report.estimate,
    )
