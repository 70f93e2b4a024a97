"""Whether engines are let in: what is free where they compute, what they will take, and what would fit instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelpipes.errors import EngineError, FileError, UsageError
from modelpipes.fit.rating import Space, largest
from modelpipes.machine.cards import find_visible_cards
from modelpipes.machine.memory import available_bytes
from modelpipes.values.units import format_bytes

if TYPE_CHECKING:
    from modelpipes.engine.locate import EngineChoice
    from modelpipes.fit.prediction import EnginePredictor
    from modelpipes.fit.shares import Memory
    from modelpipes.fit.spec import EngineSpec
    from modelpipes.machine.cards import Card

LEAST_CONTEXT = 512  # tokens: with fewer, nobody talks
# Free memory moves by some MiB from one second to the next; what rests on a steady look should not.
DEVICE_STEP = 64 << 20
HOST_STEP = 1 << 30


@dataclass(frozen=True)
class FreeSpace:
    """Where engines compute, on these cards or, without any, on the host; and what was free there."""

    cards: tuple[Card, ...]
    host_bytes: int

    @property
    def n_devices(self) -> int:
        return len(self.cards)

    def space(self, reserve_bytes: int = 0, *, is_steady: bool = False) -> Space:
        """What models may use; `is_steady` rounds down what was measured, so that two looks see the same."""
        free, host = tuple(card.free_bytes for card in self.cards), self.host_bytes
        if is_steady:
            free = tuple(_steady_bytes(card) for card in self.cards)
            host = host // HOST_STEP * HOST_STEP or host
        return Space(free, host, reserve_bytes)

    def describe(self) -> str:
        """What is free, in words."""
        if not self.cards:
            return f"the {format_bytes(self.host_bytes)} of host memory that are free"
        free = format_bytes(sum(card.free_bytes for card in self.cards))
        return f"the {free} that are free on {' and '.join(card.name for card in self.cards)}"


def _steady_bytes(card: Card) -> int:
    return card.free_bytes // DEVICE_STEP * DEVICE_STEP if card.uuid else card.free_bytes


def free_space_of(cards: tuple[Card, ...]) -> FreeSpace:
    """What is free on these cards and on the host, now."""
    return FreeSpace(cards, available_bytes())


def find_free_space(*, has_gpu: bool) -> FreeSpace:
    """Where an engine computes, now: on the cards that it sees, if it has a back-end for them."""
    return free_space_of(find_visible_cards().cards if has_gpu else ())


@dataclass(frozen=True)
class Advice:
    """What would fit: a context of each conversation, in tokens, or layers on the devices; neither: another model."""

    ctx_size: int | None = None
    gpu_layers: int | None = None


def find_advice(ctx_size: int, n_layers: int, spare: Callable[[int, int | None], int]) -> Advice:
    """The largest context up to `ctx_size` that leaves something to spare; else the most layers, up to `n_layers`.

    `spare` tells what is left, in bytes, with a context and with so many layers (None: as many as were asked for).
    """
    tokens = largest(LEAST_CONTEXT, ctx_size, lambda n: spare(n, None))
    if tokens >= LEAST_CONTEXT:
        return Advice(ctx_size=tokens)
    layers = largest(0, n_layers, lambda n: spare(ctx_size, n)) if n_layers else -1
    return Advice(gpu_layers=layers) if layers >= 0 else Advice()


@dataclass(frozen=True)
class Candidate:
    """An engine that is to start."""

    name: str
    spec: EngineSpec


def admit(candidates: Sequence[Candidate], engine: EngineChoice = "auto") -> list[str]:
    """Raise FileError, with what would work, where engines cannot all be resident at once; what was not counted.

    What counts is the card that NVML shows, free now, where the engine has a back-end for it; else the host
    memory that is available now. Layers that were asked for are taken so; without a wish, all go to the card.
    """
    from modelpipes.engine.confinement import remarks
    from modelpipes.engine.locate import find_engine

    candidates = [_found(one) for one in candidates]
    predictors = [_predictor(one) for one in candidates]
    plan = _Plan(candidates, predictors, find_free_space(has_gpu=find_engine(engine).has_gpu))
    plan.check_limits()
    if plan.missing_bytes() > 0:
        raise FileError(plan.refusal())
    told = [(one, what) for one in candidates for what in (*remarks(one.spec), *uncounted(one.spec))]
    return [f"{one.name}: {what}" for one, what in told]


def _found(one: Candidate) -> Candidate:
    from modelpipes.engine.confinement import check_machine
    from modelpipes.engine.locate import found

    try:
        spec = found(one.spec)
        check_machine(spec)
    except UsageError as error:
        raise UsageError(f"{one.name}: {error}") from None
    return replace(one, spec=spec)


def uncounted(spec: EngineSpec) -> Iterator[str]:
    """What of an engine's own arguments is not, or not wholly, in the prediction, in words."""
    from modelpipes.fit.flags import in_force

    told = in_force(spec)
    for flag in told.uncounted:
        yield f"what {flag} moves or adds is not counted"
    if told.projector:
        yield _of_projector(told.projector)


def _of_projector(path: str) -> str:
    from modelpipes.fit.pictures import picture_bytes, picture_size
    from modelpipes.gguf.shards import read_model

    header = read_model(path)
    if not picture_bytes(header):
        return "of --mmproj the weights are counted, not what it computes with"
    side = picture_size(header)
    return f"of --mmproj what a picture of {side} x {side} pixels takes is counted; a larger one takes more"


def _predictor(one: Candidate) -> EnginePredictor:
    from modelpipes.fit.prediction import EnginePredictor

    try:
        return EnginePredictor(one.spec)
    except FileError as error:
        raise FileError(f"{one.name}: {error}") from None


class _Plan:
    """Engines side by side in what is free."""

    def __init__(self, candidates: Sequence[Candidate], predictors: Sequence[EnginePredictor], free: FreeSpace) -> None:
        from modelpipes.engine.arguments import placed

        self._candidates = candidates
        self._predictors = predictors
        self._free = free
        self._space = free.space()
        self._specs = [
            predict.with_context(placed(one.spec, free.n_devices))
            for one, predict in zip(candidates, predictors, strict=True)
        ]

    def _memories(self, ctx_size: int | None = None, gpu_layers: int | None = None) -> list[Memory]:
        memories = []
        for one, predict, spec in zip(self._candidates, self._predictors, self._specs, strict=True):
            if ctx_size is not None:
                spec = replace(spec, n_ctx=min(ctx_size, spec.n_ctx_seq) * spec.n_parallel)
            if gpu_layers is not None:
                spec = replace(spec, n_gpu_layers=gpu_layers)
            try:
                memories.append(predict(spec))
            except FileError as error:
                raise FileError(f"{one.name}: {error}") from None
            except UsageError as error:
                if not one.spec.arguments:
                    raise
                raise EngineError(f"{one.name}: {error} (an --engine-arg asks for that)") from None
        return memories

    def missing_bytes(self, ctx_size: int | None = None, gpu_layers: int | None = None) -> int:
        """What the fullest place lacks; a file that several engines map into host memory counts once."""
        memories = self._memories(ctx_size, gpu_layers)
        over = [
            sum(memory.devices[place].total_bytes for memory in memories) - free
            for place, free in enumerate(self._space.device_bytes)
        ]
        mapped = {spec.model: memory.host.model_bytes for spec, memory in zip(self._specs, memories, strict=True)}
        host = sum(mapped.values()) + sum(memory.host.total_bytes - memory.host.model_bytes for memory in memories)
        return max([*over, host - self._space.host_bytes])

    def check_limits(self) -> None:
        """Raise FileError for an engine that is predicted above its own limit."""
        from modelpipes.engine.confinement import over_limit

        for one, memory in zip(self._candidates, self._memories(), strict=True):
            if why := over_limit(one.spec, memory.host.total_bytes):
                raise FileError(f"{one.name}: {why}; --no-fit-check starts it all the same")

    def refusal(self) -> str:
        """What they need, what there is, and what would work."""
        needs = ", ".join(
            f"{one.name} {format_bytes(memory.device_bytes or memory.host.total_bytes)}"
            f"{' (own estimate)' * (memory.estimate == 'own')}"
            for one, memory in zip(self._candidates, self._memories(), strict=True)
        )
        start = "--no-fit-check starts them all the same"
        return f"{needs}: more than {self._free.describe()}; {self._advice()}; {start}"

    def _advice(self) -> str:
        n_layers = max(predict.n_layers for predict in self._predictors) if self._free.n_devices else 0
        most = max(spec.n_ctx_seq for spec in self._specs)
        advice = find_advice(most, n_layers, lambda ctx_size, layers: -self.missing_bytes(ctx_size, layers))
        if advice.ctx_size is not None:
            if any(spec.n_ctx != one.spec.n_ctx for one, spec in zip(self._candidates, self._specs, strict=True)):
                return f"a context of {advice.ctx_size} would fit, and an --engine-arg asks for more"
            return f"--ctx-size {advice.ctx_size} would fit"
        if advice.gpu_layers is not None:
            if any(
                one.spec.n_gpu_layers != told.n_gpu_layers
                for one, told in zip(self._candidates, self._specs, strict=True)
            ):
                return f"{advice.gpu_layers} layers on the card would fit, and an --engine-arg asks for more"
            paths = " ".join(one.spec.model for one in self._candidates)
            return f"--gpu-layers {advice.gpu_layers} would fit (fit-models {paths} plans it better)"
        return "smaller models, or smaller quantisations, would fit (find-gguf --fits)"
