"""Clients that mean harm or know no better: no hang, nobody past the key, no 5xx but the documented ones."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from modelpipes.serving.gateway import GatewaySettings
from modelpipes.serving.listening import MAX_HEAD_BYTES
from tests.models import scripted_model
from tests.serving.pools import LIMIT_S, Running, SmallPool, gateway

CASES = int(os.environ.get("HOSTILE_CASES", "300"))  # HOSTILE_CASES=10000 for the long run
OPERATIONS = 16  # of 17: schemathesis leaves out the page that it read the document from
BODY = b'{"model":"hello","prompt":"x","max_tokens":2}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"hello": scripted_model(folder / "hello.gguf", "Hello there, my friend.")}


@pytest.fixture(scope="module")
def strict(files: dict[str, Path]) -> Iterator[Running]:
    """A gateway of little patience."""
    limits = GatewaySettings(head_s=0.5, body_s=0.5, stall_s=0.5, max_body_bytes=100_000, max_lease_s=0.01)
    with gateway(SmallPool(files), limits) as running:
        yield running


@pytest.fixture(scope="module")
def locked(files: dict[str, Path]) -> Iterator[Running]:
    with gateway(SmallPool(files), GatewaySettings(key="geheim", head_s=0.5, body_s=0.5)) as running:
        yield running


def exchange(running: Running, *parts: bytes, half_close: bool = False) -> bytes:
    """Send, and read until the gateway closes; the deadline is the test."""
    with socket.create_connection(("127.0.0.1", running.port), LIMIT_S) as connected:
        data = b""
        try:
            for part in parts:
                connected.sendall(part)
            if half_close:
                connected.shutdown(socket.SHUT_WR)
            while piece := connected.recv(65536):
                data += piece
        except ConnectionError:
            pass  # refused in the middle of our sending
        return data


def status_of(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


def closing(request: bytes) -> bytes:
    """The request, with word that it is the last of its connection."""
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


def is_well(running: Running) -> bool:
    return httpx.get(running.url + "/health").status_code == 200


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA\x00: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n Folded: x\r\n\r\n",
        b"\xff\xfe / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1e3\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_closed(strict: Running, rubbish: bytes) -> None:
    data = exchange(strict, rubbish)
    assert data == b"" or 400 <= status_of(data) < 500
    assert is_well(strict)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.org\r\n\r\n", 400),
        (b"GET http://evil.org/v1/models HTTP/1.1\r\nHost: evil.org\r\n\r\n", 403),
        (b"GET /v1/models/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /v1/models/%2e%2e%2f%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"TRACE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_games_with_heads_are_refused(strict: Running, request_: bytes, status: int) -> None:
    data = exchange(strict, closing(request_))
    assert status_of(data) == status
    assert b"access-control" not in data.lower()
    assert is_well(strict)


def test_an_upgrade_is_declined(strict: Running) -> None:
    request = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    data = exchange(strict, request, b"\x81\x05hello")
    assert status_of(data) == 200
    assert data.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"GET /v1/mod",),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",),
        (b"\r\n\r\n\r\n",),
        (POST + b"Content-Length: 100\r\n\r\n", b"{"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nab"),
        (closing(GET)[:-2], b"X: y\r\n"),
    ],
)
def test_a_slow_writer_is_told_and_closed(strict: Running, parts: tuple[bytes, ...]) -> None:
    data = exchange(strict, *parts)
    assert status_of(data) == 408
    assert is_well(strict)


def test_a_slow_writer_of_a_second_request_is_closed_too(strict: Running) -> None:
    data = exchange(strict, GET, b"GET /v1/mod")
    assert status_of(data) == 200
    assert data.count(b"HTTP/1.1 408") == 1


@pytest.mark.parametrize("length", [b"Content-Length: 200000\r\n\r\n", b"Content-Length: 9999999999\r\n\r\n"])
def test_a_body_announced_too_large_is_refused_before_it_comes(strict: Running, length: bytes) -> None:
    assert status_of(exchange(strict, POST + b"Expect: 100-continue\r\n" + length)) == 413


def test_a_body_too_large_is_refused_and_the_refusal_arrives(strict: Running) -> None:
    for content in (bytes(5_000_000), (bytes(50_000) for _ in range(100))):
        answer = httpx.post(strict.url + "/v1/completions", content=content, timeout=LIMIT_S)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def test_an_endless_head_is_refused(strict: Running) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"x" * (2 * MAX_HEAD_BYTES)
    data = exchange(strict, head)
    assert data == b"" or status_of(data) == 431
    assert is_well(strict)


def test_pipelined_requests_are_answered_in_order(strict: Running) -> None:
    post = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    data = exchange(strict, post + GET + b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" + closing(GET))
    statuses = [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404, 200]


def test_a_flood_of_pipelined_requests_is_answered(strict: Running) -> None:
    data = exchange(strict, GET * 500 + closing(GET))
    assert data.count(b"HTTP/1.1 200") == 501


@pytest.mark.parametrize("body", [BODY, BODY[:-5]])
def test_a_client_that_closes_its_half_has_left(strict: Running, body: bytes) -> None:
    request = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + body
    data = exchange(strict, request, half_close=True)
    assert data == b"" or status_of(data) < 500
    strict.pool.wait_until(lambda: not strict.pool.grants)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"model":5}',
        b'{"model":"hello","prompt":"\xff\xfe"}',
        b'{"model":"\\ud800"}',
        b'{"model":"nobody\\r\\nX: y"}',
        b"[" * 50_000,
        b'{"prompt":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"model":"hello","prompt":"x"}' * 2,
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_body_that_makes_no_sense_is_the_clients_fault(strict: Running, body: bytes) -> None:
    answer = httpx.post(strict.url + "/v1/chat/completions", content=body, timeout=LIMIT_S)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


def test_too_many_connections_are_refused_and_the_others_served(files: dict[str, Path]) -> None:
    with gateway(SmallPool(files), GatewaySettings(max_connections=3)) as running:
        kept = [socket.create_connection(("127.0.0.1", running.port), LIMIT_S) for _ in range(3)]
        for connected in kept:
            connected.sendall(GET)
            assert status_of(connected.recv(65536)) == 200
        assert status_of(exchange(running)) == 503
        kept[0].sendall(GET)
        assert status_of(kept[0].recv(65536)) == 200
        for connected in kept:
            connected.close()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Authorization: geheim",
        b"Authorization: Bearer",
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Bearer geheim\x0bx",
        b"Authorization: Bearer GEHEIM",
        b"Authorization: Bearer geheim, Bearer geheim",
        b"Cookie: key=geheim",
        b"X-Api-Key: ",
        b"X_Api_Key: geheim",
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models",
        b"/health/..%2fv1/models",
        b"/health?key=geheim/../v1/models#",
        b"//v1/models",
        b"/v1/models;/health",
    ],
)
def test_nobody_gets_past_the_key(locked: Running, line: bytes, path: bytes) -> None:
    lines = line + b"\r\n" if line else b""
    data = exchange(locked, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + lines + b"Connection: close\r\n\r\n")
    if path.startswith(b"/health?"):
        assert data.endswith(b'{"status":"ok"}') or status_of(data) == 400
    else:
        assert status_of(data) in (400, 401)
    assert b"hello" not in data


def test_a_smuggled_request_needs_the_key_too(locked: Running) -> None:
    inner = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    first = b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
    assert b"hello" not in exchange(locked, first + inner + closing(inner))


def ask_at_random(operation: Any, mode: GenerationMode) -> int:
    """Requests to one operation, right or wrong as the document has it; how many there were."""
    documented = {int(status) for status in operation.definition.raw["responses"]} | {405}
    asked = 0

    @settings(
        max_examples=max(1, CASES // OPERATIONS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=CASES < 1000,
    )
    @given(case=operation.as_strategy(generation_mode=mode), names_model=st.booleans())
    def check(case: Any, names_model: bool) -> None:
        nonlocal asked
        asked += 1
        if names_model and isinstance(case.body, dict):
            case.body["model"] = "hello"
        answer = case.call(timeout=LIMIT_S)
        assert answer.status_code in documented
        if answer.status_code != 200 and case.method != "HEAD":
            assert json.loads(answer.content)["error"]["message"]

    try:
        check()
    except Unsatisfiable:
        pass  # nothing can be wrong about a request without parameters
    return asked


@pytest.mark.filterwarnings("default")  # of schemathesis and what it uses
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_document_get_what_it_says(strict: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(strict.url + "/openapi.json")
    operations: list[Any] = list(schema.get_all_operations())
    assert len(operations) == OPERATIONS
    asked = sum(ask_at_random(operation.ok(), mode) for operation in operations)
    assert asked > OPERATIONS
    assert is_well(strict)
