"""What an engine is given, as one frozen value that everything hands on; names and defaults are llama.cpp's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from modelpipes.values.timeouts import DRAIN_TIMEOUT_S, LOAD_TIMEOUT_S, STOP_TIMEOUT_S
from modelpipes.values.units import parse_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

Backend = Literal["generic", "cuda"]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: its model, and how it runs it.

    `n_ctx` counts the tokens of all sequences together. `n_gpu_layers=None` offloads every layer; the
    output counts as one layer, so that k means the output and the last k - 1 blocks. `cpu_moe` keeps the
    experts' matrices on the host, `n_cpu_moe` those of the first so many blocks. `n_outputs=None` means
    `n_parallel`: the tokens of a batch that yield logits. `n_devices=2` splits evenly unless `tensor_split` gives
    each device's share. `backend` is `generic` for llama.cpp's device-independent accounting, or `cuda` with what
    only CUDA adds.

    `model`, `projector` and `adapters` are paths; `draft` is the model that drafts for this one, with what it is
    given: its context and batch are this one's. `threads=None`: as many as serve; `batch_size` likewise, the tokens
    of a batch. `arguments` are the user's own, which come last and win: what they say is in the other fields after
    `flags.in_force`, and `uncounted` has those that move memory in a way that nothing here predicts.

    The engine's process has the CPUs of `cpu_affinity` (none named: all of ours) and at most `memory_limit` bytes of
    host memory. `memory` is a person's own estimate in bytes, which wins over the prediction: of the devices, or of
    host memory where it computes there. It may load for `load_timeout_s`, answer on for `drain_timeout_s` once it has
    to go, and take `stop_timeout_s` to end before it is killed.
    """

    n_ctx: int = 4096
    n_ubatch: int = 512
    n_parallel: int = 1
    kv_unified: bool = True
    flash_attn: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    n_gpu_layers: int | None = None
    cpu_moe: bool = False
    n_outputs: int | None = None
    n_devices: int = 1
    tensor_split: tuple[float, ...] | None = None
    backend: Backend = "generic"
    n_cpu_moe: int = 0
    model: str = ""
    threads: int | None = None
    projector: str = ""
    draft: EngineSpec | None = None
    adapters: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    batch_size: int | None = None
    cpu_affinity: tuple[int, ...] = ()
    memory_limit: int | None = None
    memory: int | None = None
    load_timeout_s: float = LOAD_TIMEOUT_S
    stop_timeout_s: float = STOP_TIMEOUT_S
    drain_timeout_s: float = DRAIN_TIMEOUT_S

    def keeps_experts(self, layer: int) -> bool:
        """Do the experts of this block stay on the host?"""
        return self.cpu_moe or layer < self.n_cpu_moe

    @property
    def n_ctx_seq(self) -> int:
        """The context that each conversation may have, in tokens."""
        return self.n_ctx // self.n_parallel


Settings = EngineSpec  # its name in programs that were written before engines took it, too


class Given(TypedDict, total=False):
    """What a person says of an engine, in the words of options and of the configuration; None: nothing was said."""

    ctx_size: int | None  # of each conversation
    parallel: int | None
    kv_type: str | None
    gpu_layers: int | None
    threads: int | None
    batch_size: int | None
    cpu_moe: bool
    cpu_affinity: str | None  # as 0-3,8
    memory_limit: int | None
    memory: int | None
    draft: str | None  # a model file, or a name of one
    load_timeout_s: float | None
    stop_timeout_s: float | None
    drain_timeout_s: float | None
    engine_args: Sequence[str]


def spec_of(model: str, **given: Unpack[Given]) -> EngineSpec:
    """The spec of what a person says; what they did not say is 4096 tokens, one conversation, f16. UsageError."""
    n_parallel = given.get("parallel") or 1
    kv_type = given.get("kv_type") or "f16"
    draft = given.get("draft")
    return EngineSpec(
        model=model,
        # llama-server divides the context among its slots (src/llama-context.cpp, n_ctx_seq).
        n_ctx=(given.get("ctx_size") or 4096) * n_parallel,
        n_parallel=n_parallel,
        type_k=kv_type,
        type_v=kv_type,
        n_gpu_layers=given.get("gpu_layers"),
        cpu_moe=given.get("cpu_moe", False),
        threads=given.get("threads"),
        batch_size=given.get("batch_size"),
        cpu_affinity=parse_cpus(cpus) if (cpus := given.get("cpu_affinity")) else (),
        memory_limit=given.get("memory_limit"),
        memory=given.get("memory"),
        draft=EngineSpec(model=draft) if draft else None,
        load_timeout_s=given.get("load_timeout_s") or LOAD_TIMEOUT_S,
        stop_timeout_s=given.get("stop_timeout_s") or STOP_TIMEOUT_S,
        drain_timeout_s=given.get("drain_timeout_s") or DRAIN_TIMEOUT_S,
        arguments=tuple(given.get("engine_args", ())),
    )
