"""Whether models can be resident together where the engine computes, looked at before engines start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelpipes.errors import FileError, ModelFileError
from modelpipes.values.units import format_bytes

if TYPE_CHECKING:
    from modelpipes.engine.locate import EngineChoice
    from modelpipes.fit.rating import Space
    from modelpipes.fit.settings import Settings
    from modelpipes.fit.shares import Memory
    from modelpipes.gguf.header import Header

LEAST_SUGGESTED = 512  # tokens of context: with fewer, nobody talks
ADVICE = "--no-fit-check starts them all the same"


@dataclass(frozen=True)
class Asked:
    """One engine that is to start, as the options describe it; `ctx_size` is what each conversation may have."""

    name: str
    model: str
    ctx_size: int = 4096
    kv_type: str = "f16"
    parallel: int = 1
    gpu_layers: int | None = None


def check_fit(asked: Sequence[Asked], engine: EngineChoice = "auto") -> None:
    """Raise FileError, with the plan that would work, where the models cannot all be resident at once.

    What counts is the card that NVML shows, free now, where the engine has a back-end for it; else the host
    memory that is available now. Layers that were asked for are taken so; without a wish, all go to the card.
    """
    from modelpipes.engine.arguments import batch_tokens
    from modelpipes.engine.locate import find_engine, find_model
    from modelpipes.fit.memory import predict_memory
    from modelpipes.fit.settings import Settings
    from modelpipes.gguf.shards import read_model

    paths = [find_model(one.model) for one in asked]
    headers = []
    for one, path in zip(asked, paths, strict=True):
        try:
            headers.append(read_model(path))
        except ModelFileError as error:
            raise FileError(f"{one.name}: {error}") from None
    space, place = _space(find_engine(engine).has_gpu)
    n_devices = len(space.device_bytes)
    settings = [
        Settings(
            n_ctx=one.ctx_size * one.parallel,
            n_ubatch=batch_tokens(one.parallel, on_cpu=not n_devices or one.gpu_layers == 0),
            n_parallel=one.parallel,
            n_gpu_layers=one.gpu_layers if n_devices else 0,
            type_k=one.kv_type,
            type_v=one.kv_type,
            n_devices=n_devices,
            backend="cuda" if n_devices else "generic",
        )
        for one in asked
    ]
    memories = [predict_memory(header, each) for header, each in zip(headers, settings, strict=True)]
    if _missing_bytes(memories, paths, space) <= 0:
        return
    needs = ", ".join(
        f"{one.name} {format_bytes(_device_bytes(memory) or memory.host.total_bytes)}"
        for one, memory in zip(asked, memories, strict=True)
    )
    raise FileError(f"{needs}: more than {place}; {_what_would_work(asked, headers, settings, paths, space)}; {ADVICE}")


def _space(is_on_card: bool) -> tuple[Space, str]:
    """Where the engine computes, and its name for a message."""
    from modelpipes.fit.rating import Space
    from modelpipes.machine import cards as gpu
    from modelpipes.machine import memory as hostmemory

    host = hostmemory.available_bytes()
    cards = gpu.find_visible_cards().cards if is_on_card else ()
    if not cards:
        return Space((), host, 0), f"the {format_bytes(host)} of host memory that are free"
    free = tuple(card.free_bytes for card in cards)
    names = " and ".join(card.name for card in cards)
    return Space(free, host, 0), f"the {format_bytes(sum(free))} that are free on {names}"


def _device_bytes(memory: Memory) -> int:
    return sum(share.total_bytes for share in memory.devices)


def _missing_bytes(memories: Sequence[Memory], paths: Sequence[str], space: Space) -> int:
    """What the fullest place lacks; a file that several engines map into host memory counts once."""
    over = [
        sum(memory.devices[place].total_bytes for memory in memories) - free
        for place, free in enumerate(space.device_bytes)
    ]
    mapped = {path: memory.host.model_bytes for path, memory in zip(paths, memories, strict=True)}
    host = sum(mapped.values()) + sum(memory.host.total_bytes - memory.host.model_bytes for memory in memories)
    return max([*over, host - space.host_bytes])


def _what_would_work(
    asked: Sequence[Asked], headers: Sequence[Header], settings: Sequence[Settings], paths: Sequence[str], space: Space
) -> str:
    """A smaller context for all, fewer layers, or another model: the first that is enough."""
    from dataclasses import replace

    from modelpipes.fit.memory import predict_memory
    from modelpipes.fit.rating import largest

    def spare(ctx_size: int, layers: int | None = None) -> int:
        changed = [
            replace(
                each,
                n_ctx=min(ctx_size, one.ctx_size) * one.parallel,
                n_gpu_layers=each.n_gpu_layers if layers is None else layers,
            )
            for one, each in zip(asked, settings, strict=True)
        ]
        memories = [predict_memory(header, each) for header, each in zip(headers, changed, strict=True)]
        return -_missing_bytes(memories, paths, space)

    most = max(one.ctx_size for one in asked)
    if most > LEAST_SUGGESTED and spare(LEAST_SUGGESTED) >= 0:
        return f"--ctx-size {largest(LEAST_SUGGESTED, most, spare)} would fit"
    if space.device_bytes:
        layers = largest(0, max(len(header.tensors) for header in headers), lambda n: spare(most, n))
        if layers >= 0:
            return f"--gpu-layers {layers} would fit (fit-models {' '.join(paths)} plans it better)"
    return "smaller models, or smaller quantisations, would fit (find-gguf --fits)"
