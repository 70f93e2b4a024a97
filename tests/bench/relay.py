"""A relay in front of one engine: what each chat request asked, what it cost, and when its first word came."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
LIMIT_S = 60.0  # of an engine's silence


@dataclass(frozen=True)
class Asked:
    """One chat request: tokens of the prompt, those of it that were read before, those of the answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_word_ms: float


@contextmanager
def relay(base_url: str, api_key: str | None, *, drops_stop: bool = False) -> Iterator[tuple[str, list[Asked]]]:
    """Within, a server at the address given passes all on to `base_url`; the list grows by each chat request.

    `drops_stop`: the engine is not told the stop words, as by a server that ignores them.
    """
    there = urlsplit(base_url)
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass_on(self, body: bytes | None) -> None:
            began_s = time.perf_counter()
            if body and drops_stop and self.path == CHAT:
                said: dict[str, Any] = json.loads(body)
                said.pop("stop", None)
                body = json.dumps(said).encode()
            connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=LIMIT_S)
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers.get("Content-Type", ""))
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                self._copy(response, began_s)
            except BrokenPipeError:
                pass  # who asked broke the answer off
            finally:
                connection.close()

        def _copy(self, response: http.client.HTTPResponse, began_s: float) -> None:
            first_ms, usage = 0.0, None
            while line := response.readline():
                self.wfile.write(line)
                if self.path != CHAT or not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                choices = chunk.get("choices") or [{}]
                if not first_ms and choices[0].get("delta", {}).get("content"):
                    first_ms = (time.perf_counter() - began_s) * 1000
                usage = chunk.get("usage") or usage
            if usage:
                cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
                asked.append(Asked(usage["prompt_tokens"], cached, usage["completion_tokens"], first_ms))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)
