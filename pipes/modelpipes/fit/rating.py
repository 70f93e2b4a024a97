"""How a model file relates to a card: all of it fits, barely, in part, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, structs

from modelpipes.fit.shares import Memory
from modelpipes.fit.spec import EngineSpec

if TYPE_CHECKING:
    from modelpipes.fit.memory import Predictor
    from modelpipes.gguf.header import Header

Fit = Literal["fits", "tight", "partial", "no"]

STEP = 256  # cells: llama.cpp pads contexts to it
LEAST_CONTEXT = 2048  # tokens: with fewer, a model that would not fit is not said to
DEFAULT_RESERVE_BYTES = 1 << 30  # llama.cpp's own margin (--fit-target)


@dataclass(frozen=True, slots=True)
class Space:
    """Memory that a model may use: free bytes of every device, and of the host; `reserve_bytes` stay free."""

    device_bytes: tuple[int, ...]
    host_bytes: int
    reserve_bytes: int = DEFAULT_RESERVE_BYTES


class Rating(Struct, frozen=True):
    """How a model fits, and under which settings.

    `memory` is for a context of `n_ctx` with all layers on the devices. `fit` is None where nothing was rated; it
    holds at a context of `fit_context` (`n_ctx`, or what `tight` had to make of it) with `gpu_layers` of `n_layers`
    (the output is one) on the devices, and the experts on the host if `cpu_moe`. `reason` says in words what `fit`
    does not. `max_context` is the largest context at which all of it fits with the reserve kept free, 0 if there is
    none. All this needs `host_bytes` of the host; if `host_limits`, it might be better with more than there are.
    """

    memory: Memory
    n_ctx: int
    n_layers: int
    fit: Fit | None = None
    fit_context: int = 0
    max_context: int = 0
    gpu_layers: int = 0
    cpu_moe: bool = False
    reason: str = ""
    host_bytes: int = 0
    host_limits: bool = False


def rate(header: Header, settings: EngineSpec, space: Space | None) -> Rating:
    """Rate a model on the devices of a space; a context beyond the trained one is cut to it.

    Several devices share the layers by what each has free, as llama.cpp does. Without a space, only the memory is
    predicted, on one device.
    """
    from modelpipes.fit.memory import Predictor  # lazily: what is in the cache needs none of it

    predict = Predictor(header)
    trained = predict.hparams.n_ctx_train
    n_ctx = min(settings.n_ctx, trained) if trained else settings.n_ctx
    whole = replace(settings, n_ctx=n_ctx, n_gpu_layers=None, cpu_moe=False)
    n_layers = predict.hparams.n_layer + 1
    if space is None:
        return Rating(predict(whole), n_ctx, n_layers)
    whole = replace(whole, n_devices=len(space.device_bytes), tensor_split=tuple(map(float, space.device_bytes)))
    memory = predict(whole)
    fits = spare_bytes(memory, space) >= 0
    contexts = _Contexts(predict, whole, space, memory)
    asked, longest = -(-n_ctx // STEP), -(-max(trained, n_ctx) // STEP)
    low, high = (asked, longest) if fits else (1, asked)
    padded = STEP * largest(low, high, contexts.spare, contexts.spare_at_most)
    max_context = min(padded, trained or n_ctx)
    host_limits = contexts.host_limits(padded, longest * STEP) if fits else memory.host.total_bytes > space.host_bytes
    rating = Rating(
        memory, n_ctx, n_layers, "fits", n_ctx, max(max_context, n_ctx), n_layers,
        host_bytes=contexts.memory(max(padded, n_ctx)).host.total_bytes, host_limits=host_limits,
    )  # fmt: skip
    if fits:
        return rating
    rating = structs.replace(rating, max_context=max_context)
    if spare_bytes(memory, replace(space, reserve_bytes=0)) >= 0:
        left = space.reserve_bytes + device_spare_bytes(memory, space)
        return structs.replace(
            rating, fit="tight", reason=f"leaves {_mib(left)} of the reserve of {_mib(space.reserve_bytes)}"
        )
    if max_context >= LEAST_CONTEXT:
        return structs.replace(
            rating, fit="tight", fit_context=max_context, reason=f"at a context of {max_context}",
            host_bytes=contexts.memory(padded).host.total_bytes,
        )  # fmt: skip
    return _rate_in_part(predict, whole, space, rating)


class _Contexts:
    """What one model leaves free at contexts of so many STEPs."""

    def __init__(self, predict: Predictor, whole: EngineSpec, space: Space, memory: Memory) -> None:
        """`memory` is for the context of `whole`."""
        self._predict = predict
        self._whole = whole
        self._space = space
        self._known = {whole.n_ctx: memory}

    def memory(self, n_ctx: int) -> Memory:
        if n_ctx not in self._known:
            self._known[n_ctx] = self._predict(replace(self._whole, n_ctx=n_ctx))
        return self._known[n_ctx]

    def spare(self, steps: int) -> int:
        return spare_bytes(self.memory(steps * STEP), self._space)

    def spare_at_most(self, steps: int) -> int:
        """A bound that takes no graph: buffers grow with the context, so they are no smaller than a shorter one's."""
        return spare_bytes(self._at_least(steps * STEP), self._space)

    def host_limits(self, n_ctx: int, longest: int) -> bool:
        """Whether it is the host that lacks space for more than `n_ctx`, the largest context that fits."""
        more = n_ctx + STEP
        if more > longest or device_spare_bytes(self._at_least(more), self._space) < 0:
            return False
        return device_spare_bytes(self.memory(more), self._space) >= 0

    def _at_least(self, n_ctx: int) -> Memory:
        bare = self._predict.without_compute(replace(self._whole, n_ctx=n_ctx))
        shorter = max((known for known in self._known if known <= n_ctx), default=None)
        if shorter is None:
            return bare
        known = self._known[shorter]
        devices = zip(bare.devices, known.devices, strict=True)
        return replace(
            bare,
            devices=tuple(replace(mine, compute_bytes=theirs.compute_bytes) for mine, theirs in devices),
            host=replace(bare.host, compute_bytes=known.host.compute_bytes),
        )


def _rate_in_part(predict: Predictor, whole: EngineSpec, space: Space, rating: Rating) -> Rating:
    """The most layers that fit; or all, with the experts on the host, where that leaves the host less to do."""
    choices = (whole, replace(whole, cpu_moe=True)) if predict.hparams.n_expert else (whole,)
    plans = [plan for plan in (partial_layers(predict, choice, space) for choice in choices) if plan.n_gpu_layers]
    needed = {plan: predict(plan).host.total_bytes for plan in plans}
    possible = [plan for plan in plans if needed[plan] <= space.host_bytes]
    host_limits = rating.host_limits or len(possible) < len(plans)
    if not possible:
        memory = rating.memory
        reason = f"needs {_mib(memory.device_bytes + memory.host.total_bytes)}"
        host_bytes = rating.host_bytes if rating.max_context else 0
        return structs.replace(
            rating, fit="no", gpu_layers=0, reason=reason, host_bytes=host_bytes, host_limits=host_limits
        )
    best = min(possible, key=lambda plan: host_work(predict, plan))
    layers = best.n_gpu_layers or 0
    reason = f"{layers} of {rating.n_layers} layers" + ", without experts" * best.cpu_moe
    reason += f"; the rest takes {_mib(needed[best])} of the host"
    return structs.replace(
        rating, fit="partial", gpu_layers=layers, cpu_moe=best.cpu_moe, reason=reason,
        host_bytes=needed[best], host_limits=host_limits,
    )  # fmt: skip


def partial_layers(predict: Predictor, settings: EngineSpec, space: Space) -> EngineSpec:
    """These settings with the most layers that fit the devices, whatever the host has (0: none)."""

    def spare_with(layers: int) -> int:
        return device_spare_bytes(predict(replace(settings, n_gpu_layers=layers)), space)

    def spare_at_most(layers: int) -> int:
        return device_spare_bytes(predict.without_compute(replace(settings, n_gpu_layers=layers)), space)

    n_layers = predict.hparams.n_layer + 1
    layers = tried = largest(1, n_layers, spare_with, spare_at_most)
    # Of several devices, one more layer may move another from a device that is full to one that is not.
    while settings.n_devices > 1 and tried < min(layers + 2 * settings.n_devices, n_layers):
        tried += 1
        if spare_with(tried) >= 0:
            layers = tried
    return replace(settings, n_gpu_layers=layers)


def host_work(predict: Predictor, settings: EngineSpec) -> int:
    """Bytes of weights that the host reads for each token: of the experts, those that a token uses."""
    hparams = predict.hparams
    host, experts = predict.host_weights(settings)
    return host + experts * hparams.n_expert_used // max(hparams.n_expert, 1)


def spare_bytes(memory: Memory, space: Space) -> int:
    """What the fullest place has left above the reserve (of the host, all); negative: what is missing."""
    return min([*_device_spares(memory, space), space.host_bytes - memory.host.total_bytes])


def device_spare_bytes(memory: Memory, space: Space) -> int:
    """What the fullest device has left above the reserve; negative: what is missing."""
    return min(_device_spares(memory, space))


def _device_spares(memory: Memory, space: Space) -> list[int]:
    shares = zip(space.device_bytes, memory.devices, strict=True)
    return [free - space.reserve_bytes - share.total_bytes for free, share in shares]


def largest(low: int, high: int, spare: Callable[[int], int], at_most: Callable[[int], int] | None = None) -> int:
    """The largest number from `low` to `high` that leaves something to spare; `low` - 1 if none does.

    `spare` falls with its argument, and nearly in a straight line: guessing along that line needs a few calls,
    where halving needs a dozen. `at_most` is a bound that is cheaper: where it is negative, `spare` is not called.
    """

    def spare_of(number: int) -> int:
        bound = at_most(number) if at_most else 0
        return bound if bound < 0 else spare(number)

    if high < low or (at_low := (at_most or spare)(low)) < 0:
        return low - 1
    if (at_high := spare_of(high)) >= 0:
        return high

    def try_(number: int) -> None:
        nonlocal low, high, at_low, at_high
        if (at := spare_of(number)) >= 0:
            low, at_low = number, at
        else:
            high, at_high = number, at

    least = low
    slow = 0  # guesses in a row that left most of the width: the first may, on a line between bounds
    while high - low > 1:
        width = high - low
        guess = low + (width // 2 if slow > 1 else width * at_low // (at_low - at_high))
        guess = min(max(guess, low + 1), high - 1)
        try_(guess)
        if low == guess and high - low > 1:
            try_(guess + 1)  # on a straight line it is the first that is too much
        slow = slow + 1 if high - low > width // 2 else 0
    return low if low > least or spare_of(low) >= 0 else low - 1


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MiB"
