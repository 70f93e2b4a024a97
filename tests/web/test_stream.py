"""An answer that comes in pieces, and its end from another thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from modelpipes.errors import Cancelled, EngineError, PipesError
from modelpipes.values.deadline import Deadline
from modelpipes.web.site import Site
from modelpipes.web.stream import Stream
from tests.web.servers import LIMIT_S, Server, answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"


class _Broken(EngineError):
    pass


@pytest.fixture
def stream(server: Server) -> Iterator[Stream]:
    with Stream(Site(server.url), lambda error: _Broken(type(error).__name__), "work") as made:
        yield made


def send(stream: Stream, silence_s: float = LIMIT_S) -> None:
    stream.send("GET", "/x", None, {}, connect_s=LIMIT_S, silence_s=silence_s)


def test_pieces_lines_and_the_rest_come_as_they_are_asked_for(server: Server, stream: Stream) -> None:
    server.say(HEAD, b"one\ntwo\nthree")
    send(stream)
    assert stream.has_news(Deadline.after(LIMIT_S))
    assert (stream.status, stream.content_type) == (200, "text/plain")
    assert stream.read_line() == b"one\n"
    assert stream.read_line(2) == b"tw"
    assert stream.read_all() == b"o\nthree"
    assert (stream.read(), stream.read_line()) == (b"", b"")


def test_what_has_come_is_not_held_back(server: Server, stream: Stream) -> None:
    server.hold(HEAD, b"begun")
    send(stream)
    assert stream.read() == b"begun"


def test_no_news_are_told_when_the_deadline_passes(server: Server, stream: Stream) -> None:
    server.hold(b"")
    send(stream)
    assert not stream.has_news(Deadline.after(0.01))


def test_a_fault_is_what_its_user_makes_of_it(server: Server, stream: Stream) -> None:
    server.say(b"")
    send(stream)
    with pytest.raises(_Broken, match="RemoteDisconnected"):
        stream.read()


def test_silence_is_a_fault_like_others(server: Server, stream: Stream) -> None:
    server.hold(HEAD)
    send(stream, silence_s=0.05)
    with pytest.raises(_Broken, match="TimeoutError"):
        stream.read()


WAITS: list[Callable[[Stream], object]] = [
    lambda stream: stream.has_news(Deadline.after(LIMIT_S)),
    lambda stream: stream.status,
    lambda stream: stream.read(),
    lambda stream: stream.read_all(),
    lambda stream: stream.read_line(),
]


@pytest.mark.parametrize("wait", WAITS)
def test_a_cancel_from_another_thread_ends_every_wait_and_is_no_fault(
    server: Server, stream: Stream, wait: Callable[[Stream], object]
) -> None:
    server.hold(b"")
    send(stream)
    timer = threading.Timer(0.05, stream.cancel)
    timer.start()
    with pytest.raises(Cancelled, match="the work was cancelled"):
        wait(stream)
    timer.join()


def test_a_cancel_amid_a_piece_that_has_come_hides_it(server: Server, stream: Stream) -> None:
    server.hold(HEAD, b"begun")
    send(stream)
    assert stream.status == 200
    stream.cancel()
    with pytest.raises(Cancelled):
        stream.read()


def test_a_cancel_beforehand_connects_to_nobody(server: Server, stream: Stream) -> None:
    stream.cancel()
    with pytest.raises(Cancelled):
        send(stream)
    assert not server.heads and not stream.is_connected


def test_a_cancel_while_it_connects_counts(server: Server, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.create_connection

    def cancelled_meanwhile(*given: object, **named: object) -> socket.socket:
        stream.cancel()
        return connect(*given, **named)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(socket, "create_connection", cancelled_meanwhile)
    server.say(answer(b"1"))
    with pytest.raises(Cancelled):
        send(stream)
        stream.read()


def test_a_cancel_is_none_of_our_errors() -> None:
    assert not issubclass(Cancelled, PipesError)
