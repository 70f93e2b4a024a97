"""Speak to a llama-server, or to any server of the OpenAI chat API."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias, Unpack

from modelpipes.engine.answers import COMPLETION, Answer, ChatStream, Given
from modelpipes.engine.refusal import refusal, refused_fields
from modelpipes.engine.thoughts import ThoughtSplitter
from modelpipes.errors import DeadlineError, EngineError, Refused, UsageError
from modelpipes.web.requests import Response, exchange
from modelpipes.web.site import Site, root_of

SHOWN_MODELS = 12  # of those that a server has, in a line
SILENCE_S = 120.0  # a large model that reads a long prompt on a processor is silent for as long
QUERY_LIMIT_S = 30.0  # counting tokens and the like; llama-server answers them beside a running answer


Asked: TypeAlias = str | Sequence[Mapping[str, str]]


class Client:
    """Talks to one server of the OpenAI protocol, as llama-server; safe to use from several threads at once.

        client = Client("http://127.0.0.1:8080")
        answer = client.chat("What is 3 and 4?", temperature=0)
        print(answer.text, answer.latency_ms, answer.usage)
        for piece in client.stream("Count from one to ten."):
            print(piece.content, end="", flush=True)

    What cannot be had raises Refused, with the server's own words, its HTTP status and the kind of fault; EngineError
    where nothing answers, or something else does; DeadlineError after a silence; UsageError where a model has no name.
    """

    def __init__(self, base_url: str, *, model_name: str | None = None, api_key: str | None = None) -> None:
        """`base_url` with or without `/v1`; EngineError where it is no address.

        `model_name` None: the only one that the server has. `api_key` None: none is sent. `https` trusts whom OpenSSL
        does, and the file that $SSL_CERT_FILE names.
        """
        self.root = root_of(base_url)
        self.site = Site(self.root)
        self.headers = {"User-Agent": "modelpipes", "Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self._model_name = model_name
        self._is_llama_server: bool | None = None
        self._refused: set[str] = set()  # fields that the server does not take
        self._begins_in_thoughts = False  # an answer of the model, without a tag that says so
        self._lock = threading.Lock()

    def chat(self, messages: Asked, *, silence_s: float | None = SILENCE_S, **sampling: Unpack[Given]) -> Answer:
        """The whole answer to `messages`, or to one text; what it takes and raises is that of `stream`."""
        with self.stream(messages, silence_s=silence_s, **sampling) as stream:
            return stream.whole()

    def complete(self, prompt: str, *, silence_s: float | None = SILENCE_S, **sampling: Unpack[Given]) -> Answer:
        """How the model goes on after `prompt`, which no template of a chat is put around; else as `chat`.

        Some servers have no such page: Refused, kind `missing`.
        """
        with ChatStream(self, {"prompt": prompt}, sampling, silence_s, COMPLETION) as stream:
            return stream.whole()

    def stream(
        self,
        messages: Asked,
        *,
        silence_s: float | None = SILENCE_S,
        may_stop: Sequence[str] = (),
        **sampling: Unpack[Given],
    ) -> ChatStream:
        """The answer to `messages`, or to one text, as it comes; nothing is sent before it is iterated.

        A message has `role` (`system`, `user`, `assistant`) and `content`. The stream ends in DeadlineError when the
        server shows no life for `silence_s` seconds (None: never). What is given of `Given` is sent, and what is not is
        left to the server, which may refuse what it cannot do; `may_stop` are words that end the answer where the
        server can do that.
        """
        texts = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return ChatStream(self, {"messages": [dict(text) for text in texts]}, sampling, silence_s, may_stop=may_stop)

    def is_llama_server(self) -> bool:
        """Whether the server has llama-server's own endpoints; asked once."""
        with self._lock:
            if self._is_llama_server is None:
                answer = self.get("/props", missing_is_none=True)
                self._is_llama_server = isinstance(answer, dict) and "default_generation_settings" in answer
            return self._is_llama_server

    def build(self) -> str:
        """Which build of llama.cpp a llama-server is, as `b11434-0d47e77d2`; empty where it does not say."""
        said = self._props().get("build_info")
        return said if isinstance(said, str) else ""

    def _props(self) -> dict[str, Any]:
        answer = self.get("/props", missing_is_none=True) if self.is_llama_server() else None
        return answer if isinstance(answer, dict) else {}

    def context_size(self) -> int | None:
        """The tokens that one conversation may have; None where the server does not say."""
        settings = self._props().get("default_generation_settings")
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
        response = self._exchange("GET", "/metrics", None, limit_s)
        if response.status != HTTPStatus.OK:
            raise refusal(self.root, response.status, response.body)
        return response.body.decode("utf-8", "replace")

    def is_healthy(self, limit_s: float = QUERY_LIMIT_S) -> bool:
        """Whether /health answers 200 now; says nothing about inference."""
        try:
            return self._exchange("GET", "/health", None, limit_s).status == HTTPStatus.OK
        except (EngineError, DeadlineError):
            return False

    def is_busy(self, limit_s: float) -> bool:
        """Whether a slot of a llama-server works now; False where it does not say within `limit_s`."""
        try:
            slots = self._exchange("GET", "/slots", None, limit_s).json()
        except (EngineError, DeadlineError, ValueError):
            return False
        return isinstance(slots, list) and any(isinstance(s, dict) and s.get("is_processing") for s in slots)

    # -- for ChatStream

    def complete_body(self, body: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
        """The request with what depends on the server, and what nobody asked for `added`, as far as it takes that."""
        llama_server = self.is_llama_server()
        if llama_server:
            # Progress events are also what makes the server notice, batch by batch, that we have gone.
            body = body | {"return_progress": True}
        with self._lock:
            if self._model_name is None and not llama_server:
                names = self.models()
                if not names:
                    raise EngineError(f"the server at {self.root} has no model: load one there first")
                if len(names) > 1:  # the first may be one that only embeds
                    raise UsageError(f"the server at {self.root} has {some(names)}: name one of these models")
                self._model_name = names[0]
            body = body | {name: value for name, value in added.items() if name not in self._refused}
            return body | {"model": self._model_name} if self._model_name else body

    def leave_out(self, refused: Refused, added: Iterable[str]) -> bool:
        """Whether a field that was `added` is what was refused; it is not sent any more."""
        named = refused_fields(refused, added)
        with self._lock:
            is_new = not named <= self._refused
            self._refused |= named
        return is_new

    def splitter(self) -> ThoughtSplitter:
        """What parts the thoughts from the next answer."""
        return ThoughtSplitter(begins_in_thoughts=self._begins_in_thoughts)

    def learn(self, splitter: ThoughtSplitter) -> None:
        """How answers begin, from the one that this parted."""
        self._begins_in_thoughts = splitter.begins_in_thoughts

    # -- short requests

    def _apply_template(self, messages: Sequence[Mapping[str, str]], limit_s: float = QUERY_LIMIT_S) -> str | None:
        if not self.is_llama_server():
            return None
        answer = self.post("/apply-template", {"messages": [dict(message) for message in messages]}, limit_s)
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        return prompt if isinstance(prompt, str) else None

    def _query(self, method: str, path: str, body: bytes | None, missing_is_none: bool, limit_s: float) -> Any:
        response = self._exchange(method, path, body, limit_s)
        has_no_such = 400 <= response.status < 500 and response.status != HTTPStatus.UNAUTHORIZED
        if missing_is_none and (has_no_such or "json" not in response.content_type):
            return None
        if not response.is_success:
            raise refusal(self.root, response.status, response.body)
        try:
            return response.json()
        except ValueError:
            raise EngineError(f"the server at {self.root} answers {path} with no JSON") from None

    def _exchange(self, method: str, path: str, body: bytes | None, limit_s: float) -> Response:
        return exchange(self.site, method, path, body, headers=self.headers, limit_s=limit_s)


def some(names: Sequence[str]) -> str:
    """Names in a line, the first of many."""
    shown = ", ".join(names[:SHOWN_MODELS])
    return f"{shown} and {len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else shown


def figure_of(metrics: str, name: str) -> float | None:
    """One figure of llama-server's metrics, as `n_decode_total`; None where it is not there."""
    for line in metrics.splitlines():
        if line.startswith(f"llamacpp:{name} "):
            with contextlib.suppress(ValueError):
                return float(line.rpartition(" ")[2])
    return None


def _encode(body: Any) -> bytes:
    return json.dumps(body).encode()
