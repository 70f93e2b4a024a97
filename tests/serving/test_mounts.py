"""What others answer under the gateway's address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from modelpipes.serving.gateway import GatewaySettings
from tests.serving.pools import LIMIT_S, SmallPool, gateway

KEY = {"Authorization": "Bearer secret"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was asked for."""
    message = await receive()
    await send({"type": "http.response.start", "status": 203, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode() + b" " + message["body"]})


def test_what_is_mounted_answers_below_its_prefix_to_whoever_may_ask_and_hides_no_page() -> None:
    pool = SmallPool({})
    mounts = [("/v1", echo), ("/page", echo)]
    with gateway(pool, GatewaySettings(key="secret"), mounts=mounts) as running:
        with httpx.Client(base_url=running.url, headers=KEY, timeout=LIMIT_S) as client:
            told = client.post("/page/a/b", content=b"words")
            assert (told.status_code, told.text) == (203, "/page/a/b words")
            assert client.get("/v1/models").json()["object"] == "list"
            assert client.get("/v1/more").text == "/v1/more "
            assert client.get("/other").status_code == 404
        assert httpx.get(running.url + "/page/a", timeout=LIMIT_S).status_code == 401


def test_starlettes_static_files_are_served_below_a_prefix_and_refused_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "page.css").write_text("body { color: black }")
    mounts = [("/page", StaticFiles(directory=tmp_path))]
    with (
        gateway(SmallPool({}), mounts=mounts) as running,
        httpx.Client(base_url=running.url, timeout=LIMIT_S) as client,
    ):
        found = client.get("/page/page.css")
        assert (found.status_code, found.text) == (200, "body { color: black }")
        assert found.headers["content-type"] == "text/css; charset=utf-8"
        assert client.head("/page/page.css").headers["content-length"] == "21"
        known = client.get("/page/page.css", headers={"If-None-Match": found.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")
        assert client.get("/page/page.css", headers={"Range": "bytes=0-3"}).text == "body"
        for told, code in (
            (client.get("/page/none.css"), "not_found"),
            (client.get("/page/../../etc/passwd"), "not_found"),
            (client.post("/page/page.css"), "method_not_allowed"),
        ):
            assert told.json()["error"]["code"] == code


def test_what_a_mounted_application_refuses_is_told_in_its_words() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        raise HTTPException(409, "it is taken")

    with gateway(SmallPool({}), mounts=[("/page", refuse)]) as running:
        told = httpx.get(running.url + "/page/a", timeout=LIMIT_S)
    assert (told.status_code, told.json()["error"]["message"]) == (409, "it is taken")


def test_every_page_is_told_to_a_head_without_its_body_and_how_it_is_asked() -> None:
    with gateway(SmallPool({})) as running, httpx.Client(base_url=running.url, timeout=LIMIT_S) as client:
        for path in ("/health", "/metrics", "/openapi.json", "/residency", "/v1/models"):
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"") and int(head.headers["content-length"])
            assert set(client.post(path).headers["allow"].split(", ")) == {"GET", "HEAD"}
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/models/a/load"):
            told = client.get(path)
            assert (told.status_code, told.headers["allow"]) == (405, "POST")
            assert told.json()["error"]["code"] == "method_not_allowed"
        assert client.get("/models/a/logs?follow=").json()["error"]["code"] == "bad_query"
