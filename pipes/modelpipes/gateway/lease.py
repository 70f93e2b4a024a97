"""Leave from a `serve-models` gateway to speak to one of its engines directly, for one turn."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from urllib.parse import quote

import msgspec

from modelpipes.engine.client import Client
from modelpipes.engine.refusal import refusal
from modelpipes.errors import DeadlineError, EngineError, PipesError, Refused
from modelpipes.gateway.wire import LeaseLine
from modelpipes.values.deadline import Deadline
from modelpipes.web.stream import Stream

CONNECT_LIMIT_S = 10.0
LINE_LIMIT_S = 10.0  # the first line follows its headers at once
TICK_S = 1.0  # between two signs of life while an engine is waited for
MAX_LINE_BYTES = 65536


class Lease:
    """The engine counts as busy until this is closed; safe to cancel from another thread."""

    def __init__(self, gateway: Client, name: str) -> None:
        self._gateway = gateway
        self._name = name
        self._stream = Stream(gateway.site, self._explain, "lease")
        self.identity = ""  # of the engine, once it is taken: another one is another model, though of the same name

    def take(self, tick: Callable[[], None], deadline: Deadline) -> Client:
        """Wait for the engine, `tick` once a second, and speak to it through what this returns.

        Raises Refused, EngineError, DeadlineError, Cancelled.
        """
        root, stream = self._gateway.root, self._stream
        page = f"/models/{quote(self._name, safe='')}/lease"
        stream.send("POST", page, None, self._gateway.headers, connect_s=CONNECT_LIMIT_S, silence_s=LINE_LIMIT_S)
        while not stream.has_news(Deadline.after(TICK_S).earlier(deadline)):
            deadline.check(f"engine of {self._name} at the gateway {root}")
            tick()
        if stream.status != HTTPStatus.OK:
            raise refusal(root, stream.status, stream.read_all())
        try:
            line = msgspec.json.decode(stream.read_line(MAX_LINE_BYTES), type=LeaseLine)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineError(f"{root} is no gateway of serve-models: its lease is none") from None
        self.identity = line.identity
        host = f"[{line.host}]" if ":" in line.host else line.host
        return Client(f"http://{host}:{line.port}", api_key=line.key)

    def cancel(self) -> None:
        """End the wait, if it lasts still."""
        self._stream.cancel()

    def close(self) -> None:
        """Give the engine back."""
        self._stream.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _explain(self, error: Exception) -> PipesError:
        root = self._gateway.root
        if isinstance(error, TimeoutError):
            return DeadlineError(f"the gateway at {root} did not say where {self._name} is")
        return EngineError(f"the gateway at {root} cannot be spoken to: {error}")


def is_gateway(client: Client) -> bool:
    """Whether a gateway of `serve-models` answers there; EngineError, DeadlineError."""
    try:
        answer = client.get("/residency", missing_is_none=True)
    except Refused as refused:
        if refused.kind in ("auth", "loading"):
            raise
        return False  # some servers answer what they do not know with a fault of theirs
    return isinstance(answer, dict) and "budget_bytes" in answer and "resident" in answer
