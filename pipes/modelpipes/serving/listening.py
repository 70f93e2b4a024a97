"""Where the gateway listens: uvicorn's HTTP/1.1 with deadlines and limits, on a port or a Unix socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from modelpipes.errors import PipesError, ServingError, UsageError
from modelpipes.serving.exchange import CONNECTION, Exchange
from modelpipes.serving.gateway import Gateway, GatewaySettings, encode_failure
from modelpipes.serving.origins import is_loopback

SWEEP_S = 0.5  # between two looks at the deadlines of all connections
MAX_HEAD_BYTES = 64 * 1024  # of a request; browsers and libraries stay below 16 KiB
MAX_PIPELINED = 16  # requests sent ahead on one connection that we read before we answer the first
KEEP_ALIVE_S = 30  # an idle connection; more than the 5 s after which clients of OpenAI's library reuse theirs
BACKLOG = 1024
GRACE_S = 5.0  # for what runs when the gateway is told to stop
END_S = 1.0  # for what was ended to clean up


@dataclass(frozen=True)
class Listen:
    """A place to listen: a port of a host, or a Unix socket where `path` is given."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """`host:port` (port 0: a free one) or `unix:PATH`; UsageError for anything else."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Listen("", 0, os.path.expanduser(text[len("unix:") :]))
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if text.startswith("unix:") or not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text!r} is no place to listen: it looks like 127.0.0.1:9090 or unix:/run/gateway.sock")
    return Listen(host, int(port))


def check_listen(listen: str, key: str) -> None:
    """UsageError where others than this machine could speak to us without a key."""
    place = parse_listen(listen)
    if not (key or place.path or is_loopback(place.host)):
        raise UsageError(
            f"{listen} can be reached from other machines: set a key ([server] key_file), or listen on 127.0.0.1"
        )


class _WithoutChunks(RequestResponseCycle):
    """An answer over HTTP/1.0, which has no chunks: one without a length ends with the connection (RFC 9112, 6.3)."""

    _ends_by_closing = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._ends_by_closing = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            if self._ends_by_closing:
                self.chunked_encoding = False
        elif self._ends_by_closing:
            self.expected_content_length = len(message.get("body", b""))  # of this piece: uvicorn counts them down
        await super().send(message)


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with what it lacks: deadlines, limits of a head, and clients that leave told at once.

    uvicorn itself tells a departure only to the last of several pipelined requests.
    """

    settings: GatewaySettings
    viewers: set[Connection]  # of the same gateway: who looks on at events

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._exchange: Exchange | None = None
        self._head_since = self.loop.time()
        self._head_bytes = 0
        self._is_in_head = True
        self._closing_since = 0.0

    def take(self, exchange: Exchange) -> None:
        """From now on this is the exchange that a departure ends."""
        self._exchange = exchange
        if self.transport.is_closing():
            exchange.end("left")

    def break_off(self) -> None:
        """Close it now, whatever waits to be written."""
        self.transport.abort()

    def look_on(self, *, is_viewer: bool) -> None:
        """Whether it is one of those who look on at events, which have a limit of their own."""
        (self.viewers.add if is_viewer else self.viewers.discard)(self)

    @property
    def is_clogged(self) -> bool:
        """Whether the client reads less than it is sent."""
        return self.flow.write_paused

    def end_exchange(self, reason: str) -> None:
        """End the request that is worked on, if any."""
        if self._exchange is not None:
            self._exchange.end(reason)

    def sweep(self, now: float) -> None:
        """Look at every deadline of this connection."""
        limits = self.settings
        if self.transport.is_closing():
            # What is left to write to a client that does not read would be kept for ever.
            self._closing_since = self._closing_since or now
            if now - self._closing_since > limits.stall_s:
                self.transport.abort()
        elif self._is_in_head and self._head_since and now - self._head_since > limits.head_s:
            self._reject(408, "the request's head came too slowly", "timeout")
        exchange = self._exchange
        if exchange is None or exchange.is_over:
            return
        if exchange.sending_since and now - exchange.sending_since > limits.stall_s:
            exchange.end("stalled")
        elif exchange.reading_since and now - exchange.reading_since > limits.body_s:
            exchange.end("slow")
        elif exchange.asked_at and now - exchange.asked_at > limits.max_request_s:
            exchange.end("late")

    def _reject(self, status: int, text: str, code: str) -> None:
        body = encode_failure(ServingError(text, status, code))
        reason = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}.get(status, "")
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

    # -- uvicorn's hooks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type] # uvicorn narrows asyncio's own type
        if len(self.connections) - len(self.viewers) > self.settings.max_connections:
            self._reject(503, "there are too many connections", "overloaded")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.viewers.discard(self)
        self.pipeline.clear()
        self.end_exchange("left")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        is_between = self._is_in_head or self.cycle is None or self.cycle.response_complete
        if is_between:
            self._is_in_head = True
            self._head_since = self._head_since or self.loop.time()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._reject(431, "the request's head is too large", "head_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._head_since = self._head_since or self.loop.time()
        self.scope[CONNECTION] = self  # type: ignore[literal-required] # a plain dict, as ASGI has it

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_since = 0.0
        self._head_bytes = 0
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and self.cycle is not None:
            self.cycle.__class__ = _WithoutChunks  # uvicorn names its class itself; nothing is sent yet
        if 0 < len(self.pipeline) < MAX_PIPELINED:
            # Paused, it would not see that the client leaves.
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # An answer is on its way; a second one in its middle would be taken for a part of it.
            self.transport.abort()
            return
        self._reject(400, msg, "bad_http")

    def _unsupported_upgrade_warning(self) -> None:
        # What follows on this connection is in a protocol that nobody here speaks.
        if self.cycle is not None:
            self.cycle.keep_alive = False


class Server:
    """The gateway's listening socket and its connections, in the running event loop."""

    def __init__(self, app: Gateway, listen: str) -> None:
        """Nothing listens yet; UsageError where `listen` is none, or open to others without a key."""
        check_listen(listen, app.settings.key)
        self.listen = parse_listen(listen)
        self._app = app
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._inode = 0

    @property
    def base_url(self) -> str:
        """Where clients find it; of a Unix socket, what to put after the host."""
        return "http://localhost" if self.listen.path else f"http://{self.listen}"

    async def start(self) -> None:
        """Listen. Raises PipesError where the address cannot be had."""
        loop = asyncio.get_running_loop()
        bound = self._bind()
        config = Config(
            self._app,
            http=type("Connection", (Connection,), {"settings": self._app.settings, "viewers": set()}),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()

        def accept() -> asyncio.Protocol:
            return config.http_protocol_class(config=config, server_state=self._state, app_state={})  # type: ignore[call-arg] # uvicorn types it as asyncio's

        if self.listen.path:
            self._server = await loop.create_unix_server(accept, sock=bound, backlog=BACKLOG)
        else:
            self._server = await loop.create_server(accept, sock=bound, backlog=BACKLOG)
        self._sweep()

    async def stop(self, grace_s: float) -> None:
        """Accept no more; give running requests `grace_s` seconds, then end them."""
        if self._server is None:
            return
        loop = asyncio.get_running_loop()
        self._app.close()
        self._server.close()
        self._unlink()
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait_for_tasks(grace_s)
        for connection in list(self._state.connections):
            if isinstance(connection, Connection):
                connection.end_exchange("closing")
        await self._wait_for_tasks(END_S)
        for connection in list(self._state.connections):
            if isinstance(connection, Connection):
                connection.break_off()
        if self._sweeper is not None:
            self._sweeper.cancel()
        gone_by = loop.time() + END_S
        while self._state.connections and loop.time() < gone_by:
            await asyncio.sleep(0.001)
        await self._server.wait_closed()
        self._server = None

    async def _wait_for_tasks(self, limit_s: float) -> None:
        if tasks := list(self._state.tasks):
            await asyncio.wait(tasks, timeout=limit_s)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._state.connections):
            if isinstance(connection, Connection):
                connection.sweep(now)
        limits = self._app.settings
        self._sweeper = loop.call_later(min(SWEEP_S, limits.head_s, limits.body_s, limits.stall_s), self._sweep)

    def _bind(self) -> socket.socket:
        try:
            return self._bind_path() if self.listen.path else self._bind_port()
        except OSError as error:
            raise PipesError(
                f"cannot listen on {self.listen} ({error.strerror or error}): choose another --listen"
            ) from None

    def _bind_port(self) -> socket.socket:
        found = socket.getaddrinfo(self.listen.host, self.listen.port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = found[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        self.listen = Listen(self.listen.host, bound.getsockname()[1])
        return bound

    def _bind_path(self) -> socket.socket:
        path = self.listen.path
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(bound.fileno(), 0o600)  # Linux gives the file the mode of the socket: it is never open to others
            try:
                bound.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_abandoned(path):
                    raise
                os.unlink(path)
                bound.bind(path)
            self._inode = os.stat(path).st_ino
        except BaseException:
            bound.close()
            raise
        return bound

    def _unlink(self) -> None:
        """Remove our socket's file, unless another has taken the place."""
        try:
            if self.listen.path and os.stat(self.listen.path).st_ino == self._inode:
                os.unlink(self.listen.path)
        except FileNotFoundError:
            pass


def _is_abandoned(path: str) -> bool:
    """Whether a socket's file was left by a process that no longer listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        return False


async def serve(app: Gateway, listen: str, until: asyncio.Event, *, grace_s: float = GRACE_S) -> None:
    """Serve until the event is set, then come to an orderly end."""
    server = Server(app, listen)
    await server.start()
    try:
        await until.wait()
    finally:
        await server.stop(grace_s)
