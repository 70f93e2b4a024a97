"""The gateway: OpenAI's API over HTTP in front of a pool of engines."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import sys
import traceback
from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException

from modelpipes.errors import EngineLost, ServingError
from modelpipes.gateway.wire import Failure, Fault
from modelpipes.serving import upstream
from modelpipes.serving.figures import GatewayFigures
from modelpipes.serving.grant import Grant, Pool
from modelpipes.serving.job import CONNECTION, JSON, Headers, Job, Receive, Scope, Send
from modelpipes.serving.openapi import PASSED_ON, Asked
from modelpipes.serving.pages import Mounts, Pages

LOST_LIMIT_S = 0.5  # a socket closes some milliseconds before its process counts as dead
LOST_INTERVAL_S = 0.005
WHOLE_BYTES = 1024 * 1024  # of an answer that is no stream: kept back until it is whole, so it can be asked again
EVENT_BYTES = 64 * 1024  # the longest part of an event that is kept back; llama-server writes whole ones
RETRY_AFTER_S = 5.0  # a turn of a conversation; whoever waits less finds the queue as it was
EARLY_ENDS = {
    "slow": ("the request's body came too slowly", 408, "timeout"),
    "late": ("the answer took too long", 504, "timeout"),
    "closing": ("the gateway is shutting down", 503, "shutting_down"),
}


@dataclass(frozen=True)
class Settings:
    """Who may ask, and how much."""

    key: str = ""
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

    def __init__(self, pool: Pool, settings: Settings, mounts: Mounts = ()) -> None:
        self.pool = pool
        self.settings = settings
        self._key = settings.key.encode()
        self._figures = GatewayFigures()
        self._waiting = 0
        self._figures.waiting.set_function(lambda: self._waiting)
        self._body_bytes = 0
        self._closing = asyncio.Event()
        self._asked = msgspec.json.Decoder(Asked)
        self._pages = Pages(pool, self._figures, self._acquire, self._closing, settings.max_lease_s, mounts)

    def close(self) -> None:
        """Tell the holders of leases to come to an end, and refuse new work."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}")
        job = Job(scope, receive, send)
        connection = scope.get(CONNECTION)
        path = scope["path"]
        self._figures.running.inc()
        try:
            if connection is not None:
                connection.take(job)
            await self._work(job, path)
        except asyncio.CancelledError:
            if not job.ended_by:
                raise
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            await self._end_early(job)
        except Exception:  # noqa: BLE001 - the outermost edge: one request's fault must not be another's
            sys.stderr.write("gateway: a fault of ours, please report it:\n" + traceback.format_exc())
            await self._refuse(job, ServingError("a fault of the gateway: its log says more", 500, "internal_error"))
        finally:
            job.is_over = True
            self._figures.running.dec()
            if job.status:
                self._figures.count(path if path in PASSED_ON else "other", job.status)

    async def _work(self, job: Job, path: str) -> None:
        try:
            self._check(job.scope, path)
            if path not in PASSED_ON:
                job.scope["app"] = self  # then Starlette raises its refusals
                await self._pages.answer(job)
            elif job.scope["method"] != "POST":
                raise HTTPException(405, headers={"Allow": "POST"})
            else:
                await self._pass_on(job, path)
        except HTTPException as error:
            code = "not_found" if error.status_code == 404 else "method_not_allowed"
            text = "there is no such page" if error.status_code == 404 else "this page is not asked like this"
            headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
            await self._refuse(job, ServingError(text, error.status_code, code), headers)
        except ServingError as error:
            await self._refuse(job, error)

    # -- who may ask

    def _check(self, scope: Scope, path: str) -> None:
        """Raise ServingError for who must not."""
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
        if self._key:
            if path != "/health" and not hmac.compare_digest(key, self._key):
                raise ServingError("the key is missing or wrong", 401, "invalid_api_key")
            return
        # Without a key the browser on this machine is the way in: a page whose own name points here (its
        # Host tells), or one that simply posts across sites (its Origin tells).
        is_unix = scope["server"] is None or scope["server"][1] is None
        if hosts and not is_unix and not is_loopback(_host_of(hosts[0])):
            raise ServingError("this gateway is spoken to by the name of this machine only", 403, "bad_host")
        if site == b"cross-site" or (origin and not is_loopback(_host_of(origin.partition(b"://")[2]))):
            raise ServingError("no other site's page may speak to this gateway", 403, "bad_origin")

    # -- the hot path

    async def _pass_on(self, job: Job, path: str) -> None:
        try:
            body = await self._read_body(job)
            name = self._model_of(body)
            job.asked_at = job.loop.time()
            try:
                await self._ask_once(job, path, name, body)
            except EngineLost:
                # Once more: a second engine that dies of the same request says that the request is the cause.
                self._figures.again.inc()
                try:
                    await self._ask_once(job, path, name, body)
                except EngineLost as error:
                    raise ServingError(f"{name}: {error}", 502, "engine_lost") from None
        finally:
            self._body_bytes -= job.body_bytes

    async def _read_body(self, job: Job) -> bytes:
        """The whole of it, within the limits."""
        most = self.settings.max_body_bytes
        if job.declared_bytes() > most:
            raise self._too_large()
        job.reading_since = job.loop.time()
        pieces = []
        while True:
            message = await job.receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError  # the connection has told the job, or is about to
            piece = message["body"]
            job.body_bytes += len(piece)
            self._body_bytes += len(piece)
            pieces.append(piece)
            if not message["more_body"]:
                break
            if job.body_bytes > most:
                raise self._too_large()
            if self._body_bytes > self.settings.max_bodies_bytes:
                raise ServingError("too much is being asked at once", 503, "overloaded", RETRY_AFTER_S)
        job.reading_since = 0.0
        job.has_read_all = True
        if job.body_bytes > most:
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

    async def _ask_once(self, job: Job, path: str, name: str, body: bytes) -> None:
        """Have it answered by one engine; EngineLost where that died before its answer began for the client."""
        grant = await self._acquire(name)
        try:
            async with await upstream.ask(grant.address, path, body) as answer:
                if answer.content_type.startswith(b"text/event-stream"):
                    await self._relay_stream(job, answer, grant)
                else:
                    await self._relay_whole(job, answer, grant)
        except EngineLost:
            # Released too early, the pool would grant the same dead engine again.
            waited_until = job.loop.time() + LOST_LIMIT_S
            while not grant.is_lost and job.loop.time() < waited_until:
                await asyncio.sleep(LOST_INTERVAL_S)
            raise
        finally:
            grant.release()

    async def _relay_stream(self, job: Job, answer: upstream.Answer, grant: Grant) -> None:
        """Events as they come, those that came together in one piece, and never half of one before a fault."""
        tail = b""
        while True:
            try:
                piece = await answer.read()
            except EngineLost as error:
                if not job.status:
                    raise
                self._figures.broken.inc()
                await job.finish(_event(ServingError(f"{grant.name}: {error}", 502, "engine_lost")))
                return
            if not piece:
                break
            whole, tail = split_events(tail + piece)
            if whole:
                if not job.status:
                    await self._begin(job, answer, None)
                    job.is_stream = True
                await job.write(whole)
        grant.release()
        if not job.status:
            await self._begin(job, answer, None)
        await job.finish(tail)

    async def _relay_whole(self, job: Job, answer: upstream.Answer, grant: Grant) -> None:
        """An answer of one piece; a large one in several, as it comes."""
        held = bytearray()
        while piece := await answer.read():
            held += piece
            if len(held) > WHOLE_BYTES:
                await self._relay_large(job, answer, bytes(held))
                return
        grant.release()
        await self._begin(job, answer, len(held))
        await job.finish(bytes(held))

    async def _relay_large(self, job: Job, answer: upstream.Answer, held: bytes) -> None:
        await self._begin(job, answer, answer.content_length)
        await job.write(held)
        try:
            while piece := await answer.read():
                await job.write(piece)
        except EngineLost:
            self._figures.broken.inc()
            job.break_off()
            return
        await job.finish()

    async def _begin(self, job: Job, answer: upstream.Answer, length: int | None) -> None:
        self._figures.first_byte.observe(job.loop.time() - job.asked_at)
        headers = [(b"content-type", answer.content_type or b"application/octet-stream")]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await job.start(answer.status, headers)

    # -- ends that are none of the engine's

    async def _refuse(self, job: Job, error: ServingError, headers: Headers | None = None) -> None:
        """Say why there is no answer; where one has begun, see that it cannot pass for a whole one."""
        if job.is_whole:
            return
        if job.is_stream:
            await job.finish(_event(error))
            return
        if job.status:
            job.break_off()
            return
        body = encode_failure(error)
        headers = [*JSON, *(headers or []), (b"content-length", b"%d" % len(body))]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
        if job.ended_by:
            headers.append((b"connection", b"close"))
        elif job.must_drain():
            await job.start(error.status, [*headers, (b"connection", b"close")])
            await job.write(body)
            await job.drain()
            await job.finish()
            return
        await job.start(error.status, headers)
        await job.finish(body)

    async def _end_early(self, job: Job) -> None:
        """Answer a request that was cancelled by its connection, a deadline or our end."""
        if job.ended_by == "left":
            self._figures.left.inc()
        known = EARLY_ENDS.get(job.ended_by)
        if known is None or job.is_clogged():
            job.break_off()
            return
        text, status, code = known
        await self._refuse(job, ServingError(text, status, code, RETRY_AFTER_S if status == 503 else None))


def make_app(pool: Pool, settings: Settings | None = None, mounts: Mounts = ()) -> Gateway:
    """The ASGI application in front of a pool, with what else is mounted into it."""
    return Gateway(pool, settings or Settings(), mounts)


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
    return msgspec.json.encode(Failure(Fault(str(error), kind, error.code)))


def _event(error: ServingError) -> bytes:
    return b"data: " + encode_failure(error) + b"\n\n"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(authority: bytes) -> str:
    """The host of `host:port`; a Host header or what follows an Origin's scheme."""
    text = authority.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
