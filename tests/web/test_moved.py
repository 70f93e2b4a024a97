"""Servers that answer 307 or 308: followed on the same host, named elsewhere."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from modelpipes.errors import EngineError
from modelpipes.web.requests import exchange
from modelpipes.web.site import Site

LIMIT_S = 10.0


class Moved(ThreadingHTTPServer):
    """What lies at PATH is at `there` + PATH; what is asked there is answered with the method and the body."""

    def __init__(self, status: int, there: str) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.asked.append(self.path)
                if "/real/" in self.path and there != "/real/real":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(self.command.encode() + b" " + body)
                    return
                self.send_response(status)
                self.send_header("Location", there + self.path)
                self.end_headers()

            do_GET = do_POST = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture(params=[307, 308])
def status(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def ask(server: Moved, *requests: tuple[str, bytes | None]) -> list[bytes]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        site = Site(server.url)
        return [exchange(site, method, "/v1/x", body, headers={}, limit_s=LIMIT_S).body for method, body in requests]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_another_path_of_the_same_host_is_followed_once_with_method_and_body(status: int) -> None:
    server = Moved(status, "/real")
    assert ask(server, ("POST", b"words"), ("GET", None)) == [b"POST words", b"GET "]
    assert server.asked == ["/v1/x", "/real/v1/x", "/real/v1/x"]  # the second asks there at once


def test_another_host_is_named_and_not_asked(status: int) -> None:
    server = Moved(status, "http://192.0.2.1:9/real")
    with pytest.raises(EngineError, match=r"is elsewhere, at http://192\.0\.2\.1:9/real/v1/x: name that address"):
        ask(server, ("GET", None))


def test_a_server_that_moves_for_ever_is_left(status: int) -> None:
    server = Moved(status, "/real/real")
    with pytest.raises(EngineError, match="is elsewhere"):
        ask(server, ("GET", None))
    assert 2 <= len(server.asked) <= 7
