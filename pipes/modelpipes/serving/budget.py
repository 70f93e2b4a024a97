"""How much memory the engines may take, what a model will take, and what it has taken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from modelpipes import gpu, hostmemory
from modelpipes.engine.lifecycle import batch_tokens
from modelpipes.errors import PipesError
from modelpipes.fit.memory import predict_memory
from modelpipes.fit.settings import Settings
from modelpipes.gguf.shards import read_model
from modelpipes.serving.residency import Bytes
from modelpipes.units import format_bytes

SETTLE_S = 5.0  # a driver gives memory back within seconds, or it is somebody else's now
SETTLE_INTERVAL_S = 0.25
SETTLED_SHARE = 0.75  # of what an engine held
UNKNOWN_SHARE = 1.2  # of the file, for a model whose memory we cannot predict


@dataclass(frozen=True)
class Place:
    """Where engines compute: on the cards that NVML shows, or on the CPU, with or without a budget in a card's name."""

    n_devices: int  # cards that are there
    is_charged: bool  # whether a model's share of a card counts: there is one, or a budget for one


def find_budget(card: int | None, host: int | None, reserve: int, *, has_gpu: bool) -> tuple[Bytes, Place, str]:
    """What may be used, where, and that in words; None: what is free now, but for the reserve.

    Without a card the card's budget is a number, against which predictions are charged.
    """
    cards = gpu.find_visible_cards().cards if has_gpu else ()
    host_bytes = max(0, hostmemory.available_bytes() - reserve) if host is None else host
    card_bytes = max(0, sum(one.free_bytes for one in cards) - reserve) if card is None else card
    names = " and ".join(one.name for one in cards) or ("a card in name only" if card else "the CPU")
    words = f"{format_bytes(card_bytes)} of {names}, " if cards or card else ""
    words += f"{format_bytes(host_bytes)} of host memory"
    return Bytes(int(card_bytes), int(host_bytes)), Place(len(cards), bool(cards) or card is not None), words


def predict(
    path: str, place: Place, *, ctx_size: int, parallel: int, kv_type: str, gpu_layers: int | None, cpu_moe: bool
) -> Bytes:
    """What an engine with this model will take. FileError where the file cannot be read."""
    on_cpu = not place.n_devices or gpu_layers == 0

    def settings(n_devices: int) -> Settings:
        return Settings(
            n_ctx=ctx_size * parallel,
            n_ubatch=batch_tokens(parallel, on_cpu=on_cpu),
            n_parallel=parallel,
            type_k=kv_type,
            type_v=kv_type,
            n_gpu_layers=gpu_layers if n_devices else 0,
            cpu_moe=cpu_moe,
            n_devices=n_devices,
            backend="cuda" if place.n_devices else "generic",
        )

    header = read_model(path)
    try:
        on_host = predict_memory(header, settings(place.n_devices)).host.total_bytes
        devices = place.n_devices or (1 if place.is_charged else 0)
        on_card = predict_memory(header, settings(devices)).device_bytes if devices else 0
    except PipesError:  # no language model, or of a kind that we do not know: it is its weights, mostly
        whole = int(header.file_size * UNKNOWN_SHARE)
        return Bytes(whole if place.is_charged else 0, 0 if place.n_devices else whole)
    return Bytes(on_card, on_host)


def measure(pid: int, predicted: Bytes, place: Place) -> Bytes:
    """What a ready engine has taken. llama.cpp allocates all of it before it is ready: nothing grows afterwards.

    Where the driver does not say, and for host memory (a file's pages are mapped, counted with every process and
    evictable), the prediction stands; so does it for a card in name only.
    """
    if not place.n_devices:
        return predicted
    used = [
        process.used_bytes
        for card in gpu.find_visible_cards().cards
        for process in card.processes
        if process.pid == pid and process.used_bytes is not None
    ]
    return Bytes(sum(used), predicted.host) if used else predicted


def settle(
    freed_bytes: int,
    free_before: int,
    free_now: Callable[[], int],
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> bool:
    """Wait until the memory that an ended engine held is free again; False where it is not after 5 s."""
    until = clock() + SETTLE_S
    while free_now() - free_before < freed_bytes * SETTLED_SHARE:
        if clock() >= until:
            return False
        wait(SETTLE_INTERVAL_S)
    return True


def free_on_cards() -> int:
    """Bytes that are free on the cards now."""
    return sum(card.free_bytes for card in gpu.find_visible_cards().cards)


def file_bytes(path: str) -> int:
    """The size of a file, or 0 where it has gone."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
