"""The keys of a configuration, typed: one class a section. What a key means stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from modelpipes.gguf.types import CacheType
from modelpipes.values.timeouts import DRAIN_TIMEOUT_S, LOAD_TIMEOUT_S, STOP_TIMEOUT_S

DEFAULT_LISTEN = "127.0.0.1:9090"
MAX_TOKENS = 2**31 - 1  # llama.cpp counts a context in 32 bits
MAX_PARALLEL = 256  # LLAMA_MAX_SEQ of llama.cpp's llama-cparams.h

VERSION = "version"  # the one key above all sections
VERSION_TEXT = "of this file's format; an older program refuses a newer one"

EngineKind = Literal["auto", "llama-server", "embedded"]


class Size(int):
    """Bytes, written as a number or as "16GB"."""


class Amount(Size):
    """A size that may hold a model."""


class Budget(Size):
    """A size, or "auto"."""


class Seconds(float):
    """A time, written as a number of seconds or as "30s"; "none" is MAX_SECONDS: a timer takes no infinity."""


class Limit(Seconds):
    """A time that bounds a wait: above 0."""


class Cpus(str):
    """Numbers of CPUs, written as "0-3,8"."""


def _key(text: str, example: Any = None, **bounds: Any) -> Meta:
    """What a key means, in a line; `example` is what to write where there is no default."""
    return Meta(description=text, examples=None if example is None else [example], **bounds)


CtxSize = Annotated[int, _key("tokens of each conversation", 8192, ge=64, le=MAX_TOKENS)]
KvType = Annotated[CacheType, _key("of the cache: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1")]
GpuLayers = Annotated[int, _key("layers on the card  [as many as fit]", 99, ge=0, le=MAX_TOKENS)]
Threads = Annotated[int, _key("on the CPU  [the engine's choice]", 8, ge=1, le=512)]
BatchSize = Annotated[int, _key("tokens read at a time  [what cancels within 50 ms]", 512, ge=1, le=MAX_TOKENS)]
CpuAffinity = Annotated[Cpus, _key("the CPUs of the engine's process  [all of ours]", "0-3,8")]
MemoryLimit = Annotated[Amount, _key("host memory of the engine's process, kept by the kernel  [none]", "24GB")]
Draft = Annotated[str, _key("a smaller model, whose guesses it checks: same answers, sooner  [none]", "qwen3-0.6b")]
Parallel = Annotated[int, _key("conversations at a time", ge=1, le=MAX_PARALLEL)]
Engine = Annotated[EngineKind, _key("auto, llama-server or embedded")]
EngineArgs = Annotated[tuple[str, ...], _key("passed to the engine as they are  [none]", ["--no-mmap"])]


Threshold = Annotated[float, Meta(ge=0, le=1000)] | Literal["none"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys below one heading of the file."""


class Room(Section, frozen=True):
    """Rooms: every command that uses one."""

    dir: Annotated[str, _key("the room, as -d and $PIPE_DIR  [one for each user]", "~/room")] = ""
    prefix: Annotated[str, _key("names that setup-pipes makes up begin so, as $PIPE_PREFIX")] = "model"


class Voice(Section, frozen=True):
    """What models are told and given: attach-model, chat-models."""

    system: Annotated[
        str, _key("what a model is told first; @FILE reads it from there  [nothing]", "Answer briefly.")
    ] = ""
    max_tokens: Annotated[int, _key("longest answer  [the context's rest]", 500, ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, _key("how freely it chooses words  [the engine's]", 0.7, ge=0, le=100)] | None = None
    top_p: Annotated[float, _key("of the likeliest words, this share  [the engine's]", 0.95, ge=0, le=1)] | None = None
    seed: Annotated[int, _key("of what models say  [another each time]", 1, ge=0, le=2**32 - 1)] | None = None
    top_k: Annotated[int, _key("of the likeliest words, so many  [the engine's]", 40, ge=0, le=10**6)] | None = None
    min_p: (
        Annotated[float, _key("no word less likely than this share of the likeliest  [the engine's]", 0.05, ge=0, le=1)]
        | None
    ) = None
    stop: Annotated[tuple[str, ...], _key("end an answer before one of these  [none]", ["###"])] = ()
    ctx_size: CtxSize = 4096
    kv_type: KvType = "f16"
    gpu_layers: GpuLayers | None = None
    threads: Threads | None = None
    batch_size: BatchSize | None = None
    cpu_affinity: CpuAffinity | None = None
    memory_limit: MemoryLimit | None = None
    draft: Draft = ""
    parallel: Annotated[int, _key("messages to work on at a time", ge=1, le=64)] = 1
    timeout: Annotated[Limit, _key("longest silence of an engine or program")] = Limit(120)
    engine: Engine = "auto"
    engine_args: EngineArgs = ()
    llama_server: Annotated[
        str, _key("the engine to run, as $LLAMA_SERVER  [the first found]", "~/llama.cpp/bin/llama-server")
    ] = ""
    api_key_file: Annotated[str, _key("a --server's key  [$OPENAI_API_KEY]", "~/.config/server.key")] = ""


class ListSeats(Section, frozen=True):
    """list-seats: who sits where."""

    timeout: Annotated[Limit, _key("for --wait: longest that a seat shows no life; loading is life")] = Limit(30)
    max_seconds: Annotated[Limit, _key("for --wait: longest time in all  [none]", "10m")] | None = None


class AskModel(Section, frozen=True):
    """ask-model: one message, one answer."""

    timeout: Annotated[Limit, _key("longest silence of the member, as $PIPE_TIMEOUT")] = Limit(30)
    max_seconds: Annotated[Limit, _key("longest time in all  [none]", "10m")] | None = None


class ChatModels(Section, frozen=True):
    """chat-models: a conversation."""

    rounds: Annotated[int, _key("turns of each member  [10, or unending]", 10, ge=1, le=10**9)] | None = None
    timeout: Annotated[Limit, _key("longest silence of a member, to the leader; [voice] has the engine's")] = Limit(30)
    max_seconds: Annotated[Limit, _key("end after this time  [none]", "10m")] | None = None
    patience: Annotated[Seconds, _key("for a member that died, if somebody else seated it; 0: none")] = Seconds(30)
    retries: Annotated[int, _key("of a turn that failed", ge=0, le=1000)] = 2


class Card(Section, frozen=True):
    """The card to reckon with: find-gguf, fit-models."""

    gpu: Annotated[str, _key('auto, a card\'s name such as "RTX 4080", or "2x NAME"')] = "auto"
    vram: Annotated[Amount, _key("its memory, whatever it has  [what it has]", "16GB")] | None = None
    reserve: Annotated[Size, _key("memory of it to keep free")] = Size(1 << 30)


class FindGguf(Section, frozen=True):
    """find-gguf, and names of models in every command."""

    search_path: Annotated[
        tuple[str, ...], _key("folders with model files, as $SEARCH_PATH  [the usual ones]", ["~/models"])
    ] = ()
    ctx_size: Annotated[int, _key("context that a model is rated with, in tokens", ge=1, le=MAX_TOKENS)] = 4096
    kv_type: KvType = "f16"


class Use(Section, frozen=True, kw_only=True):
    """A use case: so many models at once, each with so much. `--use NAME` of find-gguf and fit-models."""

    models: Annotated[int, _key("that are loaded at once", ge=1, le=64)] = 1
    memory: Annotated[Amount, _key("for each of them: weights, context and all", "7GB")]
    ctx_size: (
        Annotated[int, _key("tokens of each conversation  [the command's]", 8192, ge=64, le=MAX_TOKENS)] | None
    ) = None
    kv_type: Annotated[CacheType, _key("of the cache: f16, q8_0, q4_0, …  [the command's]", "q8_0")] | None = None
    quant: Annotated[
        Mapping[str, str], _key("models of up to so many parameters: the quantisation to get  [any]", {"9B": "Q4_K_M"})
    ] = {}


class WatchGpu(Section, frozen=True):
    """watch-gpu: its pace, its alarms."""

    interval: Annotated[Limit, _key("from a look to the next")] = Limit(5)
    alert_vram: Annotated[Threshold, _key('alarm at so many percent of the memory in use, or "none"')] = 95
    alert_temp: Annotated[Threshold, _key('alarm at this temperature, in degrees Celsius, or "none"')] = 85
    exec_on_alert: Annotated[
        str, _key("run by sh when an alarm begins  [nothing]", 'notify-send "$MODELPIPES_MESSAGE"')
    ] = ""


class Server(Section, frozen=True):
    """serve-models: where it listens, and for whom."""

    listen: Annotated[str, _key('HOST:PORT or "unix:PATH"; any address but loopback demands a key')] = DEFAULT_LISTEN
    key: Annotated[str, _key("what clients send as `Authorization: Bearer …`  [none]", "s3cret")] = ""
    key_file: Annotated[str, _key("the same, from a file  [none]", "serve.key")] = ""
    origins: Annotated[
        tuple[str, ...],
        _key("pages from elsewhere that may use /v1/ and /api/; this machine's may  [none]", ["https://chat.example"]),
    ] = ()
    max_waiting: Annotated[int, _key("requests in the queue; one more is answered 503", ge=1, le=MAX_TOKENS)] = 512
    max_lease_s: (
        Annotated[Limit, _key("the longest that one client may keep an engine to itself  [none]", "5m")] | None
    ) = None


class Events(Section, frozen=True):
    """serve-models: what happens, kept in files."""

    file: Annotated[
        str, _key("JSON Lines, as of serve-models events --json  [none]", "~/.local/state/modelpipes/events.jsonl")
    ] = ""
    size: Annotated[Amount, _key("of a file; then it becomes FILE.1, that FILE.2, and so on")] = Amount(16_000_000)
    older: Annotated[int, _key("so many of them are kept beside FILE", ge=1, le=9999)] = 4


class MemoryLimits(Section, frozen=True):
    """serve-models: what all its engines together may take."""

    budget: Annotated[Budget, _key('of the card  ["auto": what is free, looked at every 5 s]', "14GB")] | None = None
    host_budget: Annotated[Budget, _key('of the machine  ["auto": as above]', "24GB")] | None = None
    reserve: Annotated[Size, _key('stays free where the budget is "auto": for the desktop')] = Size(1_000_000_000)
    min_resident_s: Annotated[Seconds, _key("a model that was loaded stays so long: against thrash")] = Seconds(5)
    max_wait_s: Annotated[Seconds, _key("who waited so long has a busy model drained for it")] = Seconds(60)
    keep_conversations: Annotated[bool, _key("save an engine's conversations when it leaves, to restore them")] = True


class Model(Section, frozen=True):
    """serve-models: one table for each model, named as clients ask for it; a name with a dot is quoted."""

    file: Annotated[str, _key("a GGUF file, or a name that find-gguf prints", "~/models/qwen2.5-7b-instruct-q6_k.gguf")]
    ctx_size: CtxSize = 4096
    parallel: Parallel = 1
    kv_type: KvType = "f16"
    gpu_layers: GpuLayers | None = None
    cpu_moe: Annotated[bool, _key("a mixture's experts stay on the host")] = False
    threads: Threads | None = None
    batch_size: BatchSize | None = None
    cpu_affinity: CpuAffinity | None = None
    memory_limit: MemoryLimit | None = None
    memory: Annotated[Amount, _key("what it takes, by your own estimate  [what is predicted]", "7GB")] | None = None
    draft: Draft = ""
    load_timeout_s: Annotated[Limit, _key("a load that takes longer has failed")] = Limit(LOAD_TIMEOUT_S)
    stop_timeout_s: Annotated[Limit, _key("an engine that takes longer to end is killed")] = Limit(STOP_TIMEOUT_S)
    drain_timeout_s: Annotated[Limit, _key("it may answer on for so long once it has to go")] = Limit(DRAIN_TIMEOUT_S)
    pin: Annotated[bool, _key("loaded at the start, and never leaves for another")] = False
    idle_unload_s: Annotated[Seconds, _key("leaves after so long without work  [never]", "10m")] | None = None
    aliases: Annotated[tuple[str, ...], _key("other names for it  [none]", ["gpt-4o-mini"])] = ()
    engine: Engine = "auto"
    engine_args: EngineArgs = ()


class Scan(Section, frozen=True):
    """serve-models: folders in which any GGUF file is servable by the name that find-gguf prints."""

    directories: Annotated[tuple[str, ...], _key("the folders  [none]", ["~/models"])] = ()
    ctx_size: CtxSize = 4096
    parallel: Parallel = 1


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it, by the headings of the file. Paths are absolute. `use` and `models` are tables of tables."""

    room: Room = Room()
    voice: Voice = Voice()
    list_seats: ListSeats = msgspec.field(default=ListSeats(), name="list-seats")
    ask_model: AskModel = msgspec.field(default=AskModel(), name="ask-model")
    chat_models: ChatModels = msgspec.field(default=ChatModels(), name="chat-models")
    card: Card = Card()
    find_gguf: FindGguf = msgspec.field(default=FindGguf(), name="find-gguf")
    use: Mapping[str, Use] = {}
    watch_gpu: WatchGpu = msgspec.field(default=WatchGpu(), name="watch-gpu")
    server: Server = Server()
    events: Events = Events()
    memory: MemoryLimits = MemoryLimits()
    models: Mapping[str, Model] = {}
    scan: Scan = Scan()


class Key(msgspec.Struct, frozen=True):
    """A key of a section: what it means, and what to write where it has no default."""

    name: str
    text: str
    example: Any
    default: Any  # None: what holds without it is no value, as `text` says


def keys(kind: type[Section]) -> list[Key]:
    """The keys of a section, in order."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        meta = next(one for part in (hint, *get_args(hint)) for one in getattr(part, "__metadata__", ()))
        default = (
            None if field.required or field.default_factory is dict or field.default in ("", ()) else field.default
        )
        found.append(Key(field.name, meta.description, (meta.examples or [default])[0], default))
    return found


def _sections() -> Iterator[tuple[str, type[Section]]]:
    for field in msgspec.structs.fields(Config):
        is_plain = isinstance(field.type, type)
        yield (field.encode_name, field.type) if is_plain else (f"{field.encode_name}.NAME", get_args(field.type)[1])


# heading: the class of its keys; NAME stands for the user's own.
SECTIONS: Mapping[str, type[Section]] = dict(_sections())
