"""One answer of a server as it comes, whatever the forms of its pieces: words, thoughts, figures, errors, its end."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypedDict

from modelpipes.engine.chunks import ERROR_EVENT, HalfJoiner, read_chunk
from modelpipes.engine.refusal import SHOWN_BODY_CHARS, refusal
from modelpipes.engine.thoughts import ThoughtSplitter
from modelpipes.errors import DeadlineError, EngineError, PipesError, Refused
from modelpipes.web.requests import explain_transport
from modelpipes.web.site import Site
from modelpipes.web.sse import EventParser, ServerEvent
from modelpipes.web.stream import Stream

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
DONE = b"[DONE]"
FAULT = "error"  # a field of older llama-servers for what broke the answer off
INSIDE_STATUS = 500  # of an error inside an answer that began with 200, unless it names another
CONNECT_LIMIT_S = 10.0  # a handshake across any network is over by then


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


class Asked(Protocol):
    """The server that is asked, and what is remembered of it."""

    root: str
    site: Site
    headers: dict[str, str]

    def complete_body(self, body: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]: ...
    def leave_out(self, refused: Refused, added: Iterable[str]) -> bool: ...
    def splitter(self) -> ThoughtSplitter: ...
    def learn(self, splitter: ThoughtSplitter) -> None: ...


class ChatStream:
    """One answer as it comes: iterate it; within `with`, leaving it ends the server's work.

    `finish`, `usage`, `tokens_per_second` and `latency_ms` are known at its end, `first_token_ms` once words came.
    """

    def __init__(
        self,
        client: Asked,
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
                body = json.dumps(self._client.complete_body(self._body, self._added)).encode()
                headers = {**self._client.headers, "Accept": "text/event-stream"}
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
