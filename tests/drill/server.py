"""A model server that the drill holds in its hand: unique words for every answer, every prompt kept.

It speaks as much of the OpenAI chat API as a member needs. The part of the path before `/v1` names who
asks. A request of a seat in `holds` waits for `release`, so that the drill knows where everybody stands.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from modelpipes.values.deadline import Deadline

PIECES = 6  # of an answer; each is a chunk of the stream
PIECE_S = 0.001  # between two of them: a model takes its time, and a moment amid an answer can be hit
LOOK_S = 0.02  # between looks whether who asked still waits
LARGE_WORDS = 9_000  # 100 KB: more than a pipe holds, so that lines are written in parts


class Asked:
    """One request for an answer."""

    def __init__(self, serial: int, seat: str, messages: list[dict[str, str]], answer: list[str]) -> None:
        self.serial = serial
        self.seat = seat
        self.messages = messages
        self.answer = answer
        self.is_released = False


class Server:
    """The server, in threads of this process; `with` ends it. `news` is notified of every request."""

    def __init__(self, *, is_large: bool = False) -> None:
        """`is_large`: every answer is larger than a pipe."""
        self.news = threading.Condition()
        self.asked: list[Asked] = []
        self.holds: set[str] = set()
        self._words = LARGE_WORDS if is_large else PIECES
        self._serials = itertools.count(1)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.holds = set()
        self.release_all()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def url(self, seat: str) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/{seat}"

    def held(self) -> Asked | None:
        """The oldest request that waits; under `news`."""
        return next((asked for asked in self.asked if not asked.is_released), None)

    def wait_held(self, deadline: Deadline) -> Asked:
        """The oldest request that waits, when there is one; DeadlineError."""
        with self.news:
            while not (found := self.held()):
                deadline.check("request to the model server")
                self.news.wait(min(1.0, deadline.remaining_s()))
            return found

    def release(self, asked: Asked) -> None:
        with self.news:
            asked.is_released = True
            self.news.notify_all()

    def release_all(self) -> None:
        with self.news:
            for asked in self.asked:
                asked.is_released = True
            self.news.notify_all()

    def take(self, seat: str, messages: list[dict[str, str]], has_gone: Callable[[], bool]) -> Asked:
        """Note a request, and wait until it may be answered, or who asked has gone."""
        serial = next(self._serials)
        asked = Asked(serial, seat, messages, [f"{seat}{serial}.{i}" for i in range(self._words)])
        with self.news:
            asked.is_released = seat not in self.holds
            self.asked.append(asked)
            self.news.notify_all()
            while not asked.is_released and not has_gone():
                self.news.wait(LOOK_S)
            asked.is_released = True
        return asked


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    pause = threading.Event()  # never set

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.endswith("/v1/models"):
                self._answer(200, {"object": "list", "data": [{"id": "drill"}]})
            else:
                self._answer(404, {"error": {"message": "there is no such thing here"}})

        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            except (ConnectionResetError, json.JSONDecodeError):
                return  # who asked died amid its request
            if not self.path.endswith("/v1/chat/completions"):
                self._answer(404, {"error": {"message": "there is no such thing here"}})
                return
            asked = server.take(self.path.split("/")[1], body["messages"], self._has_gone)
            try:
                self._stream(asked)
            except (BrokenPipeError, ConnectionResetError):
                pass  # who asked has gone

        def _has_gone(self) -> bool:
            try:
                return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True

        def _stream(self, asked: Asked) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            size = -(-len(asked.answer) // PIECES)
            for i in range(0, len(asked.answer), size):
                words = " ".join(asked.answer[i : i + size])
                self._event({"choices": [{"index": 0, "delta": {"content": words if i == 0 else " " + words}}]})
                pause.wait(PIECE_S)
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            prompt = sum(len(message["content"]) for message in asked.messages) // 4
            self._event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": len(asked.answer)}})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
