"""The gateway from a page in a real browser: what this machine's pages may do, and what no other page may."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelpipes.serving.gateway import GatewaySettings
from tests.browser import Browser, a_browser
from tests.models import scripted_model
from tests.serving.pools import Running, SmallPool, gateway

HELLO = "Hello there, my friend."
KEY = {"Authorization": "Bearer geheim"}


class Blank(http.server.BaseHTTPRequestHandler):
    """Any page: an empty one."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>chat</title>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[int]:
    """The port of a server of pages."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with a_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = scripted_model(tmp_path_factory.mktemp("models") / "hello.gguf", HELLO)
    with gateway(SmallPool({"hello": model}), GatewaySettings(key="geheim")) as running:
        yield running


def fetch(browser: Browser, url: str, **how: Any) -> str:
    """What the page gets: status and text, or that its browser keeps it from it."""
    said = browser.value(
        f"fetch({json.dumps(url)}, {json.dumps(how)})"
        ".then(async answer => answer.status + ' ' + await answer.text(), error => 'kept from it')"
    )
    return str(said)


CHAT = {
    "method": "POST",
    "headers": {"Content-Type": "application/json", **KEY},
    "body": json.dumps({"model": "hello", "stream": True, "messages": [{"role": "user", "content": "Hi."}]}),
}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_page_of_this_machine_chats(browser: Browser, page: int, keyed: Running, host: str) -> None:
    browser.open(f"http://{host}:{page}/")
    assert fetch(browser, f"{keyed.url}/v1/models", headers=KEY).startswith('200 {"data":[{"id":"hello"')
    stream = fetch(browser, f"{keyed.url}/v1/chat/completions", **CHAT)
    assert stream.startswith("200 data: ") and stream.rstrip().endswith("[DONE]")


def test_a_page_of_this_machine_without_the_key_is_told_so_and_steers_nothing(
    browser: Browser, page: int, keyed: Running
) -> None:
    browser.open(f"http://localhost:{page}/")
    assert fetch(browser, f"{keyed.url}/v1/models").startswith("401 ")
    for path in ("/models/hello/load", "/metrics", "/residency"):
        assert fetch(browser, f"{keyed.url}{path}", method="POST", headers=KEY) == "kept from it"


def test_a_page_of_no_origin_reads_and_changes_nothing(browser: Browser, keyed: Running, tmp_path: Path) -> None:
    foreign = tmp_path / "page.html"
    foreign.write_text("<!doctype html><title>foreign</title>")
    browser.open(foreign.as_uri())
    assert fetch(browser, f"{keyed.url}/v1/models", headers=KEY) == "kept from it"
    assert fetch(browser, f"{keyed.url}/v1/chat/completions", **CHAT) == "kept from it"
    assert fetch(browser, f"{keyed.url}/models/hello/load", method="POST", headers=KEY) == "kept from it"
