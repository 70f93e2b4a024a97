"""The gateway as its clients see it, in front of real engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from modelpipes.errors import PipesError, UsageError
from modelpipes.serving.gateway import GatewaySettings, split_events
from modelpipes.serving.grant import Grant
from modelpipes.serving.listening import check_listen, parse_listen
from tests.models import scripted_model
from tests.serving.pools import ENGINE_KEY, LIMIT_S, Running, SmallPool, gateway

HELLO = "Hello there, my friend."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "hello": scripted_model(folder / "hello.gguf", HELLO),
        "endless": scripted_model(folder / "endless.gguf", " on and on", endless=True, context=1 << 20),
    }


@pytest.fixture(scope="module")
def shared(files: dict[str, Path]) -> Iterator[Running]:
    """A gateway that no test harms."""
    with gateway(SmallPool(files)) as running:
        yield running


@pytest.fixture
def own(files: dict[str, Path]) -> Iterator[Running]:
    """A gateway and engines for one test alone."""
    with gateway(SmallPool(files, ctx_size=32768), GatewaySettings(max_waiting=2)) as running:
        yield running


@pytest.fixture
def client(shared: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared.url, timeout=LIMIT_S) as client:
        yield client


def chat(model: str | None = "hello", **more: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    return named | {"messages": [{"role": "user", "content": "Hi."}]} | more


def code_of(answer: httpx.Response) -> str:
    body = answer.json()
    assert set(body) == {"error"}
    assert body["error"]["message"]
    return str(body["error"]["code"])


def content_of(stream: str) -> str:
    """The words of a stream's events."""
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


# -- OpenAI's API


def test_an_answer_comes_whole(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == HELLO
    assert "access-control-allow-origin" not in answer.headers


def test_what_follows_the_path_in_a_request_gets_into_none_to_the_engine(client: httpx.Client) -> None:
    assert client.post("/v1/chat/completions%0a", json=chat()).status_code == 200  # Python's $ lets a newline pass


def test_a_stream_is_passed_on_untouched(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat(stream=True))
    assert answer.headers["content-type"] == "text/event-stream"
    assert content_of(answer.text) == HELLO
    assert answer.text.endswith("data: [DONE]\n\n")


def test_the_openai_library_works_against_it(shared: Running) -> None:
    with openai.OpenAI(base_url=shared.url + "/v1", api_key="any", max_retries=0) as library:
        assert [model.id for model in library.models.list()] == ["hello", "endless"]
        assert library.models.retrieve("hello").owned_by == "modelpipes"
        question: Any = [{"role": "user", "content": "Hi."}]
        whole = library.chat.completions.create(model="hello", messages=question)
        assert whole.choices[0].message.content == HELLO
        chunks = library.chat.completions.create(model="also-hello", messages=question, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELLO
        assert library.completions.create(model="hello", prompt="Hi.").choices[0].text == HELLO
        with pytest.raises(openai.NotFoundError) as raised:
            library.chat.completions.create(model="nobody", messages=question)
        assert raised.value.code == "model_not_found"


def raw(url: str, request: str, body: bytes = b"") -> tuple[str, bytes]:
    """The head and the body of what comes until the connection ends."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(f"{request}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        came = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, rest = came.partition(b"\r\n\r\n")
    return head.decode().lower(), rest


@pytest.mark.parametrize("more", ["", "\r\nConnection: keep-alive", "\r\nHost: localhost"])
def test_who_asks_by_http_1_0_gets_no_chunks_and_a_stream_ends_with_the_connection(shared: Running, more: str) -> None:
    body = json.dumps(chat(stream=True)).encode()
    head, stream = raw(shared.url, f"POST /v1/chat/completions HTTP/1.0{more}", body)
    assert "transfer-encoding" not in head and "connection: close" in head
    assert stream.startswith(b"data: {") and stream.endswith(b"data: [DONE]\n\n")
    assert content_of(stream.decode()) == HELLO


@pytest.mark.parametrize("page", ["GET /v1/models", "GET /health", "GET /metrics", "GET /models/hello/logs", "GET /no"])
def test_every_page_is_there_for_http_1_0(shared: Running, page: str) -> None:
    head, body = raw(shared.url, f"{page} HTTP/1.0")
    assert "transfer-encoding" not in head
    assert not body.startswith(b"%x\r\n" % len(body.split(b"\r\n")[-1]))


def test_http_1_1_has_chunks_as_before(shared: Running) -> None:
    body = json.dumps(chat(stream=True)).encode()
    request = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close"
    assert "transfer-encoding: chunked" in raw(shared.url, request, body)[0]


@pytest.mark.parametrize("name", ["hello", "also-hello"])
@pytest.mark.parametrize("page", ["/v1/chat/completions", "/v1/completions"])
def test_the_model_of_an_answer_is_the_name_that_was_asked_for(client: httpx.Client, name: str, page: str) -> None:
    question = chat(name) if page.startswith("/v1/chat") else {"model": name, "prompt": "Hi."}
    assert client.post(page, json=question).json()["model"] == name
    stream = client.post(page, json=question | {"stream": True}).text
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {name}
    assert ".gguf" not in stream


def test_the_only_model_need_not_be_named(files: dict[str, Path], client: httpx.Client) -> None:
    assert code_of(client.post("/v1/chat/completions", json=chat(None))) == "model_required"
    with gateway(SmallPool({"hello": files["hello"]})) as running:
        answer = httpx.post(running.url + "/v1/chat/completions", json=chat(None))
        assert answer.json()["choices"][0]["message"]["content"] == HELLO


def test_what_the_engine_refuses_is_passed_on(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat() | {"messages": 5})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert client.post("/v1/embeddings", json={"model": "hello", "input": "x"}).status_code == 501


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("POST", "/models/nobody/load", 404, "model_not_found"),
        ("POST", "/models/nobody/lease", 404, "model_not_found"),
        ("GET", "/models/nobody/logs", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/models/hello/load", 405, "method_not_allowed"),
        ("GET", "/models/hello/logs?follow=x", 400, "bad_query"),
    ],
)
def test_a_wrong_request_is_told_as_openai_does(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert status != 405 or answer.headers["allow"]


# -- what tells and steers


def test_health_figures_residency_and_document_are_served(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    client.post("/v1/completions", json={"model": "hello", "prompt": "x"})
    figures = client.get("/metrics").text
    assert "small_pool_engines 2" in figures
    assert 'modelpipes_gateway_answers_total{path="/v1/completions",status="200"}' in figures
    assert client.get("/residency").json()["resident"][0]["name"] == "hello"
    assert client.get("/openapi.json").json()["openapi"] == "3.1.0"


def test_models_are_loaded_pinned_and_unloaded(client: httpx.Client) -> None:
    state = {"name": "endless", "state": "ready", "pinned": False}
    assert client.post("/models/also-endless/load").json() == state
    assert client.post("/models/endless/pin").json() == state | {"pinned": True}
    assert client.post("/models/endless/unpin").json() == state
    assert client.post("/models/endless/unload").json() == state | {"state": "unloaded"}


def test_logs_are_told_and_followed(client: httpx.Client) -> None:
    client.post("/models/hello/load")
    assert client.get("/models/hello/logs").text.count("\n") > 1
    with client.stream("GET", "/models/hello/logs?follow=1") as answer:
        assert next(line for line in answer.iter_lines() if line == "and now?")


# -- leases


def test_a_lease_tells_the_address_and_lives_as_long_as_its_answer(own: Running) -> None:
    with httpx.stream("POST", own.url + "/models/also-hello/lease", timeout=LIMIT_S) as answer:
        lines = answer.iter_lines()
        lease = json.loads(next(lines))
        assert (lease["name"], lease["key"], lease["path"]) == ("hello", ENGINE_KEY, "")
        direct = httpx.post(
            f"http://{lease['host']}:{lease['port']}/v1/chat/completions",
            json=chat(),
            headers={"Authorization": "Bearer " + lease["key"]},
        )
        assert direct.json()["choices"][0]["message"]["content"] == HELLO
        assert len(own.pool.grants) == 1
        own.call(own.pool.grants[0].drain.set)
        assert json.loads(next(lines)) == {"drain": True}
        assert len(own.pool.grants) == 1
    own.pool.wait_until(lambda: not own.pool.grants)


def test_a_lease_ends_when_its_time_is_over(files: dict[str, Path]) -> None:
    with gateway(SmallPool(files), GatewaySettings(max_lease_s=0.05)) as running:
        lines = httpx.post(running.url + "/models/hello/lease", timeout=LIMIT_S).text.splitlines()
        assert json.loads(lines[-1]) == {"expired": True}
        running.pool.wait_until(lambda: not running.pool.grants)


def test_a_lease_ends_when_its_engine_dies(own: Running) -> None:
    with httpx.stream("POST", own.url + "/models/hello/lease", timeout=LIMIT_S) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(own.pool.engines["hello"].pid, signal.SIGKILL)
        assert [json.loads(line) for line in lines] == [{"lost": True}]


# -- clients that leave, engines that die


def asked(own: Running, model: str, **more: Any) -> socket.socket:
    """The connection of a request that was sent whole."""
    if own.server.listen.path:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(LIMIT_S)
        connected.connect(own.server.listen.path)
    else:
        connected = socket.create_connection(("127.0.0.1", own.port), LIMIT_S)
    body = json.dumps(chat(model, **more)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    connected.sendall(head + body)
    return connected


def stream_of(own: Running, model: str = "endless") -> socket.socket:
    """A stream that has begun; the connection to it."""
    connected = asked(own, model, stream=True)
    while b'"content":"' not in connected.recv(65536):
        pass
    return connected


def is_idle(own: Running, model: str) -> bool:
    """Whether the engine computes nothing."""
    slots = httpx.get(
        own.pool.engines[model].base_url + "/slots", headers={"Authorization": "Bearer " + ENGINE_KEY}
    ).json()
    return not any(slot["is_processing"] for slot in slots)


# llama-server looks once a second whether the client of a whole answer has left; any other request that it
# answers meanwhile, such as a look at its slots, starts that second anew (server_response_reader::next).
LOOK_S = 1.3


def wait_until_idle(own: Running, model: str) -> None:
    """Wait for what the engine tells nobody."""
    pause = threading.Event()
    for _ in range(int(LIMIT_S / LOOK_S)):
        pause.wait(LOOK_S)
        if is_idle(own, model):
            return
    raise AssertionError("the engine computes on")


def test_a_client_that_leaves_a_stream_cancels_it(own: Running) -> None:
    connected = stream_of(own)
    assert len(own.pool.grants) == 1
    connected.close()
    own.pool.wait_until(lambda: not own.pool.grants)
    wait_until_idle(own, "endless")


def test_a_client_that_leaves_before_the_answer_cancels_it(own: Running) -> None:
    connected = asked(own, "endless")
    own.pool.wait_until(lambda: own.pool.granted == 1)
    connected.close()
    own.pool.wait_until(lambda: not own.pool.grants)
    wait_until_idle(own, "endless")


def test_a_client_that_leaves_the_queue_is_forgotten(own: Running) -> None:
    own.pool.gate = own.call(asyncio.Event)
    connected = asked(own, "hello")
    own.pool.wait_until(lambda: bool(own.pool.waiting))
    connected.close()
    own.pool.wait_until(lambda: not own.pool.waiting)
    assert own.pool.granted == 0


def test_a_client_that_leaves_pipelined_requests_cancels_them(own: Running) -> None:
    connected = stream_of(own)
    connected.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
    connected.close()
    own.pool.wait_until(lambda: not own.pool.grants)


def kill_engine(own: Running, model: str) -> None:
    os.kill(own.pool.engines[model].pid, signal.SIGKILL)


def test_an_engine_that_dies_before_the_answer_is_asked_again(own: Running) -> None:
    def kill_the_first(grant: Grant) -> None:
        if own.pool.granted == 1:
            kill_engine(own, grant.name)

    own.pool.on_grant = kill_the_first
    answer = httpx.post(own.url + "/v1/chat/completions", json=chat(), timeout=LIMIT_S)
    assert answer.json()["choices"][0]["message"]["content"] == HELLO
    assert own.pool.granted == 2
    assert not own.pool.grants
    assert "modelpipes_gateway_again_total 1.0" in httpx.get(own.url + "/metrics").text


def test_an_engine_that_dies_twice_is_one_clear_error(own: Running) -> None:
    own.pool.on_grant = lambda grant: kill_engine(own, grant.name)
    answer = httpx.post(own.url + "/v1/chat/completions", json=chat(stream=True), timeout=LIMIT_S)
    assert (answer.status_code, code_of(answer)) == (502, "engine_lost")
    assert own.pool.granted == 2
    assert not own.pool.grants


def test_an_engine_that_dies_in_a_stream_ends_it_with_one_error_event(own: Running) -> None:
    with httpx.stream("POST", own.url + "/v1/chat/completions", json=chat("endless", stream=True)) as answer:
        events = (line for line in answer.iter_lines() if line)
        assert "content" in next(events)
        kill_engine(own, "endless")
        last = list(events)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_lost"
    own.pool.wait_until(lambda: not own.pool.grants)
    assert httpx.post(own.url + "/v1/chat/completions", json=chat()).status_code == 200


def test_the_openai_library_raises_when_an_engine_dies_in_a_stream(own: Running) -> None:
    with openai.OpenAI(base_url=own.url + "/v1", api_key="any", max_retries=0) as library:
        chunks = library.chat.completions.create(
            model="endless", messages=[{"role": "user", "content": "Hi."}], stream=True
        )
        next(iter(chunks))
        kill_engine(own, "endless")
        with pytest.raises(openai.APIError, match="broke off"):
            list(chunks)


# -- limits


def test_too_many_that_wait_are_refused_with_a_time_to_come_back(own: Running) -> None:
    own.pool.gate = own.call(asyncio.Event)
    url = own.url + "/v1/chat/completions"
    with ThreadPoolExecutor(2) as others:
        waiting = [others.submit(httpx.post, url, json=chat(), timeout=LIMIT_S) for _ in range(2)]
        own.pool.wait_until(lambda: len(own.pool.waiting) == 2)
        refused = httpx.post(url, json=chat())
        assert (refused.status_code, code_of(refused)) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        own.call(own.pool.gate.set)
        assert [future.result(LIMIT_S).status_code for future in waiting] == [200, 200]


def test_an_answer_that_takes_too_long_is_ended(files: dict[str, Path]) -> None:
    with gateway(SmallPool(files, ctx_size=32768), GatewaySettings(max_request_s=0.3)) as running:
        url = running.url + "/v1/chat/completions"
        answer = httpx.post(url, json=chat("endless"), timeout=LIMIT_S)
        assert (answer.status_code, code_of(answer)) == (504, "timeout")
        stream = httpx.post(url, json=chat("endless", stream=True), timeout=LIMIT_S).text
        assert json.loads(stream.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        running.pool.wait_until(lambda: not running.pool.grants)


def test_a_client_that_reads_nothing_is_left(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "s"  # a Unix socket holds less unread than a port
    with gateway(SmallPool(files, ctx_size=32768), GatewaySettings(stall_s=0.3), f"unix:{path}") as running:
        with stream_of(running):
            running.pool.wait_until(lambda: not running.pool.grants)
        assert "left_total 0.0" in figures_of(path)


def figures_of(path: Path) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.get("http://localhost/metrics").text


def test_many_streams_run_at_once(shared: Running) -> None:
    def one(_: int) -> str:
        answer = httpx.post(shared.url + "/v1/chat/completions", json=chat(stream=True), timeout=LIMIT_S)
        return content_of(answer.text)

    with ThreadPoolExecutor(32) as clients:
        assert list(clients.map(one, range(100))) == [HELLO] * 100
    shared.pool.wait_until(lambda: not shared.pool.grants)


# -- keys and names


def test_a_key_is_demanded_for_all_but_health(files: dict[str, Path]) -> None:
    with (
        gateway(SmallPool(files), GatewaySettings(key="geheim")) as running,
        httpx.Client(base_url=running.url) as client,
    ):
        assert client.get("/health").status_code == 200
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic geheim"},
            {"x-api-key": "geheimx"},
        ):
            for path in ("/v1/models", "/metrics", "/residency", "/openapi.json", "/nowhere", "/health/", "//health"):
                answer = client.get(path, headers=given)
                assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")
        for given in ({"Authorization": "Bearer geheim"}, {"authorization": "bearer geheim"}, {"X-API-Key": "geheim"}):
            assert client.get("/v1/models", headers=given).status_code == 200
        # With a key the name does not matter: a browser cannot know the key.
        named = {"Host": "gateway.example.org", "X-API-Key": "geheim"}
        assert client.get("/v1/models", headers=named).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example.org", "evil.example.org:80", "192.168.1.7:9090", "localhost.evil.org", ""]
)
def test_without_a_key_a_foreign_name_is_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/v1/models", headers={"Host": host})
    assert (answer.status_code, code_of(answer)) == (403, "bad_host")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9090", "[::1]:9090", "LOCALHOST:1", "127.9.9.9"])
def test_without_a_key_this_machines_names_will_do(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "given", [{"Origin": "https://evil.example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_without_a_key_another_sites_page_is_refused(client: httpx.Client, given: dict[str, str]) -> None:
    answer = client.post("/models/hello/unload", headers=given)
    assert (answer.status_code, code_of(answer)) == (403, "bad_origin")
    assert client.get("/v1/models", headers={"Origin": "http://localhost:3000"}).status_code == 200


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:8", "http://[::1]:3000", "http://localhost"]
)
def test_a_page_of_this_machine_is_let_in_and_its_browser_told(client: httpx.Client, origin: str) -> None:
    asked = client.options("/v1/chat/completions", headers={"Origin": origin, **PREFLIGHT})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, origin)
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    given = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    for answer in (
        client.get("/v1/models", headers=given),
        client.post("/v1/chat/completions", headers=given, json=chat(stream=True)),
        client.post("/v1/chat/completions", headers=given, json=chat("nobody")),
    ):
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example.org", "null", "app://obsidian.md", "http://localhost.evil.org"]
)
def test_a_foreign_page_reads_and_changes_nothing(client: httpx.Client, origin: str) -> None:
    for path in ("/v1/chat/completions", "/models/hello/unload", "/metrics"):
        asked = client.options(path, headers={"Origin": origin, **PREFLIGHT})
        assert (asked.status_code, code_of(asked)) == (403, "bad_origin")
        answer = client.post(path, headers={"Origin": origin}, json=chat())
        assert (answer.status_code, code_of(answer)) == (403, "bad_origin")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/models/hello/unload", "/metrics", "/residency", "/leases"])
def test_what_is_no_clients_page_is_for_pages_of_the_gateway_alone(client: httpx.Client, path: str) -> None:
    other = client.post(path, headers={"Origin": "http://localhost:3000"})
    assert (other.status_code, code_of(other)) == (403, "bad_origin")
    assert client.options(path, headers={"Origin": "http://localhost:3000", **PREFLIGHT}).status_code == 403
    own = client.get("/metrics", headers={"Origin": str(client.base_url).rstrip("/")})
    assert own.status_code == 200


def test_a_preflight_needs_no_key_and_pages_that_are_named_are_let_in(files: dict[str, Path]) -> None:
    settings = GatewaySettings(key="geheim", origins=("https://chat.example.org", "app://obsidian.md"))
    with gateway(SmallPool(files), settings) as running, httpx.Client(base_url=running.url, timeout=LIMIT_S) as client:
        for origin, status in (
            ("https://chat.example.org", 204), ("app://obsidian.md", 204), ("http://localhost:1", 204),
            ("https://chat.example.org:8443", 403), ("null", 403),
        ):  # fmt: skip
            asked = client.options("/v1/models", headers={"Origin": origin, **PREFLIGHT})
            assert asked.status_code == status
            keyed = client.get("/v1/models", headers={"Origin": origin, "Authorization": "Bearer geheim"})
            assert keyed.status_code == 200
            assert ("access-control-allow-origin" in keyed.headers) == (status == 204)
        assert client.get("/v1/models", headers={"Origin": "https://chat.example.org"}).status_code == 401
        steered = {"Origin": "https://chat.example.org", "Authorization": "Bearer geheim"}
        assert client.post("/models/hello/unload", headers=steered).status_code == 403
        assert client.options("/v1/models").status_code == 401  # no browser's question


def test_any_page_may_be_let_in(files: dict[str, Path]) -> None:
    with gateway(SmallPool(files), GatewaySettings(key="geheim", origins=("*",))) as running:
        asked = httpx.options(running.url + "/v1/models", headers={"Origin": "https://x.example.org", **PREFLIGHT})
        assert asked.headers["access-control-allow-origin"] == "https://x.example.org"


@pytest.mark.parametrize("listen", ["0.0.0.0:9090", "192.168.1.7:80", "[::]:9090", "example.org:9090"])
def test_an_open_address_needs_a_key(listen: str) -> None:
    with pytest.raises(UsageError, match="set a key"):
        check_listen(listen, "")
    check_listen(listen, "key")


@pytest.mark.parametrize("listen", ["127.0.0.1:9090", "localhost:0", "[::1]:9090", "unix:/run/x.sock"])
def test_a_closed_address_needs_none(listen: str) -> None:
    check_listen(listen, "")
    assert str(parse_listen(listen)) == listen


@pytest.mark.parametrize("listen", ["", "9090", "localhost", ":9090", "localhost:x", "localhost:65536", "unix:"])
def test_what_is_no_address_is_told(listen: str) -> None:
    with pytest.raises(UsageError, match="no place to listen"):
        check_listen(listen, "key")


# -- where it listens, and its end


def test_it_listens_on_a_unix_socket_for_its_owner_alone(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with gateway(SmallPool(files), listen=f"unix:{path}") as running:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url=running.url) as client:
            assert content_of(client.post("/v1/chat/completions", json=chat(stream=True)).text) == HELLO
        with (
            pytest.raises(PipesError, match=r"cannot listen on unix:.*in use"),
            gateway(SmallPool({}), listen=f"unix:{path}"),
        ):
            pass
    assert not path.exists()


def test_the_socket_of_a_killed_gateway_is_taken_over(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with gateway(SmallPool({}), listen=f"unix:{path}"):
        assert "modelpipes_gateway" in figures_of(path)
    path.write_text("a file")
    with pytest.raises(PipesError, match="cannot listen"), gateway(SmallPool({}), listen=f"unix:{path}"):
        pass
    assert path.read_text() == "a file"


def test_a_taken_port_is_told(shared: Running) -> None:
    with (
        pytest.raises(PipesError, match="cannot listen on 127"),
        gateway(SmallPool({}), listen=f"127.0.0.1:{shared.port}"),
    ):
        pass


def test_stopping_lets_answers_end_and_ends_leases_and_what_is_endless(files: dict[str, Path]) -> None:
    pool = SmallPool(files, ctx_size=32768)
    with gateway(pool) as running, httpx.Client(timeout=LIMIT_S) as client:
        url = running.url
        with client.stream("POST", url + "/models/hello/lease") as lease, stream_of(running) as stream:
            lines = lease.iter_lines()
            next(lines)
            with ThreadPoolExecutor(1) as other:
                stopped = other.submit(running.stop)
                assert json.loads(next(lines)) == {"drain": True}
                data = b""
                while piece := stream.recv(65536):
                    data = (data + piece)[-1000:]
                assert b'"code":"shutting_down"' in data
                assert data.endswith(b"0\r\n\r\n")
                stopped.result(LIMIT_S)
        assert not pool.grants
        with pytest.raises(httpx.ConnectError):
            client.get(url + "/health")


@pytest.mark.parametrize(
    ("data", "whole", "begun"),
    [
        (b"", b"", b""),
        (b"data: 1\n\n", b"data: 1\n\n", b""),
        (b"data: 1\n\ndata: 2", b"data: 1\n\n", b"data: 2"),
        (b"data: 1\n", b"", b"data: 1\n"),
        (b"\n\nx", b"\n\n", b"x"),
    ],
)
def test_a_stream_is_cut_between_events(data: bytes, whole: bytes, begun: bytes) -> None:
    assert split_events(data) == (whole, begun)
