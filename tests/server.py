"""A chat server that answers as a test tells it, and writes down what it is asked."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STEP_LIMIT_S = 30.0  # for a client that never takes the next step


class Scripted:
    """Not a llama-server, unless `pages` make it one."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status = 200
        self.body: list[bytes] = []
        self.answers: list[tuple[int, list[bytes]]] = []  # status and body of the next answers, before those above
        self.step: threading.Semaphore | None = None  # each part of an answer waits for it
        self.hold = False  # after the body: the connection stays open, with pings
        self.asked: list[dict[str, Any]] = []
        self.authorization: list[str | None] = []
        # Pages beside the chat: JSON for GET, a function of the request for POST.
        self.pages: dict[str, Any] = {"/v1/models": {"data": [{"id": "qwen"}]}}
        self.statuses: list[int] = []  # of the next pages, instead of 200
        self.released = threading.Event()
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = script.pages.get(self.path)
                if page is None:
                    self.answer(404, "text/plain", [b"no such page"])
                else:
                    status = script.statuses.pop(0) if script.statuses else 200
                    self.answer(status, "application/json", [json.dumps(page).encode()])

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path in script.pages:
                    self.answer(200, "application/json", [json.dumps(script.pages[self.path](body)).encode()])
                    return
                script.asked.append(body)
                script.authorization.append(self.headers["Authorization"])
                status, parts = script.answers.pop(0) if script.answers else (script.status, script.body)
                self.answer(status, "text/event-stream" if status == 200 else "application/json", parts)
                while script.hold and not script.released.wait(0.02):
                    self.wfile.write(b":\n\n")

            def answer(self, status: int, kind: str, parts: list[bytes]) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                for part in parts:
                    if script.step and kind == "text/event-stream":
                        script.step.acquire(timeout=STEP_LIMIT_S)
                    self.wfile.write(part)
                    self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that go away are what is tested

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def say(self, *chunks: object) -> None:
        """Answer from now on with these chunks."""
        self.body = events(*chunks)

    def be_llama_server(self, ctx_size: int, tokens_per_byte: float = 1.0) -> None:
        """Have llama-server's own pages, with a template that adds nothing and counts as told."""
        self.pages |= {
            "/props": {"default_generation_settings": {"n_ctx": ctx_size}},
            "/apply-template": lambda asked: {"prompt": "".join(m["content"] for m in asked["messages"])},
            "/tokenize": lambda asked: {"tokens": [0] * round(len(asked["content"].encode()) * tokens_per_byte)},
        }

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def events(*chunks: object) -> list[bytes]:
    """Chunks as a stream sends them."""
    return [b"data: " + (c if isinstance(c, bytes) else json.dumps(c).encode()) + b"\n\n" for c in chunks]


def piece(finish: str | None = None, **delta: str | None) -> dict[str, Any]:
    """A chunk with a piece of the answer."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The chunk that tells the usage."""
    return {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}
