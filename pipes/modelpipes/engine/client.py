"""Speak to a llama-server, or to any server of the OpenAI chat API.

Over http.client: httpx brought the first token 0.7 ms later (median; 2.3 ms in place of 1.5), which is
most of what the pipes may cost, and took 60 ms to import.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from modelpipes.errors import DeadlineError, EngineError, PipesError

READ_BYTES = 65536  # what has come by then is taken at once; pieces that came together go on together
CONNECT_LIMIT_S = 10.0  # a handshake across any network is over by then
QUERY_LIMIT_S = 30.0  # counting tokens and the like; llama-server answers them beside a running answer
SHOWN_BODY_CHARS = 300  # of an error answer that is no JSON

Kind: TypeAlias = Literal["context", "template", "auth", "missing", "loading", "other"]


class Cancelled(PipesError):
    """We cancelled the answer."""


class Refused(EngineError):
    """The server answered with an error: its HTTP `status`, and what `kind` of fault it names."""

    def __init__(self, text: str, status: int, kind: Kind) -> None:
        super().__init__(text)
        self.status = status
        self.kind = kind


@dataclass
class Piece:
    """A piece of the answer, or of the thoughts before it."""

    content: str = ""
    thinking: str = ""


@dataclass(frozen=True)
class Reading:
    """How far the prompt is read, in tokens."""

    done: int
    total: int


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one answer, as the server counted them."""

    prompt_tokens: int
    completion_tokens: int


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # llama-server, LM Studio, vLLM
    reasoning: str | None = None  # Ollama, OpenRouter


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Progress(msgspec.Struct):
    total: int
    processed: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Timings(msgspec.Struct):
    predicted_n: int = 0
    predicted_per_second: float | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_progress: _Progress | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Client:
    """Talks to one server; safe to use from several threads at once."""

    def __init__(self, base_url: str, *, model_name: str | None = None, api_key: str | None = None) -> None:
        """`base_url` with or without `/v1`; `model_name` None: the only, or the first, that the server has."""
        self.root = root_of(base_url)
        self._model_name = model_name
        self._is_llama_server: bool | None = None
        self._lock = threading.Lock()
        self._address = urlsplit(self.root)
        # Reading the certificates takes 20 ms: only where they are used.
        self._tls = ssl.create_default_context() if self._address.scheme == "https" else None
        self._headers = {"User-Agent": "modelpipes", "Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        silence_s: float | None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> ChatStream:
        """The answer to `messages` as a stream; nothing is sent before it is iterated.

        The stream ends in DeadlineError when the server shows no life for `silence_s` (None: never).
        """
        body: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        body |= {key: value for key, value in given.items() if value is not None}
        return ChatStream(self, body, silence_s)

    def is_llama_server(self) -> bool:
        """Whether the server has llama-server's own endpoints; asked once."""
        with self._lock:
            if self._is_llama_server is None:
                answer = self.get("/props", missing_is_none=True)
                self._is_llama_server = isinstance(answer, dict) and "default_generation_settings" in answer
            return self._is_llama_server

    def context_size(self) -> int | None:
        """The tokens that one conversation may have; None where the server does not say."""
        if not self.is_llama_server():
            return None
        answer = self.get("/props", missing_is_none=True)
        settings = answer.get("default_generation_settings") if isinstance(answer, dict) else None
        size = settings.get("n_ctx") if isinstance(settings, dict) else None
        return size if isinstance(size, int) and size > 0 else None

    def count_tokens(self, messages: Sequence[Mapping[str, str]], limit_s: float | None = None) -> int | None:
        """The tokens of the prompt that `messages` make; None where the server cannot count.

        Refused, kind `template`, if the model's template does not take them; DeadlineError if the server says
        nothing for `limit_s` (at most 30 s).
        """
        limit_s = min(limit_s or QUERY_LIMIT_S, QUERY_LIMIT_S)
        prompt = self._apply_template(messages, limit_s)
        if prompt is None:
            return None
        # As llama-server reads a chat prompt: tools/server/server-common.cpp, tokenize_input_prompts.
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        answer = self.post("/tokenize", asked, limit_s)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        return len(tokens) if isinstance(tokens, list) else None

    def refuses_system(self) -> bool:
        """Whether the model's template refuses a system message, or drops it; False where unknown."""
        probe = uuid.uuid4().hex
        user = {"role": "user", "content": "Hello."}
        try:
            prompt = self._apply_template([{"role": "system", "content": probe}, user])
        except Refused:
            # A template that takes no user message alone either says nothing about system messages.
            with contextlib.suppress(Refused):
                return self._apply_template([user]) is not None
            return False
        return prompt is not None and probe not in prompt

    def models(self) -> list[str]:
        """The names of the models that the server has."""
        answer = self.get("/v1/models")
        entries = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(entries, list):
            raise EngineError(f"the server at {self.root} lists its models in an unknown form")
        return [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    def get(self, path: str, *, missing_is_none: bool = False, limit_s: float = QUERY_LIMIT_S) -> Any:
        """The JSON that the server answers; Refused, EngineError, or DeadlineError after a silence of `limit_s`."""
        return self._query("GET", path, None, missing_is_none, limit_s)

    def post(self, path: str, body: Any, limit_s: float) -> Any:
        """The JSON that the server answers to `body`; fails as `get` does."""
        return self._query("POST", path, _encode(body), False, limit_s)

    def metrics(self, limit_s: float = QUERY_LIMIT_S) -> str:
        """A llama-server's figures in Prometheus' text format; fails as `get` does."""
        response, answer = self._exchange("GET", "/metrics", None, limit_s)
        if response.status != HTTPStatus.OK:
            raise refusal(self.root, response.status, answer)
        return answer.decode("utf-8", "replace")

    def is_healthy(self, limit_s: float = QUERY_LIMIT_S) -> bool:
        """Whether /health answers 200 now; says nothing about inference."""
        try:
            with contextlib.closing(self.connect(limit_s)) as connection:
                connection.request("GET", self._path("/health"), headers=self._headers)
                return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def is_busy(self, limit_s: float) -> bool:
        """Whether a slot of a llama-server works now; False where it does not say within `limit_s`."""
        try:
            with contextlib.closing(self.connect(limit_s)) as connection:
                connection.request("GET", self._path("/slots"), headers=self._headers)
                slots = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return isinstance(slots, list) and any(isinstance(s, dict) and s.get("is_processing") for s in slots)

    # -- for ChatStream

    def complete_body(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request with what depends on the server added."""
        llama_server = self.is_llama_server()
        if llama_server:
            # Progress events are also what makes the server notice, batch by batch, that we have gone.
            body = body | {"return_progress": True}
        with self._lock:
            if self._model_name is None and not llama_server:
                names = self.models()
                if not names:
                    raise EngineError(f"the server at {self.root} has no model: load one there first")
                self._model_name = names[0]
            return body | {"model": self._model_name} if self._model_name else body

    def connect(self, limit_s: float) -> http.client.HTTPConnection:
        """A new connection: servers close kept ones unannounced, and one to this machine costs 0.2 ms."""
        host, port = self._address.hostname or "", self._address.port
        if self._tls:
            return http.client.HTTPSConnection(host, port, timeout=limit_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=limit_s)

    def send_chat(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> http.client.HTTPResponse:
        """Send a chat request; the response with its body still unread."""
        headers = self._headers | {"Accept": "text/event-stream"}
        connection.request("POST", self._path("/v1/chat/completions"), _encode(body), headers)
        return connection.getresponse()

    def _path(self, path: str) -> str:
        return self._address.path + path

    # -- short requests

    def _apply_template(self, messages: Sequence[Mapping[str, str]], limit_s: float = QUERY_LIMIT_S) -> str | None:
        if not self.is_llama_server():
            return None
        answer = self.post("/apply-template", {"messages": [dict(message) for message in messages]}, limit_s)
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        return prompt if isinstance(prompt, str) else None

    def _query(self, method: str, path: str, body: bytes | None, missing_is_none: bool, limit_s: float) -> Any:
        response, answer = self._exchange(method, path, body, limit_s)
        is_json = "json" in response.headers.get("Content-Type", "")
        has_no_such = (400 <= response.status < 500 and response.status != HTTPStatus.UNAUTHORIZED) or not is_json
        if missing_is_none and has_no_such:
            return None
        if not 200 <= response.status < 300:
            raise refusal(self.root, response.status, answer)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise EngineError(f"the server at {self.root} answers {path} with no JSON") from None

    def _exchange(
        self, method: str, path: str, body: bytes | None, limit_s: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            with contextlib.closing(self.connect(limit_s)) as connection:
                connection.request(method, self._path(path), body, self._headers)
                response = connection.getresponse()
                return response, response.read()
        except TimeoutError:
            raise DeadlineError(f"the server at {self.root} did not answer {path} for {limit_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(explain_transport(self.root, error)) from None


class ChatStream:
    """One answer as it comes: iterate it; `finish`, `usage` and `tokens_per_second` are known at its end."""

    def __init__(self, client: Client, body: dict[str, Any], silence_s: float | None) -> None:
        self.finish: str | None = None  # "stop", "length", or what else the server calls it
        self.usage: TokenUsage | None = None
        self.tokens_per_second: float | None = None
        self._client = client
        self._body = body
        self._silence_s = silence_s
        self._last_life_s = time.monotonic()
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None
        self._iterator: Generator[Piece | Reading] = self._iterate()

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> Piece | Reading:
        """The next piece; Cancelled, DeadlineError, Refused or EngineError where there is none."""
        return next(self._iterator)

    def cancel(self) -> None:
        """End the answer from any thread at any time; who iterates it gets Cancelled at once."""
        with self._lock:
            self._cancelled = True
            self._shut_socket()

    def close(self) -> None:
        """Close the connection; for the thread that iterates."""
        self._iterator.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _iterate(self) -> Generator[Piece | Reading]:
        try:
            self._check_cancelled()
            body = self._client.complete_body(self._body)
            limit_s = CONNECT_LIMIT_S if self._silence_s is None else min(CONNECT_LIMIT_S, self._silence_s)
            with contextlib.closing(self._client.connect(limit_s)) as connection:
                connection.connect()
                self._watch(connection.sock)
                self._last_life_s = time.monotonic()
                with self._client.send_chat(connection, body) as response:
                    yield from self._read_answer(response)
        except (OSError, http.client.HTTPException, EngineError) as error:
            self._check_cancelled()
            if isinstance(error, EngineError):
                raise
            if isinstance(error, TimeoutError) and self._socket:
                raise self._silent() from None
            raise EngineError(explain_transport(self._client.root, error)) from None
        finally:
            with self._lock:
                self._socket = None

    def _read_answer(self, response: http.client.HTTPResponse) -> Generator[Piece | Reading]:
        root = self._client.root
        if not 200 <= response.status < 300:
            raise refusal(root, response.status, response.read())
        if "event-stream" not in response.headers.get("Content-Type", ""):
            raise EngineError(f"the server at {root} does not stream: it is no chat server")
        rest, is_over = b"", False
        while not is_over and (data := response.read1(READ_BYTES)):
            self._check_cancelled()
            *lines, rest = (rest + data).split(b"\n")
            piece, reading = Piece(), None
            for line in lines:
                if line.startswith(b"error:"):
                    raise refusal(root, response.status, line[len(b"error:") :])
                event = line[len(b"data:") :].strip() if line.startswith(b"data:") else b""
                is_over = is_over or event == b"[DONE]"
                if event and not is_over:
                    reading = self._take(event, piece) or reading
                    self._last_life_s = time.monotonic()
            if reading:
                yield reading
            if piece.content or piece.thinking:
                yield piece
                # We may have been suspended for as long as our caller liked.
                self._last_life_s = time.monotonic()
            self._check_silence()
        self._check_cancelled()
        if not is_over and self.finish is None:
            raise EngineError(f"the server at {root} closed the connection amid its answer")

    def _take(self, event: bytes, piece: Piece) -> Reading | None:
        """Take in one event: what it adds to the piece, or how far the prompt is read."""
        root = self._client.root
        try:
            chunk = _decode_chunk(event)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            shown = event[:SHOWN_BODY_CHARS].decode("utf-8", "replace")
            raise EngineError(f"the server at {root} sent what is no chat chunk ({error}): {shown!r}") from None
        if chunk.error is not None:
            raise refusal(root, 500, event)
        if chunk.usage is not None:
            self.usage = TokenUsage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        if chunk.timings is not None and chunk.timings.predicted_n > 1:
            # The first token belongs to the prompt's time: llama.cpp counts it at no cost.
            self.tokens_per_second = chunk.timings.predicted_per_second
        for choice in chunk.choices[:1]:
            if choice.delta is not None:
                piece.thinking += choice.delta.reasoning_content or choice.delta.reasoning or ""
                piece.content += choice.delta.content or ""
            if choice.finish_reason is not None:
                self.finish = choice.finish_reason
        progress = chunk.prompt_progress
        return Reading(progress.processed, progress.total) if progress else None

    # -- its end

    def _watch(self, connected: socket.socket) -> None:
        """Remember the socket as soon as there is one: it is what a cancel shuts."""
        connected.settimeout(self._silence_s)
        with self._lock:
            self._socket = connected
            if self._cancelled:
                self._shut_socket()

    def _shut_socket(self) -> None:
        if self._socket is not None:
            # Of socket.socket, not of SSLSocket: that one throws away the state that the reader uses.
            # Already closed is as good as shut.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled("the answer was cancelled")

    def _check_silence(self) -> None:
        """Called for all that arrives: pings alone show that the server lives, not that it works."""
        if self._silence_s is not None and time.monotonic() - self._last_life_s > self._silence_s:
            raise self._silent()

    def _silent(self) -> DeadlineError:
        return DeadlineError(f"the server at {self._client.root} was silent for {self._silence_s:g} s")


def root_of(base_url: str) -> str:
    """The address of a server without `/v1`; EngineError if it is none."""
    root = base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(root)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EngineError(f"{base_url!r} is no server address: it looks like http://127.0.0.1:8080")
    return root


def refusal(root: str, status: int, body: bytes) -> Refused:
    """The error that a server's answer stands for, with the server's own words."""
    text, type_name, code = _server_words(body)
    # An error inside a stream comes with its own code (llama-server: error.code).
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    kind = _kind_of(status, type_name, text)
    # A template's own complaint comes after pages of its source.
    said = " ".join(text.rpartition("Jinja Exception:")[2].split()) or f"HTTP {status}"
    return Refused(f"the server at {root} refuses: {said}", status, kind)


def _server_words(body: bytes) -> tuple[str, str, Any]:
    """Message, type and code of an error in any of the usual forms."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")[:SHOWN_BODY_CHARS], "", None
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or json.dumps(error)
        return str(message), str(error.get("type", "")), error.get("code")
    return str(error), "", None


def _kind_of(status: int, type_name: str, text: str) -> Kind:
    words = text.lower()
    # llama-server names it; the others (vLLM, LM Studio, Ollama) only write of it.
    if type_name == "exceed_context_size_error" or any(
        phrase in words for phrase in ("context length", "context size", "context window", "maximum context")
    ):
        return "context"
    # From minja and Jinja: raise_exception in the template, or an error of its own.
    if any(word in words for word in ("template", "jinja", "roles must alternate", "system role", "system message")):
        return "template"
    if status in (401, 403):
        return "auth"
    if status == 404:
        return "missing"
    if status == 503:
        return "loading"
    return "other"


def figure_of(metrics: str, name: str) -> float | None:
    """One figure of llama-server's metrics, as `n_decode_total`; None where it is not there."""
    for line in metrics.splitlines():
        if line.startswith(f"llamacpp:{name} "):
            with contextlib.suppress(ValueError):
                return float(line.rpartition(" ")[2])
    return None


def explain_transport(root: str, error: Exception) -> str:
    """One line for a request that did not come through."""
    if isinstance(error, ConnectionRefusedError | TimeoutError | socket.gaierror):
        return f"no server answers at {root}: is it running?"
    if isinstance(error, ConnectionError | http.client.IncompleteRead | http.client.RemoteDisconnected):
        return f"the server at {root} closed the connection"
    return f"the server at {root} cannot be spoken to: {error or type(error).__name__}"


def _encode(body: Any) -> bytes:
    return json.dumps(body).encode()
