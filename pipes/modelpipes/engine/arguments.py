"""The command line of a llama-server: only flags that its own --help lists."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

from modelpipes.engine.locate import Binary
from modelpipes.errors import Cause, EngineFailure
from modelpipes.fit.flags import in_force
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.shards import read_model

HOST = "127.0.0.1"
PING_INTERVAL_S = 1  # llama-server's shortest; its 30 s also delay the end of a server with open streams

# Prompts kept in host memory beside the slots. llama-server's own 8192 MiB a process are more than
# a machine with several engines has; a chat of 4096 tokens of an 8B model takes 512 MiB.
CACHE_RAM_MIB = 512

# llama.cpp obeys a cancel between two batches of a prompt, never inside one, and two may pass: it sees
# that we have gone when it reports the first, and has begun the second by then (tools/server,
# update_slots). So a batch must take less than 50 ms. Measured on two CPU cores with 34 million weights:
# 32 tokens read a prompt at 70 to 96 % of the speed of 128 and cancel four times as fast. For cards 128
# is an estimate, not measured: 2,600 tokens a second are enough to stay below 50 ms.
CPU_BATCH_TOKENS = 32
GPU_BATCH_TOKENS = 128
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")

# llama.cpp's threads spin while they wait for each other: with every core taken and anything else
# running, tiny-chat took 14.6 s for what one thread does in 0.2 s. So a model that one thread reads in a
# millisecond gets one, and on few cores one core stays free for those who talk.
ONE_THREAD_BYTES = 16 * 1024 * 1024
FEW_CORES = 4
NEXT_TOKENS = ".nextn.eh_proj.weight"  # the end of a tensor's name in a model that tells several tokens at a time


def placed(spec: EngineSpec, n_devices: int) -> EngineSpec:
    """The spec in force where there are so many devices, with the batch that our engines are given there. Pure."""
    where = replace(
        spec,
        # By the spec's own fields, as the command line has it: what the arguments say comes later there.
        n_ubatch=batch_of(spec, on_cpu=not n_devices or spec.n_gpu_layers == 0),
        n_gpu_layers=spec.n_gpu_layers if n_devices else 0,
        n_devices=n_devices,
        backend="cuda" if n_devices else "generic",
    )
    return in_force(where)


def batch_tokens(parallel: int, *, on_cpu: bool) -> int:
    """Tokens that our engines read at a time; a batch also takes one of every conversation."""
    return max(CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS, parallel)


def batch_of(spec: EngineSpec, *, on_cpu: bool) -> int:
    """Tokens that an engine with this spec reads at a time: as many as a person says, or as serve."""
    return spec.batch_size or batch_tokens(spec.n_parallel, on_cpu=on_cpu)


def make_arguments(binary: Binary, spec: EngineSpec, port: int, slot_folder: str | None, alias: str = "") -> list[str]:
    """Those for a start, but for flags that the binary does not list. The engine calls its model by `alias`.

    A user's own come last: of two, llama.cpp takes the later one. EngineFailure where the binary does not know what
    was asked for; FileError where the model that drafts cannot be read.
    """
    _check_is_known(binary, spec)
    listed = binary.flags
    # The embedded engine's wheel computes on the CPU.
    on_cpu = spec.n_gpu_layers == 0 or binary.kind == "embedded" or not any(map(os.path.exists, GPU_DEVICES))
    batch = str(batch_of(spec, on_cpu=on_cpu))
    wanted: list[tuple[str, str | None]] = [
        ("--model", spec.model),
        # Else it is the path of the file. A comma would make two of it.
        ("--alias", alias if "," not in alias else ""),
        ("--host", HOST),
        ("--port", str(port)),
        ("--ctx-size", str(spec.n_ctx)),
        ("--parallel", str(spec.n_parallel)),
        ("--batch-size", batch),
        ("--ubatch-size", batch),
        ("--threads", str(spec.threads) if spec.threads else _threads(spec)),
        ("--cache-type-k", spec.type_k),
        ("--cache-type-v", spec.type_v),
        ("--cache-ram", str(CACHE_RAM_MIB)),
        ("--sse-ping-interval", str(PING_INTERVAL_S)),
        ("--slots", None),
        ("--metrics", None),
        ("--slot-save-path", slot_folder or ""),
        ("--offline", None),
        ("--no-ui" if "--no-ui" in listed else "--no-webui", None),
    ]
    if spec.n_gpu_layers is not None:
        # A plan was made: llama.cpp must not make another one.
        wanted += [("--n-gpu-layers", str(spec.n_gpu_layers)), ("--fit", "off")]
    arguments: list[str] = []
    for flag, value in wanted:
        if flag in listed and value != "":
            arguments += [flag] if value is None else [flag, value]
    if spec.cpu_moe:
        arguments.append("--cpu-moe")
    if spec.draft:
        arguments += ["--model-draft", spec.draft.model]
    return [*arguments, *_kind_of_draft(listed, spec), *spec.arguments]


def _check_is_known(binary: Binary, spec: EngineSpec) -> None:
    """What a person asked for is never left out without a word."""
    asked = (("threads", "--threads", spec.threads), ("batch_size", "--batch-size", spec.batch_size),
             ("cpu_moe", "--cpu-moe", spec.cpu_moe), ("draft", "--model-draft", spec.draft))  # fmt: skip
    for name, flag, wish in asked:
        if wish and flag not in binary.flags:
            what = f"{' '.join(binary.argv)} knows no {name} (its --help does not list {flag})"
            raise EngineFailure(f"{what}: leave it out, or use another engine", Cause.FLAG)


def _kind_of_draft(listed: Collection[str], spec: EngineSpec) -> list[str]:
    """How the engine is to draft; b11434 loads a model that drafts, and leaves it idle, where nobody says.

    It finds out by itself for the kinds that `common_speculative_types_from_gguf` of common/speculative.cpp knows.
    """
    draft = in_force(spec).draft
    if draft is None or "--spec-type" not in listed or value_of(spec.arguments, "--spec-type") is not None:
        return []
    header = read_model(draft.model)
    if header.architecture == "dflash" or any(each.name.endswith(NEXT_TOKENS) for each in header.tensors):
        return []
    return ["--spec-type", "draft-eagle3" if header.architecture == "eagle3" else "draft-simple"]


def _threads(spec: EngineSpec) -> str:
    """How many threads compute; empty: as many as llama.cpp takes by itself."""
    if os.path.getsize(spec.model) < ONE_THREAD_BYTES:
        return "1"
    if spec.cpu_affinity:  # llama.cpp counts the machine's cores, not its own
        return str(len(spec.cpu_affinity))
    cores = len(os.sched_getaffinity(0))
    return str(max(1, cores - 1)) if cores <= FEW_CORES else ""


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of the last `flag` among a user's own arguments."""
    value = None
    for here, following in itertools.pairwise((*arguments, "")):
        if here == flag:
            value = following
        elif here.startswith(f"{flag}="):  # the embedded engine takes this form too
            value = here.partition("=")[2]
    return value
