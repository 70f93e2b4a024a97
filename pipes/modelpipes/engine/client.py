"""Speak to a llama-server, or to any server of the OpenAI chat API."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, ClassVar, TypeAlias, TypedDict, Unpack

from modelpipes.engine.chunks import ERROR_EVENT, HalfJoiner, read_chunk
from modelpipes.engine.refusal import SHOWN_BODY_CHARS, refusal, refused_fields
from modelpipes.engine.thoughts import ThoughtSplitter
from modelpipes.errors import DeadlineError, EngineError, PipesError, Refused, UsageError
from modelpipes.web.requests import Response, exchange, explain_transport
from modelpipes.web.site import Site, root_of
from modelpipes.web.sse import EventParser, ServerEvent
from modelpipes.web.stream import Stream

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
DONE = b"[DONE]"
FAULT = "error"  # a field of older llama-servers for what broke the answer off
INSIDE_STATUS = 500  # of an error inside an answer that began with 200, unless it names another
SHOWN_MODELS = 12  # of those that a server has, in a line
SILENCE_S = 120.0  # a large model that reads a long prompt on a processor is silent for as long
CONNECT_LIMIT_S = 10.0  # a handshake across any network is over by then
QUERY_LIMIT_S = 30.0  # counting tokens and the like; llama-server answers them beside a running answer


@dataclass
class Piece:
    """A piece of the answer, or of the thoughts before it.

    `anew`: the pieces before it do not count; what they had is told again here, as what it is.
    """

    content: str = ""
    thinking: str = ""
    anew: bool = False


@dataclass(frozen=True)
class Reading:
    """How far the prompt is read, in tokens: a piece without words."""

    done: int
    total: int
    content: ClassVar[str] = ""
    thinking: ClassVar[str] = ""
    anew: ClassVar[bool] = False


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one answer, as the server counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None  # of the prompt, read before


@dataclass(frozen=True)
class Answer:
    """A whole answer: what it says, why it ended, and how long it took, in milliseconds from the request on."""

    text: str
    thinking: str  # a reasoning model's thoughts before it
    finish: str | None  # "stop", "length", or what else the server calls it
    latency_ms: float  # until its end
    first_token_ms: float | None  # until its first word or thought; None where it has none
    usage: TokenUsage | None  # None where the server does not count
    tokens_per_second: float | None  # as the server measured it; None where it does not


class Given(TypedDict, total=False):
    """How to choose words; what is not given, or None, is left to the server."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    top_k: int | None
    min_p: float | None
    stop: Sequence[str] | None
    schema: Mapping[str, Any] | None  # of JSON, that the answer is to be


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


class ChatStream:
    """One answer as it comes: iterate it; within `with`, leaving it ends the server's work.

    `finish`, `usage`, `tokens_per_second` and `latency_ms` are known at its end, `first_token_ms` once words came.
    """

    def __init__(
        self,
        client: Client,
        body: dict[str, Any],
        sampling: Given,
        silence_s: float | None,
        page: str = CHAT,
        *,
        may_stop: Sequence[str] = (),
    ) -> None:
        self.finish: str | None = None  # "stop", "length", or what else the server calls it
        self.usage: TokenUsage | None = None
        self.tokens_per_second: float | None = None
        self._client = client
        self.first_token_ms: float | None = None
        self.latency_ms = 0.0
        asked: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
        if (schema := asked.pop("schema", None)) is not None:
            form = {"name": "answer", "strict": True, "schema": schema}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        self._body = body | asked | {"stream": True}
        self._added: dict[str, Any] = {"stream_options": {"include_usage": True}}
        if may_stop:
            (self._body if sampling.get("stop") else self._added)["stop"] = [*(sampling.get("stop") or ()), *may_stop]
        self._page = page
        self._silence_s = silence_s
        self._last_life_s = time.monotonic()
        self._content, self._thinking = HalfJoiner(), HalfJoiner()
        self._reading: Reading | None = None
        self._has_words = False
        self._is_cancelled = False
        self._stream = Stream(client.site, self._explain)
        self._iterator: Generator[Piece | Reading] = self._time()

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> Piece | Reading:
        """The next piece; Cancelled, DeadlineError, Refused or EngineError where there is none."""
        return next(self._iterator)

    def whole(self) -> Answer:
        """What is left of the answer, once it has come, with its figures; raises as `next` does."""
        text = thinking = ""
        for piece in self:
            if piece.anew:
                text = thinking = ""
            text += piece.content
            thinking += piece.thinking
        return Answer(
            text, thinking, self.finish, self.latency_ms, self.first_token_ms, self.usage, self.tokens_per_second
        )

    def cancel(self) -> None:
        """End the answer from any thread at any time; who iterates it gets Cancelled at once."""
        self._is_cancelled = True
        self._stream.cancel()

    def close(self) -> None:
        """Close the connection; for the thread that iterates."""
        self._iterator.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _time(self) -> Generator[Piece | Reading]:
        """What comes, and when."""
        began_s = time.monotonic()
        with contextlib.closing(self._part() if self._page == CHAT else self._ask_or_again()) as coming:
            for piece in coming:
                if self.first_token_ms is None and isinstance(piece, Piece):
                    self.first_token_ms = (time.monotonic() - began_s) * 1000
                yield piece
        self.latency_ms = (time.monotonic() - began_s) * 1000

    def _part(self) -> Generator[Piece | Reading]:
        """What comes, the thoughts parted from the words."""
        splitter = self._client.splitter()
        with contextlib.closing(self._ask_or_again()) as coming:
            for came in coming:
                if isinstance(came, Reading):
                    yield came
                    continue
                if came.thinking:
                    splitter.pass_content()
                content, thinking, anew = splitter.feed(came.content)
                if content or thinking or came.thinking:
                    yield Piece(content, came.thinking + thinking, anew)
        content, thinking, anew = splitter.flush(is_whole=self.finish != "length")
        self._client.learn(splitter)
        if content or thinking:
            yield Piece(content, thinking, anew)

    def _ask_or_again(self) -> Generator[Piece | Reading]:
        while True:
            try:
                yield from self._ask()
                return
            except Refused as refused:
                if self._has_words or not self._client.leave_out(refused, self._added):
                    raise
            self._stream = Stream(self._client.site, self._explain)
            if self._is_cancelled:  # meanwhile, and so the stream before
                self._stream.cancel()

    def _ask(self) -> Generator[Piece | Reading]:
        limit_s = CONNECT_LIMIT_S if self._silence_s is None else min(CONNECT_LIMIT_S, self._silence_s)
        with self._stream as stream:
            try:
                stream.check_cancelled()
                body = _encode(self._client.complete_body(self._body, self._added))
                headers = self._client.headers | {"Accept": "text/event-stream"}
                stream.send("POST", self._page, body, headers, connect_s=limit_s, silence_s=self._silence_s)
                self._last_life_s = time.monotonic()
                yield from self._read_answer()
            except PipesError:
                stream.check_cancelled()  # then it is no failure, whatever it looks like
                raise

    def _read_answer(self) -> Generator[Piece | Reading]:
        root, stream = self._client.root, self._stream
        if not 200 <= stream.status < 300:
            raise refusal(root, stream.status, stream.read_all())
        if "event-stream" not in stream.content_type:
            raise EngineError(f"the server at {root} does not stream: it is no chat server")
        parser, is_over = EventParser(alone=(FAULT,)), False
        while not is_over and (data := stream.read()):
            events = parser.feed(data)
            if (begun := parser.rest()) and begun.data.strip() == DONE:
                events.append(begun)  # the end, also where neither a blank line nor the connection's end follows
            is_over = yield from self._pass_on(events)
            self._check_silence()
        if not is_over and (begun := parser.rest()):  # the standard drops it, and some servers forget the blank line
            is_over = yield from self._pass_on([begun])
        stream.check_cancelled()
        if half := self._content.rest():
            yield Piece(half)
        if not is_over and self.finish is None:
            raise EngineError(f"the server at {root} closed the connection amid its answer")

    def _pass_on(self, events: Sequence[ServerEvent]) -> Generator[Piece | Reading, None, bool]:
        """What came together goes on together; whether the answer is over."""
        piece, reading, is_over = Piece(), None, False
        fault: PipesError | None = None
        for event in events:
            said = event.data.strip()
            if event.field == FAULT or event.type == ERROR_EVENT:
                fault = refusal(self._client.root, INSIDE_STATUS, event.data)
            elif said == DONE:
                is_over = True
            elif said and not is_over:
                fault = self._take(said, piece)
                reading = self._reading or reading
                self._last_life_s = time.monotonic()
            if fault:
                break
        if is_over or fault:
            piece.content += self._content.rest()
            piece.thinking += self._thinking.rest()
        if reading:
            yield reading
        if piece.content or piece.thinking:
            self._has_words = True
            yield piece
            # We may have been suspended for as long as our caller liked.
            self._last_life_s = time.monotonic()
        if fault:
            raise fault
        if is_over and self.finish is None and not self._has_words:
            raise EngineError(f"the server at {self._client.root} ended its answer without a word of it")
        return is_over

    def _take(self, said: bytes, piece: Piece) -> PipesError | None:
        """Take in one chunk: what it adds to the piece; the error that it is, if it is one."""
        root = self._client.root
        try:
            chunk = read_chunk(said)
        except ValueError as error:
            shown = said[:SHOWN_BODY_CHARS].decode("utf-8", "replace")
            return EngineError(f"the server at {root} sent what is no chat chunk ({error}): {shown!r}")
        if chunk.is_fault:
            return refusal(root, INSIDE_STATUS, said)
        piece.thinking += self._thinking.feed(chunk.thinking)
        piece.content += self._content.feed(chunk.content)
        self.finish = chunk.finish or self.finish
        if chunk.usage and any(chunk.usage):  # some that do not count say 0
            self.usage = TokenUsage(*chunk.usage)
        self.tokens_per_second = chunk.tokens_per_second or self.tokens_per_second
        self._reading = Reading(*chunk.read) if chunk.read else None
        return None

    # -- its end

    def _explain(self, error: Exception) -> PipesError:
        if isinstance(error, TimeoutError) and self._stream.is_connected:
            return self._silent()
        return EngineError(explain_transport(self._client.root, error))

    def _check_silence(self) -> None:
        """Called for all that arrives: pings alone show that the server lives, not that it works."""
        if self._silence_s is not None and time.monotonic() - self._last_life_s > self._silence_s:
            raise self._silent()

    def _silent(self) -> DeadlineError:
        return DeadlineError(f"the server at {self._client.root} was silent for {self._silence_s:g} s")


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
