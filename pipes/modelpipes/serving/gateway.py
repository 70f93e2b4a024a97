"""The gateway: OpenAI's API over HTTP in front of a pool of engines."""

from __future__ import annotations

import asyncio
import hmac
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route, Router

from modelpipes.errors import EngineLost, ServingError
from modelpipes.gateway.wire import ErrorAnswer, Fault
from modelpipes.serving import upstream
from modelpipes.serving.asked import TAIL_BYTES, Asked
from modelpipes.serving.exchange import (
    CONNECTION,
    EXCHANGE,
    JSON,
    App,
    Endpoint,
    Exchange,
    Headers,
    Receive,
    Scope,
    Send,
)
from modelpipes.serving.figures import GatewayFigures
from modelpipes.serving.grant import EnginePool, Grant
from modelpipes.serving.openapi import PASSED_ON, AskedModel
from modelpipes.serving.origins import SHARED, Origins, host_of, is_loopback
from modelpipes.serving.pages import Pages
from modelpipes.serving.ring import Ring

LOST_LIMIT_S = 0.5  # a socket closes some milliseconds before its process counts as dead
LOST_INTERVAL_S = 0.005
WHOLE_BYTES = 1024 * 1024  # of an answer that is no stream: kept back until it is whole, so it can be asked again
EVENT_BYTES = 64 * 1024  # the longest part of an event that is kept back; llama-server writes whole ones
RETRY_AFTER_S = 5.0  # a turn of a conversation; whoever waits less finds the queue as it was
REFUSALS = {
    404: ("there is no such page", "not_found"),
    405: ("this page is not asked like this", "method_not_allowed"),
}
EARLY_ENDS = {
    "slow": ("the request's body came too slowly", 408, "timeout"),
    "late": ("the answer took too long", 504, "timeout"),
    "closing": ("the gateway is shutting down", 503, "shutting_down"),
}

Renames: TypeAlias = tuple[bytes, bytes] | None  # what of an answer is to be replaced, and by what
Mounts: TypeAlias = Sequence[tuple[str, App]]  # of others: who answers PREFIX/…, where no page of ours does


@dataclass(frozen=True)
class GatewaySettings:
    """Who may ask, and how much."""

    key: str = ""
    origins: tuple[str, ...] = ()  # of pages that may use /v1/ and /api/, beside this machine's own
    max_waiting: int = 512
    max_body_bytes: int = 32 * 1024 * 1024
    max_bodies_bytes: int = 256 * 1024 * 1024  # of all requests together
    max_connections: int = 1000
    head_s: float = 10.0
    body_s: float = 60.0
    stall_s: float = 60.0  # a client that reads nothing for so long has gone
    max_request_s: float = 3600.0
    max_lease_s: float | None = None


class Gateway:
    """The ASGI application; run it with `Server`, which holds the deadlines and notices clients that leave."""

    def __init__(
        self, pool: EnginePool, settings: GatewaySettings, mounts: Mounts = (), ring: Ring | None = None
    ) -> None:
        self.pool = pool
        self.settings = settings
        self._key = settings.key.encode()
        self._origins = Origins(settings.origins)
        self._figures = GatewayFigures()
        self._waiting = 0
        self._figures.waiting.set_function(lambda: self._waiting)
        self._body_bytes = 0
        self._closing = asyncio.Event()
        self._asked = msgspec.json.Decoder(AskedModel)
        ring = ring or Ring()
        self._tell = ring.put
        self._pages = Pages(pool, self._figures, self._acquire, self._closing, settings.max_lease_s, ring)
        # The path is the route's own: what a request's path may have beside it (Python's `$` lets a newline pass) must
        # not get into a request of ours.
        passed_on = [
            Route(path, Endpoint(partial(self._pass_on, path=path)), methods=["POST"]) for path in sorted(PASSED_ON)
        ]
        mounted = [Mount(prefix, other) for prefix, other in mounts]
        self._router = Router([*passed_on, *self._pages.routes(), *mounted], redirect_slashes=False)

    def close(self) -> None:
        """Tell the holders of leases to come to an end, end the streams of events, and refuse new work."""
        self._closing.set()
        self._pages.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        connection = scope.get(CONNECTION)
        path = scope["path"]
        self._figures.running.inc()
        try:
            if connection is not None:
                connection.take(exchange)
            await self._work(exchange, path)
        except asyncio.CancelledError:
            if not exchange.ended_by:
                raise
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            await self._end_early(exchange)
        except Exception:  # noqa: BLE001 - the outermost edge: one request's fault must not be another's
            sys.stderr.write("gateway: a fault of ours, please report it:\n" + traceback.format_exc())
            await self._refuse(
                exchange, ServingError("a fault of the gateway: its log says more", 500, "internal_error")
            )
        finally:
            exchange.is_over = True
            self._figures.running.dec()
            if exchange.status:
                self._figures.count(path if path in PASSED_ON else "other", exchange.status)

    async def _work(self, exchange: Exchange, path: str) -> None:
        try:
            if exchange.scope["method"] == "OPTIONS" and await self._is_preflight(exchange, path):
                return
            self._check(exchange, path)
            exchange.scope["app"] = self  # then Starlette raises its refusals
            exchange.scope[EXCHANGE] = exchange
            await self._router(exchange.scope, exchange.receive, exchange.send)
        except HTTPException as error:
            text, code = REFUSALS.get(error.status_code, (error.detail, "refused"))
            headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
            await self._refuse(exchange, ServingError(text, error.status_code, code), headers)
        except ServingError as error:
            await self._refuse(exchange, error)

    # -- who may ask

    def _check(self, exchange: Exchange, path: str) -> None:
        """Raise ServingError for who must not; tell the browser of a page from elsewhere that may."""
        scope = exchange.scope
        hosts: list[bytes] = []
        key = origin = site = b""
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"authorization":
                scheme, _, given = value.partition(b" ")
                key = given.strip() if scheme.lower() == b"bearer" else key
            elif name == b"x-api-key":
                key = key or value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            raise ServingError("a request has one Host header", 400, "bad_host")
        host = hosts[0] if hosts else b""
        is_let_in = not origin or self._origins.lets_in(origin, host, path)
        if origin and is_let_in:
            exchange.told = self._origins.headers(origin)
        if self._key:
            if path != "/health" and not hmac.compare_digest(key, self._key):
                raise ServingError("the key is missing or wrong", 401, "invalid_api_key")
            if not is_let_in and not path.startswith(SHARED):  # there the browser keeps the answer from the page
                raise ServingError("no other site's page may use this page", 403, "bad_origin")
            return
        # Without a key the browser on this machine is the way in: a page whose own name points here (its
        # Host tells), or one that simply posts across sites (its Origin tells).
        is_unix = scope["server"] is None or scope["server"][1] is None
        if hosts and not is_unix and not is_loopback(host_of(host)):
            raise ServingError("this gateway is spoken to by the name of this machine only", 403, "bad_host")
        if not is_let_in or (site == b"cross-site" and not origin):
            raise ServingError("no other site's page may speak to this gateway", 403, "bad_origin")

    async def _is_preflight(self, exchange: Exchange, path: str) -> bool:
        """Whether a browser asks if it may; answered before the key, which no preflight can carry."""
        asked = dict(exchange.scope["headers"])
        origin = asked.get(b"origin")
        if origin is None or b"access-control-request-method" not in asked:
            return False
        if not self._origins.lets_in(origin, asked.get(b"host", b""), path):
            raise ServingError("no other site's page may use this page", 403, "bad_origin")
        await exchange.start(204, self._origins.preflight(origin, asked))
        await exchange.finish()
        return True

    # -- the hot path

    async def _pass_on(self, exchange: Exchange, path: str) -> None:
        try:
            body = await self._read_body(exchange)
            name = self._model_of(body)
            exchange.asked_at = exchange.loop.time()
            try:
                await self._ask_once(exchange, path, name, body)
            except EngineLost:
                # Once more: a second engine that dies of the same request says that the request is the cause.
                self._figures.again.inc()
                try:
                    await self._ask_once(exchange, path, name, body)
                except EngineLost as error:
                    raise ServingError(f"{name}: {error}", 502, "engine_lost") from None
        finally:
            self._body_bytes -= exchange.body_bytes

    async def _read_body(self, exchange: Exchange) -> bytes:
        """The whole of it, within the limits."""
        most = self.settings.max_body_bytes
        if exchange.declared_bytes() > most:
            raise self._too_large()
        exchange.reading_since = exchange.loop.time()
        pieces = []
        while True:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError  # the connection has told the exchange, or is about to
            piece = message["body"]
            exchange.body_bytes += len(piece)
            self._body_bytes += len(piece)
            pieces.append(piece)
            if not message["more_body"]:
                break
            if exchange.body_bytes > most:
                raise self._too_large()
            if self._body_bytes > self.settings.max_bodies_bytes:
                raise ServingError("too much is being asked at once", 503, "overloaded", RETRY_AFTER_S)
        exchange.reading_since = 0.0
        exchange.has_read_all = True
        if exchange.body_bytes > most:
            raise self._too_large()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> ServingError:
        most = self.settings.max_body_bytes
        return ServingError(f"the body is larger than {most} bytes", 413, "body_too_large")

    def _model_of(self, body: bytes) -> str:
        try:
            name = self._asked.decode(body).model
        except (msgspec.DecodeError, RecursionError) as error:
            raise ServingError(f"the body cannot be read: {error}", 400, "bad_json") from None
        if name:
            return name
        models = self.pool.models()
        if len(models) == 1:
            return models[0].id
        raise ServingError('say which "model": /v1/models lists them', 400, "model_required")

    async def _acquire(self, name: str) -> Grant:
        if self._closing.is_set():
            raise ServingError("the gateway is shutting down", 503, "shutting_down", RETRY_AFTER_S)
        if self._waiting >= self.settings.max_waiting:
            raise ServingError(f"{self._waiting} requests wait already", 503, "queue_full", RETRY_AFTER_S)
        self._waiting += 1
        try:
            return await self.pool.acquire(name)
        finally:
            self._waiting -= 1

    async def _ask_once(self, exchange: Exchange, path: str, name: str, body: bytes) -> None:
        """Have it answered by one engine; EngineLost where that died before its answer began for the client."""
        grant = await self._acquire(name)
        asked = Asked(self._tell, grant)
        try:
            # The engine knows one name; who asked by an alias is answered by that.
            renames = (_model_field(grant.name), _model_field(name)) if name != grant.name else None
            async with await upstream.ask(grant.address, path, body) as answer:
                if answer.content_type.startswith(b"text/event-stream"):
                    await self._relay_stream(exchange, answer, grant, asked, renames)
                else:
                    await self._relay_whole(exchange, answer, grant, asked, renames)
                if asked.how == "cancelled":
                    asked.how = "end" if answer.status < 400 else "failed"
        except EngineLost:
            asked.how = "lost"
            # Released too early, the pool would grant the same dead engine again.
            waited_until = exchange.loop.time() + LOST_LIMIT_S
            while not grant.is_lost and exchange.loop.time() < waited_until:
                await asyncio.sleep(LOST_INTERVAL_S)
            raise
        finally:
            grant.release()
            asked.end()

    async def _relay_stream(
        self, exchange: Exchange, answer: upstream.Answer, grant: Grant, asked: Asked, renames: Renames
    ) -> None:
        """Events as they come, those that came together in one piece, and never half of one before a fault."""
        tail = b""
        while True:
            try:
                piece = await answer.read()
            except EngineLost as error:
                if not exchange.status:
                    raise
                self._figures.broken.inc()
                asked.how = "lost"
                await exchange.finish(_event(ServingError(f"{grant.name}: {error}", 502, "engine_lost")))
                return
            if not piece:
                break
            whole, tail = split_events(tail + piece)
            if whole:
                asked.look(whole)
                if renames:
                    whole = whole.replace(*renames)
                if not exchange.status:
                    asked.begin()
                    await self._begin(exchange, answer, None)
                    exchange.is_stream = True
                await exchange.write(whole)
        grant.release()
        if not exchange.status:
            await self._begin(exchange, answer, None)
        await exchange.finish(tail)

    async def _relay_whole(
        self, exchange: Exchange, answer: upstream.Answer, grant: Grant, asked: Asked, renames: Renames
    ) -> None:
        """An answer of one piece; a large one in several, as it comes."""
        held = bytearray()
        while piece := await answer.read():
            held += piece
            if len(held) > WHOLE_BYTES:
                await self._relay_large(exchange, answer, bytes(held), asked)
                return
        grant.release()
        asked.look(bytes(held[-TAIL_BYTES:]))
        whole = bytes(held).replace(*renames) if renames else bytes(held)
        await self._begin(exchange, answer, len(whole))
        await exchange.finish(whole)

    async def _relay_large(self, exchange: Exchange, answer: upstream.Answer, held: bytes, asked: Asked) -> None:
        await self._begin(exchange, answer, answer.content_length)
        await exchange.write(held)
        try:
            while piece := await answer.read():
                asked.look(piece)
                await exchange.write(piece)
        except EngineLost:
            asked.how = "lost"
            self._figures.broken.inc()
            exchange.break_off()
            return
        await exchange.finish()

    async def _begin(self, exchange: Exchange, answer: upstream.Answer, length: int | None) -> None:
        self._figures.first_byte.observe(exchange.loop.time() - exchange.asked_at)
        headers = [(b"content-type", answer.content_type or b"application/octet-stream")]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await exchange.start(answer.status, headers)

    # -- ends that are none of the engine's

    async def _refuse(self, exchange: Exchange, error: ServingError, headers: Headers | None = None) -> None:
        """Say why there is no answer; where one has begun, see that it cannot pass for a whole one."""
        if exchange.is_whole:
            return
        if exchange.is_stream:
            await exchange.finish(_event(error))
            return
        if exchange.status:
            exchange.break_off()
            return
        body = encode_failure(error)
        headers = [*JSON, *(headers or []), (b"content-length", b"%d" % len(body))]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
        if exchange.ended_by:
            headers.append((b"connection", b"close"))
        elif exchange.must_drain():
            await exchange.start(error.status, [*headers, (b"connection", b"close")])
            await exchange.write(body)
            await exchange.drain()
            await exchange.finish()
            return
        await exchange.start(error.status, headers)
        await exchange.finish(body)

    async def _end_early(self, exchange: Exchange) -> None:
        """Answer a request that was cancelled by its connection, a deadline or our end."""
        if exchange.ended_by == "left":
            self._figures.left.inc()
        known = EARLY_ENDS.get(exchange.ended_by)
        if known is None or exchange.is_clogged():
            exchange.break_off()
            return
        text, status, code = known
        await self._refuse(exchange, ServingError(text, status, code, RETRY_AFTER_S if status == 503 else None))


def make_app(
    pool: EnginePool, settings: GatewaySettings | None = None, mounts: Mounts = (), ring: Ring | None = None
) -> Gateway:
    """The ASGI application in front of a pool, with what else is mounted into it; `ring` has what is told of both."""
    return Gateway(pool, settings or GatewaySettings(), mounts, ring)


def split_events(data: bytes) -> tuple[bytes, bytes]:
    """Whole events of a stream, and the begun one after them."""
    if data.endswith(b"\n\n") or len(data) > EVENT_BYTES:
        return data, b""
    cut = data.rfind(b"\n\n") + 2
    return (data[:cut], data[cut:]) if cut > 1 else (b"", data)


def encode_failure(error: ServingError) -> bytes:
    kind = {401: "authentication_error", 403: "permission_error"}.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return msgspec.json.encode(ErrorAnswer(Fault(str(error), kind, error.code)))


def _model_field(name: str) -> bytes:
    """How llama-server writes the name of its model; inside a text the quotes have backslashes."""
    return b'"model":' + msgspec.json.encode(name)


def _event(error: ServingError) -> bytes:
    return b"data: " + encode_failure(error) + b"\n\n"
