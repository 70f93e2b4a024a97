"""How much memory the engines may take, what a model will take, and what it has taken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from modelpipes.engine.arguments import batch_tokens
from modelpipes.errors import FileError, ModelFileError
from modelpipes.fit.cuda import OVERHEAD_BYTES
from modelpipes.fit.hparams import classify
from modelpipes.fit.memory import predict_memory
from modelpipes.fit.settings import Settings
from modelpipes.gguf.shards import read_model
from modelpipes.machine import cards as gpu
from modelpipes.machine import memory as hostmemory
from modelpipes.machine.holdings import Taken, look
from modelpipes.serving.residency import NOTHING, Bytes
from modelpipes.values.units import format_bytes

SETTLE_S = 5.0  # a driver gives memory back within seconds, or it is somebody else's now
SETTLE_INTERVAL_S = 0.25
SETTLED_SHARE = 0.75  # of what an engine held for certain
UNKNOWN_SHARE = 1.2  # of the file, for a model whose memory we cannot predict


@dataclass(frozen=True)
class Place:
    """Where engines compute: on the cards that NVML shows, or on the CPU, with or without a budget in a card's name."""

    n_devices: int  # cards that are there
    is_charged: bool  # whether a model's share of a card counts: there is one, or a budget for one

    def for_engine(self, *, has_gpu: bool) -> Place:
        """The place of one engine among others: one without a back-end for the cards computes on the CPU."""
        return self if has_gpu or not self.n_devices else Place(0, False)


def find_budget(
    card: int | None, host: int | None, reserve: int, *, has_gpu: bool, held: Bytes = NOTHING
) -> tuple[Bytes, Place, str]:
    """What may be used, where, and that in words; None: what is free now, but for the reserve.

    `held` is what our own engines hold while this is asked: it is not free, and it is ours. Of several cards each
    keeps the reserve. Without a card the card's budget is a number, against which predictions are charged.
    """
    cards = gpu.find_visible_cards().cards if has_gpu else ()
    if host is None:
        host = auto_bytes(hostmemory.available_bytes(), held.host, hostmemory.total_bytes(), reserve)
    name = " and ".join(one.name for one in cards) or "a card in name only"
    words = f"{format_bytes(host)} of host memory"
    if card is None:
        free, total = sum(one.free_bytes for one in cards), sum(one.total_bytes for one in cards)
        card_bytes = auto_bytes(free, held.card, total, reserve * len(cards))
    else:
        card_bytes = card
    if cards or card is not None:
        words = f"{format_bytes(card_bytes)} of {name}, {words}"
    return Bytes(int(card_bytes), int(host)), Place(len(cards), bool(cards) or card is not None), words


def auto_bytes(free: int, held: int, total: int, reserve: int) -> int:
    """What we may use of a memory of which so much is free and so much is ours already: all but what others hold.

    Never more than there is: pages of a mapped model file are ours and available at once, and what is held may be
    predicted too high. Pure.
    """
    return max(0, min(free + held, total) - reserve)


def predict(
    path: str, place: Place, *, ctx_size: int, parallel: int, kv_type: str, gpu_layers: int | None, cpu_moe: bool
) -> Bytes:
    """What an engine with this model will take, the runtime's overhead on each card included.

    FileError where the file cannot be read or contradicts itself, UsageError where llama.cpp would refuse the settings.
    """
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
    except (ArithmeticError, LookupError, ValueError) as error:  # a header made up or damaged
        raise ModelFileError(path, f"its numbers contradict each other ({error})") from None
    except FileError:  # no language model, or of a kind that we do not know: it is its weights, mostly
        return _guess(header.file_size, place, gpu_layers)
    return Bytes(on_card, on_host)


def _guess(file_size: int, place: Place, gpu_layers: int | None) -> Bytes:
    """What a model takes of which only the file's size is known."""
    whole = int(file_size * UNKNOWN_SHARE)
    overhead = OVERHEAD_BYTES * place.n_devices
    if gpu_layers == 0:  # the runtime still takes its part of each card
        return Bytes(overhead, whole)
    on_card = whole + overhead if place.is_charged else 0
    # Of some layers on the card nobody knows how large they are: both pay.
    return Bytes(on_card, 0 if place.n_devices and gpu_layers is None else whole)


def is_model(path: str) -> bool:
    """Whether a file is a language model, and no projector, adapter or the like; True where it cannot be read."""
    try:
        return classify(read_model(path)) == "model"
    except FileError:
        return True  # what is wrong with it is told by `predict`


def measure(pid: int, predicted: Bytes, place: Place) -> Bytes:
    """What a ready engine counts for from now on: see `charge`."""
    return charge(predicted, look(pid, has_cards=bool(place.n_devices)))


def charge(predicted: Bytes, taken: Taken | None) -> Bytes:
    """What the decision should count for an engine; `taken` is None until it is ready. Pure.

    While it loads that is the prediction: what it has taken so far says nothing about what it is going to.

    Afterwards, on the card: what was measured, and of what is missing from the prediction no more than the runtime's
    overhead. Weights, cache and compute buffers are allocated before an engine is ready, so that they are in the
    measure; cuBLAS and the memory pool take their part with the first large batch. What is missing beyond that was
    predicted wrongly, and is free. Where the driver does not say, and for a card in name only, the prediction stands.

    On the host: the greater. Pages of a mapped file and of a cache come in as they are used, and may leave again; a
    program's own memory, which no prediction knows, is in the measure only.
    """
    if taken is None:
        return predicted
    if taken.card is None:
        return Bytes(predicted.card, max(predicted.host, taken.host))
    growth = min(max(predicted.card - taken.card, 0), OVERHEAD_BYTES)
    return Bytes(taken.card + growth, max(predicted.host, taken.host))


def settle(
    freed_bytes: int,
    free_before: int,
    free_now: Callable[[], int],
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> bool:
    """Wait until most of what an ended engine held is free again; False where it is not after 5 s.

    `freed_bytes` is what it was charged with (see `charge`), up to the runtime's overhead more than it ever took:
    that much is not waited for, or a small engine's end would always take 5 s. Without a card there is nothing to wait
    for: the kernel has taken back a process's memory before it can be reaped.
    """
    until = clock() + SETTLE_S
    certain_bytes = max(0, freed_bytes - OVERHEAD_BYTES)
    while free_now() - free_before < certain_bytes * SETTLED_SHARE:
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
