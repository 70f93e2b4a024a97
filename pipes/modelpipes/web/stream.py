"""One request, whose answer is read as it comes and can be cancelled from any thread."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from modelpipes.errors import Cancelled, EngineError, PipesError
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline
from modelpipes.web.site import Site

MOVED = (307, 308)  # to where the same is asked, with the same body
MOST_MOVES = 5
READ_BYTES = 65536  # what has come by then is taken at once; pieces that came together go on together


class Stream:
    """Send, then read: for one thread; `cancel` is for any, and whoever waits here then gets Cancelled at once.

    What else breaks it off is raised as what `explain` makes of the OSError or HTTPException; TimeoutError is one.
    """

    def __init__(self, site: Site, explain: Callable[[Exception], PipesError], what: str = "answer") -> None:
        """`what` is cancelled, in words."""
        self.is_connected = False
        self._site = site
        self._explain = explain
        self._what = what
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None
        self._again: Callable[[], None] = lambda: None  # send the same
        self._page = ""
        self._moves = 0

    # -- what goes out

    def send(
        self,
        method: str,
        page: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        connect_s: float | None,
        silence_s: float | None,
    ) -> None:
        """Connect within `connect_s` and send the request; every wait after that lasts `silence_s` at most.

        A server that answers with another path of its own is asked there, also for its other pages.
        """

        def send() -> None:
            self.check_cancelled()
            with self._explained():
                connection = self._connection = self._site.connection(connect_s)
                connection.connect()
                self.is_connected = True
                connection.sock.settimeout(silence_s)
                self._watch(connection.sock)
                connection.request(method, self._site.path(page), body, dict(headers))

        self._page, self._again = page, send
        send()

    # -- what comes in

    def has_news(self, deadline: Deadline) -> bool:
        """Wait until the answer begins, or the server has gone; False where the deadline passes first."""
        assert self._socket is not None, "send() comes first"
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        has_come = bool(poll.poll(deadline.poll_ms()))
        self.check_cancelled()
        return has_come

    @property
    def status(self) -> int:
        """The answer's HTTP status."""
        return self._head().status

    @property
    def content_type(self) -> str:
        """What the answer says it is; "" where it does not."""
        return str(self._head().headers.get("Content-Type", ""))

    def read(self) -> bytes:
        """What has come, waited for; b"" at the end."""
        with self._explained():
            piece = self._head().read1(READ_BYTES)
        self.check_cancelled()  # a cancelled connection may look like a whole answer
        return piece

    def read_all(self) -> bytes:
        """The rest of the answer."""
        with self._explained():
            rest = self._head().read()
        self.check_cancelled()
        return rest

    def read_line(self, most_bytes: int = -1) -> bytes:
        r"""The next line with its \n, cut off at `most_bytes`; b"" at the end."""
        with self._explained():
            line = self._head().readline(most_bytes)
        self.check_cancelled()
        return line

    def _head(self) -> http.client.HTTPResponse:
        """The answer, waited for until its head is there."""
        while self._response is None:
            assert self._connection is not None, "send() comes first"
            with self._explained():
                response = self._connection.getresponse()
            if response.status in MOVED and (location := response.headers.get("Location")):
                self._follow(response, location)
            else:
                self._response = response
        return self._response

    def _follow(self, response: http.client.HTTPResponse, location: str) -> None:
        response.close()
        self.close()
        self._moves += 1
        if self._moves > MOST_MOVES or not self._site.follow(self._page, location):
            raise EngineError(
                f"the server at {self._site.root} is elsewhere, at {make_line(location)}: name that address"
            )
        self._again()

    # -- its end

    def cancel(self) -> None:
        """End it from any thread at any time."""
        with self._lock:
            self._is_cancelled = True
            self._shut_socket()

    def check_cancelled(self) -> None:
        """Raise Cancelled if somebody cancelled it."""
        if self._is_cancelled:
            raise Cancelled(f"the {self._what} was cancelled")

    def close(self) -> None:
        """Close the connection; for the thread that reads."""
        with self._lock:
            self._socket = None
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self.check_cancelled()
            raise self._explain(error) from None

    def _watch(self, connected: socket.socket) -> None:
        """Remember the socket as soon as there is one: it is what a cancel shuts."""
        with self._lock:
            self._socket = connected
            if self._is_cancelled:
                self._shut_socket()

    def _shut_socket(self) -> None:
        if self._socket is not None:
            # Of socket.socket, not of SSLSocket: that one throws away the state that the reader uses.
            # Already closed is as good as shut.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
