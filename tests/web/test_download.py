"""Pages and files from a server that breaks off; what the package index makes of it stands in engine/test_source.py."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from modelpipes.errors import EngineError, Refused
from modelpipes.values.deadline import Deadline
from modelpipes.web.download import Downloads, shown
from tests.web.servers import LIMIT_S, Server, answer


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return Downloads("thing", "do without", Deadline.after(LIMIT_S), tls=ssl.create_default_context())


def test_a_page_comes_with_where_it_was_and_what_it_is(server: Server, downloads: Downloads) -> None:
    server.say(answer(b"words", "text/html; charset=utf-8"))
    page = downloads.page(server.url + "/a", {"Accept": "text/html"}, 5)
    assert page and (page.url, page.content_type, page.body) == (server.url + "/a", "text/html", b"words")
    assert b"Accept: text/html\r\n" in server.heads[0]
    assert downloads.page(server.url + "/a", {}, 4) is None


def test_a_refusal_has_its_status_and_says_what_else_helps(server: Server, downloads: Downloads) -> None:
    server.say(answer(b"", status=418))
    with pytest.raises(Refused, match=f"^{server.url}/a answered 418 Said: do without$") as refused:
        downloads.page(server.url + "/a?key=1", {}, 9)
    assert refused.value.status == 418


def test_a_file_is_gone_on_from_where_it_broke(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    part, reports = tmp_path / "file.part", list[str]()
    server.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
    with pytest.raises(EngineError, match="broke at 0 of 0 MB: run it again"):
        downloads.to_file(server.url + "/f", str(part), "fetching", reports.append)
    assert part.read_bytes() == b"abc"
    server.say(b"HTTP/1.1 206 OK\r\nContent-Length: 3\r\nContent-Range: bytes 3-5/6\r\n\r\ndef")
    downloads.to_file(server.url + "/f", str(part), "fetching", reports.append)
    assert part.read_bytes() == b"abcdef"
    assert b"Range: bytes=3-\r\n" in server.heads[1] and reports[-1] == "fetching: 0 of 0 MB"


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown("https://user:pass@host/path?token=1#x") == "https://host/path"
