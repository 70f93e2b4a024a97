"""What others answer under the gateway's address."""

from __future__ import annotations

from typing import Any

import httpx

from modelpipes.serving.gateway import Settings
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
    with gateway(pool, Settings(key="secret"), mounts=mounts) as running:
        with httpx.Client(base_url=running.url, headers=KEY, timeout=LIMIT_S) as client:
            told = client.post("/page/a/b", content=b"words")
            assert (told.status_code, told.text) == (203, "/page/a/b words")
            assert client.get("/v1/models").json()["object"] == "list"
            assert client.get("/v1/more").text == "/v1/more "
            assert client.get("/other").status_code == 404
        assert httpx.get(running.url + "/page/a", timeout=LIMIT_S).status_code == 401
