"""Short requests, to a server that answers and to all that do not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from modelpipes.errors import DeadlineError, EngineError
from modelpipes.web.requests import Response, exchange
from modelpipes.web.site import Site
from tests.web.servers import LIMIT_S, Server, answer


def get(root: str, page: str = "/x", limit_s: float = LIMIT_S) -> Response:
    return exchange(Site(root), "GET", page, headers={"X-Said": "yes"}, limit_s=limit_s)


def test_a_whole_answer_comes_back_with_what_it_is(server: Server) -> None:
    server.say(answer(b'{"a": 1}', status=404))
    told = get(server.url + "/below")
    assert (told.status, told.content_type, told.json(), told.is_success) == (404, "application/json", {"a": 1}, False)
    assert server.heads[0].startswith(b"GET /below/x HTTP/1.1\r\n") and b"X-Said: yes" in server.heads[0]


def test_a_body_is_sent_and_success_is_any_2xx(server: Server) -> None:
    server.say(answer(b"", status=204))
    told = exchange(Site(server.url), "POST", "/x", b"body", headers={}, limit_s=LIMIT_S)
    assert told.is_success and b"Content-Length: 4" in server.heads[0]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        Response(200, "application/json", body).json()


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    server = Server(listening, f"unix:{path}")
    try:
        server.say(answer(b"1"))
        assert get(server.url).json() == 1
        assert b"Host: localhost\r\n" in server.heads[0]
    finally:
        server.close()
    with pytest.raises(EngineError, match=f"^no server answers at unix:{path}: is it running\\?$"):
        get(f"unix:{path}")


def test_nobody_at_the_address_is_told() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"^no server answers at {root}: is it running\\?$"):
            get(root)


def test_a_host_that_nobody_knows_is_told() -> None:
    with pytest.raises(EngineError, match=r"^no server answers at http://nobody\.invalid: is it running\?$"):
        get("http://nobody.invalid")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_connection_that_is_closed_too_early_is_told(server: Server, said: bytes) -> None:
    server.say(said)
    with pytest.raises(EngineError, match=f"^the server at {server.url} closed the connection$"):
        get(server.url)


def test_a_server_that_speaks_something_else_is_told(server: Server) -> None:
    server.say(b"220 mail.example ESMTP\r\n")
    with pytest.raises(EngineError, match=f"^the server at {server.url} cannot be spoken to: 220 mail") as told:
        get(server.url)
    assert "\n" not in str(told.value)


def test_a_silent_server_is_left_at_the_limit(server: Server) -> None:
    server.hold(b"")
    with pytest.raises(DeadlineError, match=f"^the server at {server.url} did not answer /x for 0.1 s$"):
        get(server.url, limit_s=0.1)
