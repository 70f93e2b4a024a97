"""Servers that speak TLS with a certificate of one's own, and what is said where it is not trusted."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.errors import Cancelled, EngineError
from modelpipes.web.requests import exchange
from modelpipes.web.site import Site
from modelpipes.web.stream import Stream
from tests.server import Scripted, events, piece
from tests.web.servers import LIMIT_S, Server, certificate

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates: install it")


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """A server whose certificate $SSL_CERT_FILE has."""
    path, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    server = Scripted(context)
    yield server
    server.close()


def models(server: Scripted, root: str = "") -> object:
    site = Site(root or server.url.removesuffix("/v1"))
    return exchange(site, "GET", "/v1/models", headers={}, limit_s=LIMIT_S).json()


def refused(server: Scripted) -> str:
    with pytest.raises(EngineError) as caught:
        models(server)
    return re.sub(r"127\.0\.0\.1:[0-9]+", "HERE", str(caught.value))


def test_a_certificate_that_is_named_is_trusted(trusted: Scripted) -> None:
    assert models(trusted) == {"data": [{"id": "qwen"}]}


def test_an_answer_over_tls_is_cancelled_from_another_thread(trusted: Scripted) -> None:
    trusted.body, trusted.hold = events(piece(content="x")), True

    def explain(error: Exception) -> EngineError:
        return EngineError(repr(error))

    with Stream(Site(trusted.url.removesuffix("/v1")), explain) as stream:
        stream.send("POST", "/v1/chat/completions", b"{}", {}, connect_s=LIMIT_S, silence_s=LIMIT_S)
        assert b"x" in stream.read()
        timer = threading.Timer(0.05, stream.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            while stream.read():
                pass
        timer.join()


def test_a_certificate_that_nobody_signed_is_told_with_what_to_do(
    trusted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "the certificate of the server at https://HERE is signed by nobody trusted here (self-signed certificate): "
    monkeypatch.delenv("SSL_CERT_FILE")
    assert refused(trusted) == told + "name the file of the certificate, or of its CA, in $SSL_CERT_FILE"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    assert refused(trusted) == told + f"$SSL_CERT_FILE names {tmp_path}/none.pem, which is no file"
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    assert refused(trusted) == told + f"$SSL_CERT_FILE names {other}, which does not have it: name one that does"


def test_a_certificate_for_another_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, context = certificate(tmp_path, "DNS:elsewhere.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    server = Scripted(context)
    try:
        assert refused(server) == (
            "the certificate of the server at https://HERE is not valid: IP address mismatch, certificate is not valid "
            "for '127.0.0.1'"
        )
    finally:
        server.close()


def test_a_server_without_tls_is_told(server: Server) -> None:
    server.speaks_first = True
    server.say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    secure = server.url.replace("http:", "https:")
    with pytest.raises(EngineError, match=f"^the server at {secure} does not speak TLS: ask at {server.url}$"):
        exchange(Site(secure), "GET", "/x", headers={}, limit_s=LIMIT_S)


def test_a_server_that_ends_amid_the_handshake_is_told(server: Server) -> None:
    server.act = lambda connection: connection.shutdown(socket.SHUT_RDWR)
    server.speaks_first = True
    secure = server.url.replace("http:", "https:")
    with pytest.raises(EngineError, match=f"^the server at {secure} closed the connection$"):
        exchange(Site(secure), "GET", "/x", headers={}, limit_s=LIMIT_S)
