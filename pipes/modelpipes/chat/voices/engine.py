"""A model behind HTTP as a voice: what is heard becomes a prompt that fits, the stream becomes words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from modelpipes.chat.prompt import Manner, Messages, labels_of, told_to, trim
from modelpipes.chat.speech import LabelCutter, NameStripper
from modelpipes.chat.voices import Finish, Work
from modelpipes.engine.answers import ChatStream, Piece
from modelpipes.engine.client import Client, some
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import PACKAGED_MODELS
from modelpipes.errors import Cancelled, MessageError, Refused, UsageError
from modelpipes.gateway.lease import Lease, is_gateway
from modelpipes.pipe.message import Sampling, Stop, Usage
from modelpipes.pipe.room import About, Loading
from modelpipes.values.deadline import Deadline

HISTORY_BYTES_PER_TOKEN = 16  # four times what text has: more than this never fits a prompt
HISTORY_LIMIT_BYTES = 2 * 1024 * 1024  # half a million tokens of English; a member keeps several conversations
SERVER_CTX_SIZE = 65536  # what a server's context may be, before it has told: the history must not be the limit
TOKENS_PER_BYTE = 0.4  # before a server has told a usage: English has 0.25, code and other scripts more
# A usage tells of the text only where that is most of the prompt (templates add system texts of their own), and
# some servers leave out what they had cached; no token is smaller than a byte.
TELLING_BYTES = 1024
LEAST_TOKENS_PER_BYTE, MOST_TOKENS_PER_BYTE = 0.2, 1.0
MARGIN = 1.1  # on an estimate, which knows nothing of the next text
MESSAGE_TOKENS = 8  # what a template puts around a message, where it cannot be counted
ANSWER_SHARE = 4  # a quarter of the context is kept for the answer where --max-tokens does not say

LOADING_LIMIT_S = 600.0  # a server that says it loads its model is waited for; the largest from a slow disk
LOADING_INTERVAL_S = 0.1


class EngineVoice:
    """A model's answers, from an engine of ours or any OpenAI-compatible server."""

    def __init__(
        self,
        seat: str,
        *,
        kind: str,
        start_engine: Callable[[], Engine] | None = None,
        server: str = "",
        model_name: str | None = None,
        api_key: str | None = None,
        system: str | None = None,
        sampling: Sampling | None = None,
        ctx_size: int = 4096,
        parallel: int = 1,
        silence_s: float | None = None,
    ) -> None:
        self.kind = kind
        self.parallel = parallel
        largest = ctx_size if start_engine else max(ctx_size, SERVER_CTX_SIZE)
        self.history_bytes = min(largest * HISTORY_BYTES_PER_TOKEN, HISTORY_LIMIT_BYTES)
        self._seat = seat
        self._file = ""
        self._build = ""
        self._start_engine = start_engine
        self._engine: Engine | None = None
        self._server = server
        self._model_name = model_name
        self._api_key = api_key
        self._system = system
        self._manner: Manner = "full"
        self._sampling = sampling or Sampling()
        self._ctx_size = ctx_size
        self._silence_s = silence_s
        self._client: Client | None = None
        self._leased_name = ""  # the model of which each turn takes a lease: the server is a gateway of ours
        self._known: str | None = None  # of which model what follows was learnt: the identity of a lease
        self._folds_system = False
        self._can_count = False
        self._bound = (0, 0)  # tokens that the template adds to a prompt, and to each of its messages
        self._tokens_per_byte = TOKENS_PER_BYTE

    def prepare(self, deadline: Deadline) -> None:
        if self._start_engine:
            self._engine = self._start_engine()
            self._file = self._engine.model
            self._manner = manner_of(self._file)
            self._engine.be_ready(deadline)
        client = Client(
            self._engine.base_url if self._engine else self._server,
            model_name=self._model_name,
            api_key=self._engine.api_key if self._engine else self._api_key,
        )
        self._client = client
        limit = deadline.earlier(Deadline.after(LOADING_LIMIT_S))
        while True:
            try:
                self._look_at(client)
                return
            except Refused as refused:
                if refused.kind != "loading" or limit.has_passed():
                    raise
            time.sleep(LOADING_INTERVAL_S)

    def loading(self) -> Loading | None:
        intake = self._engine.loading() if self._engine else None
        return Loading(*intake) if intake else None

    def _look_at(self, client: Client) -> None:
        if not self._engine and is_gateway(client):
            self._leased_name = _choose(client.models(), self._model_name)
        else:
            self._learn(client, "")

    def _learn(self, client: Client, identity: str) -> None:
        """What the server, or the engine of a lease, is and can."""
        self._known = identity
        self._folds_system, self._can_count, self._bound = False, False, (0, 0)
        self._tokens_per_byte = TOKENS_PER_BYTE
        if client.is_llama_server():
            self._build = f"{self._engine.binary.kind if self._engine else 'llama-server'} {client.build()}".strip()
            self._ctx_size = client.context_size() or self._ctx_size
            self._folds_system = self._system != "" and client.refuses_system()
            self._measure_template(client)
        elif not self._engine:
            try:
                names = client.models()  # proves that somebody answers there, and that the key is right
                if not self._model_name and len(names) > 1:
                    raise UsageError(f"--model-name is missing: the server at {client.root} has {some(names)}")
            except Refused as refused:
                if refused.kind != "missing" or not self._model_name:  # some servers have no list
                    raise

    def _measure_template(self, client: Client) -> None:
        user, own = {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}
        try:
            one, three = client.count_tokens([user]), client.count_tokens([user, own, user])
        except Refused as refused:
            if refused.kind != "template":
                raise
            return  # a template that wants a system text, or the like: the lengths are estimated
        self._can_count = one is not None
        if one is not None and three is not None:
            self._bound = one, max(0, (three - one + 1) // 2)

    def answer(self, work: Work) -> Finish:
        try:
            return self._answer_or_again(work)
        except Cancelled:
            return Finish()

    def _answer_or_again(self, work: Work) -> Finish:
        """Where the server refuses the prompt, once more with another one."""
        try:
            return self._answer(work, is_exact=False)
        except Refused as refused:
            if work.content or work.thinking:
                raise
            has_system = self._system != "" or work.say.system
            if refused.kind == "template" and has_system and not self._folds_system:
                self._folds_system = True
            elif refused.kind != "context":
                raise
            try:
                return self._answer(work, is_exact=True)
            except Refused as again:
                if again.kind == "context":
                    raise MessageError(f"the message does not fit the context: {again}") from None
                raise

    def _answer(self, work: Work, *, is_exact: bool) -> Finish:
        cast, turns = work.say.cast, work.turns
        sampling = work.say.sampling.over(self._sampling) if work.say.sampling else self._sampling
        with self._engine_of(work) as client:
            told = told_to(
                self._seat,
                self._system_for(work, client),
                cast,
                turns,
                folds_system=self._folds_system,
                manner=self._manner,
            )
            most = sampling.max_tokens
            messages, dropped = trim(turns, told, lambda messages: self._fits(client, messages, work, most, is_exact))
            names = labels_of(cast, turns, self._seat)
            finish = self._speak(client, messages, names, sampling, work)
            if work.say.conversation and finish.stop == "end" and not "".join(work.content).strip():
                # Nothing, or nothing but names and what others would say; the same seed would say it again.
                seed = None if sampling.seed is None else sampling.seed + 1
                finish = self._speak(client, messages, names, replace(sampling, seed=seed), work)
            return replace(finish, dropped=dropped)

    def _system_for(self, work: Work, client: Client) -> str | None:
        """The system text: of the message, if it has one, else the member's own."""
        system = self._system if work.say.system is None else work.say.system
        if system and self._system == "" and not self._folds_system and client.is_llama_server():
            self._folds_system = client.refuses_system()  # not asked before: there was none
        return system

    def _speak(
        self, client: Client, messages: Messages, names: Sequence[str], sampling: Sampling, work: Work
    ) -> Finish:
        """Let the engine answer, and pass on what it says as itself."""
        with client.stream(
            messages,
            silence_s=self._silence_s,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            stop=sampling.stop or None,
            schema=sampling.schema,
            may_stop=[f"\n{name}:" for name in names],
        ) as stream:
            work.when_cancelled(stream.cancel)
            try:
                first_s, is_cut = self._pass_on(stream, names, work)
            finally:
                work.when_cancelled(None)
        return replace(self._finish(stream, first_s, messages), is_cut=is_cut)

    @contextlib.contextmanager
    def _engine_of(self, work: Work) -> Iterator[Client]:
        """Whom to speak to in this turn."""
        assert self._client, "prepare() comes first"
        if not self._leased_name:
            yield self._client
            return
        with Lease(self._client, self._leased_name) as lease:
            work.when_cancelled(lease.cancel)
            try:
                client = lease.take(lambda: work.show_life("loading"), Deadline.after(LOADING_LIMIT_S))
            finally:
                work.when_cancelled(None)
            if self._known != lease.identity:  # the first, or its file or its settings are others now
                self._learn(client, lease.identity)
            yield client

    def _pass_on(self, stream: ChatStream, names: Sequence[str], work: Work) -> tuple[float, bool]:
        """Emit what comes; when the first piece came, and whether the rest was cut off at one of these names."""
        name, cutter = NameStripper(self._seat), LabelCutter(names)
        first_s = 0.0
        for piece in stream:
            if isinstance(piece, Piece):
                first_s = first_s or time.monotonic()
                if piece.anew:
                    name, cutter = NameStripper(self._seat), LabelCutter(names)
                    work.begin_anew()
                work.emit(cutter.feed(name.feed(piece.content)), piece.thinking)
                if cutter.is_cut:
                    return first_s, True
            else:
                work.show_life("reading")
        work.emit(cutter.feed(name.flush()) + cutter.flush())
        return first_s, cutter.is_cut

    def _finish(self, stream: ChatStream, first_s: float, messages: Messages) -> Finish:
        usage, rate = stream.usage, stream.tokens_per_second
        if usage and usage.prompt_tokens and (size := _size(messages)) >= TELLING_BYTES:
            told = usage.prompt_tokens / size
            self._tokens_per_byte = min(max(told, LEAST_TOKENS_PER_BYTE), MOST_TOKENS_PER_BYTE)
        if usage and rate is None and first_s and usage.completion_tokens > 1:
            rate = (usage.completion_tokens - 1) / max(1e-6, time.monotonic() - first_s)
        stop: Stop = "length" if stream.finish == "length" else "end"
        counted = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) if usage else None
        return Finish(stop, counted, rate)

    def _fits(self, client: Client, messages: Messages, work: Work, max_tokens: int | None, is_exact: bool) -> bool:
        if work.is_cancelled:
            raise Cancelled("the answer was cancelled")
        answer = min(max_tokens or self._ctx_size // ANSWER_SHARE, self._ctx_size // 2)
        room = self._ctx_size - answer
        if not self._can_count:
            tokens = _size(messages) * self._tokens_per_byte * MARGIN + len(messages) * MESSAGE_TOKENS
            # Refused although it was estimated to fit: the context is smaller than we were told.
            return tokens <= (room // 2 if is_exact else room)
        prompt, each = self._bound
        if not is_exact and prompt + _size(messages) + each * len(messages) <= room:
            return True  # no token is smaller than a byte: counting would cost more than it tells
        count = client.count_tokens(messages, self._silence_s)
        return count is None or count <= room

    def about(self) -> About:
        given = self._sampling if self._sampling != Sampling() else None
        return About(self._file, self._build, self._system, self._manner, self._folds_system, given)

    def death_fd(self) -> int:
        return self._engine.pidfd if self._engine else -1

    def last_words(self) -> str:
        reason = self._engine.exit_reason() if self._engine else None
        return f"the engine ended: {reason or 'it said nothing'}"

    def tend(self) -> None:
        pass

    def close(self) -> None:
        if self._engine:
            self._engine.stop()


def manner_of(file: str) -> Manner:
    """How a model of this file, an absolute path, is told what nobody wrote for it."""
    return "brief" if file == str(PACKAGED_MODELS / "tiny-chat.gguf") else "full"


def _choose(names: Sequence[str], wanted: str | None) -> str:
    """Of the models of a gateway the wanted one, or the only one; UsageError."""
    if wanted is not None:
        return wanted  # by an alias, perhaps
    if len(names) != 1:
        raise UsageError(f"--model-name is missing: the gateway serves {', '.join(names) or 'no model'}")
    return names[0]


def _size(messages: Messages) -> int:
    return sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
