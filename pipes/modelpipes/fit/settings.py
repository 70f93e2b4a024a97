"""What an engine is told that decides its memory; the names and defaults are llama.cpp's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["generic", "cuda"]


@dataclass(frozen=True, slots=True)
class Settings:
    """One engine's settings.

    `n_ctx` counts the tokens of all sequences together. `n_gpu_layers=None` offloads every layer; the
    output counts as one layer, so that k means the output and the last k - 1 blocks. `cpu_moe` keeps the
    experts' matrices on the host. `n_outputs=None` means `n_parallel`: the tokens of a batch that yield
    logits. `n_devices=2` splits evenly unless `tensor_split` gives each device's share. `backend` is
    `generic` for llama.cpp's device-independent accounting, or `cuda` with what only CUDA adds.
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
