"""How a model file relates to a card: all of it fits, barely, in part, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modelpipes.fit.hparams import Hparams
from modelpipes.fit.memory import Memory, Predictor
from modelpipes.fit.settings import Settings
from modelpipes.gguf.header import Header

Fit = Literal["fits", "tight", "partial", "no"]

STEP = 256  # cells: llama.cpp pads contexts to it
LEAST_CONTEXT = 2048  # tokens: with fewer, a model that would not fit is not said to
DEFAULT_RESERVE_BYTES = 1 << 30  # llama.cpp's own margin (--fit-target)


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a model may use: free bytes of every device, and of the host; `reserve_bytes` stay free."""

    device_bytes: tuple[int, ...]
    host_bytes: int
    reserve_bytes: int = DEFAULT_RESERVE_BYTES


@dataclass(frozen=True, slots=True)
class Rating:
    """How a model fits, and under which settings.

    `fit` is None where nothing was rated.

    `memory` is for the settings asked for, all layers on the devices. `reason` says in words what `fit` does not.
    `max_context` is the largest context at which all of it fits with the reserve kept free (0: none of
    LEAST_CONTEXT or more). `gpu_layers` of `n_layers` (the output is one) go to the devices, with the experts
    on the host if `cpu_moe`.
    """

    memory: Memory
    n_ctx: int
    fit: Fit | None
    reason: str
    max_context: int
    gpu_layers: int
    n_layers: int
    cpu_moe: bool = False


def rate(header: Header, settings: Settings, room: Room | None) -> Rating:
    """Rate a model on the devices of a room; a context beyond the trained one is cut to it.

    Without a room, only the memory is predicted, on the settings' devices.
    """
    predict = Predictor(header)
    hparams = predict.hparams
    trained = hparams.n_ctx_train
    n_ctx = min(settings.n_ctx, trained) if trained else settings.n_ctx
    whole = replace(settings, n_ctx=n_ctx, n_gpu_layers=None, cpu_moe=False)
    n_layers = hparams.n_layer + 1
    if room is None:
        return Rating(predict(whole), n_ctx, None, "", 0, n_layers, n_layers)
    whole = replace(whole, n_devices=len(room.device_bytes))
    memory = predict(whole)
    slack = spare_bytes(memory, room)

    def spare_at(steps: int) -> int:
        return spare_bytes(predict(replace(whole, n_ctx=steps * STEP)), room)

    longest = -(-max(trained, n_ctx) // STEP)
    least = min(LEAST_CONTEXT // STEP, longest)
    steps = largest(least, longest, spare_at)
    max_context = min(STEP * steps, trained or STEP * steps) if steps >= least else 0
    if slack >= 0:
        return Rating(memory, n_ctx, "fits", "", max(max_context, n_ctx), n_layers, n_layers)
    if slack >= -room.reserve_bytes:
        reason = f"leaves {_mib(room.reserve_bytes + slack)} of the reserve of {_mib(room.reserve_bytes)}"
        return Rating(memory, n_ctx, "tight", reason, max_context, n_layers, n_layers)
    if max_context:
        reason = f"at a context of {max_context}"
        return Rating(memory, n_ctx, "tight", reason, max_context, n_layers, n_layers)
    return _rate_in_part(predict, whole, memory, room, n_layers)


def _rate_in_part(predict: Predictor, whole: Settings, memory: Memory, room: Room, n_layers: int) -> Rating:
    """The most layers that fit; or all, with the experts on the host, where that leaves the host less to do."""
    plans = [partial_layers(predict, whole, room)]
    if predict.hparams.n_expert:
        plans.append(partial_layers(predict, replace(whole, cpu_moe=True), room))
    possible = [plan for plan in plans if plan.n_gpu_layers and predict(plan).host.total_bytes <= room.host_bytes]
    if not possible:
        reason = f"needs {_mib(memory.host.total_bytes + sum(share.total_bytes for share in memory.devices))}"
        return Rating(memory, whole.n_ctx, "no", reason, 0, 0, n_layers)
    best = min(possible, key=lambda plan: host_work(predict, plan))
    layers = best.n_gpu_layers or 0
    reason = f"{layers} of {n_layers} layers" + (", experts on the host" if best.cpu_moe else "")
    return Rating(memory, whole.n_ctx, "partial", reason, 0, layers, n_layers, best.cpu_moe)


def partial_layers(predict: Predictor, settings: Settings, room: Room) -> Settings:
    """These settings with the most layers on the devices that fit there (0: none)."""

    def spare_with(layers: int) -> int:
        return spare_bytes(predict(replace(settings, n_gpu_layers=layers)), room)

    return replace(settings, n_gpu_layers=largest(1, predict.hparams.n_layer + 1, spare_with))


def host_work(predict: Predictor, settings: Settings) -> int:
    """Bytes of weights that the host reads for each token: of the experts, those that a token uses."""
    hparams = predict.hparams
    host, experts = predict.host_weights(settings)
    return host + experts * hparams.n_expert_used // max(hparams.n_expert, 1)


def spare_bytes(memory: Memory, room: Room) -> int:
    """What the fullest place has left above the reserve (of the host, all); negative: what is missing."""
    spare = [
        free - room.reserve_bytes - share.total_bytes
        for free, share in zip(room.device_bytes, memory.devices, strict=True)
    ]
    return min([*spare, room.host_bytes - memory.host.total_bytes])


def largest(low: int, high: int, spare: Callable[[int], int]) -> int:
    """The largest number from `low` to `high` that leaves something to spare; `low` - 1 if none does.

    `spare` falls with its argument, and nearly in a straight line: guessing along that line needs a few calls,
    where halving needs a dozen.
    """
    if high < low or (at_low := spare(low)) < 0:
        return low - 1
    if (at_high := spare(high)) >= 0:
        return high
    halve = False
    while high - low > 1:
        guess = low + (high - low) // 2 if halve else low + (high - low) * at_low // (at_low - at_high)
        guess = min(max(guess, low + 1), high - 1)
        width = high - low
        if (at_guess := spare(guess)) >= 0:
            low, at_low = guess, at_guess
            if low + 1 < high and (at_next := spare(low + 1)) < 0:
                return low
            if low + 1 < high:
                low, at_low = low + 1, at_next
        else:
            high, at_high = guess, at_guess
        halve = high - low > width // 2
    return low


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MiB"
