"""Leave from a `serve-models` gateway to speak to one of its engines directly, for one turn."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from urllib.parse import quote

import msgspec

from modelpipes.engine.client import Cancelled, Client, Refused, refusal
from modelpipes.errors import DeadlineError, EngineError
from modelpipes.values.deadline import Deadline

CONNECT_LIMIT_S = 10.0
LINE_LIMIT_S = 10.0  # the first line follows its headers at once
TICK_S = 1.0  # between two signs of life while an engine is waited for
MAX_LINE_BYTES = 65536


class _Line(msgspec.Struct):
    host: str
    port: int
    key: str


class Lease:
    """The engine counts as busy until this is closed; safe to cancel from another thread."""

    def __init__(self, gateway: Client, name: str) -> None:
        self._gateway = gateway
        self._name = name
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._is_cancelled = False

    def take(self, tick: Callable[[], None], deadline: Deadline) -> Client:
        """Wait for the engine, `tick` once a second, and speak to it through what this returns.

        Raises Refused, EngineError, DeadlineError, Cancelled.
        """
        root = self._gateway.root
        connection = self._gateway.connect(CONNECT_LIMIT_S)
        try:
            connection.request("POST", f"/models/{quote(self._name, safe='')}/lease", headers=self._gateway._headers)
            with self._lock:
                self._connection = connection
                if self._is_cancelled:
                    raise Cancelled("the lease was cancelled")
            self._wait(connection.sock, tick, deadline)
            connection.sock.settimeout(LINE_LIMIT_S)
            response = self._response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise refusal(root, response.status, response.read())
            line = msgspec.json.decode(response.readline(MAX_LINE_BYTES), type=_Line)
        except TimeoutError:
            self._check_cancelled()
            raise DeadlineError(f"the gateway at {root} did not say where {self._name} is") from None
        except (OSError, http.client.HTTPException) as error:
            self._check_cancelled()
            raise EngineError(f"the gateway at {root} cannot be spoken to: {error}") from None
        except msgspec.DecodeError:
            self._check_cancelled()
            raise EngineError(f"{root} is no gateway of serve-models: its lease is none") from None
        host = f"[{line.host}]" if ":" in line.host else line.host
        return Client(f"http://{host}:{line.port}", api_key=line.key)

    def cancel(self) -> None:
        """End the wait, if it lasts still."""
        with self._lock:
            self._is_cancelled = True
            if self._connection is not None and self._connection.sock is not None:
                with contextlib.suppress(OSError):
                    self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the engine back."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, connected: socket.socket, tick: Callable[[], None], deadline: Deadline) -> None:
        poll = select.poll()
        poll.register(connected, select.POLLIN)
        while not poll.poll(Deadline.after(TICK_S).earlier(deadline).poll_ms()):
            deadline.check(f"engine of {self._name} at the gateway {self._gateway.root}")
            tick()
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._is_cancelled:
            raise Cancelled("the lease was cancelled")


def is_gateway(client: Client) -> bool:
    """Whether a gateway of `serve-models` answers there; EngineError, DeadlineError."""
    try:
        answer = client.get("/residency", missing_is_none=True)
    except Refused as refused:
        if refused.kind in ("auth", "loading"):
            raise
        return False  # some servers answer what they do not know with a fault of theirs
    return isinstance(answer, dict) and "budget_bytes" in answer and "resident" in answer
