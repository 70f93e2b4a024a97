"""How much memory the engines may take, what a model will take, and what it has taken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from modelpipes.engine.admission import find_advice, find_free_space
from modelpipes.engine.arguments import placed
from modelpipes.errors import ContradictionError, FileError
from modelpipes.fit.cuda import OVERHEAD_BYTES
from modelpipes.fit.flags import in_force
from modelpipes.fit.hparams import classify
from modelpipes.fit.prediction import EnginePredictor, files_of
from modelpipes.fit.shares import Estimate
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.shards import read_model
from modelpipes.machine.cards import card_bytes, find_visible_cards
from modelpipes.machine.holdings import Taken, look, unshared_bytes
from modelpipes.machine.memory import read_memory
from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.values.units import format_bytes

SETTLE_S = 5.0  # a driver gives memory back within seconds, or it is somebody else's now
SETTLE_INTERVAL_S = 0.25
SETTLED_SHARE = 0.75  # of what an engine held for certain
LOOK_S = 5.0  # between two looks at what others take
LOOK_STEP = 64 << 20  # bytes by which what is free moves when nothing happens
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
    free_now = find_free_space(has_gpu=has_gpu)
    cards = free_now.cards
    if host is None:
        host = auto_bytes(free_now.host_bytes, held.host, read_memory().total_bytes, reserve)
    name = " and ".join(one.name for one in cards) or "a card in name only"
    words = f"{format_bytes(host)} of host memory"
    if card is None:
        free, total = sum(one.free_bytes for one in cards), sum(one.total_bytes for one in cards)
        card_bytes = auto_bytes(free, held.card, total, reserve * len(cards))
    else:
        card_bytes = card
    if cards or card is not None:
        words = f"{format_bytes(card_bytes)} of {name}, {words}"
    return Bytes.of(int(card_bytes), int(host)), Place(len(cards), bool(cards) or card is not None), words


def auto_bytes(free: int, held: int, total: int, reserve: int) -> int:
    """What we may use of a memory of which so much is free and so much is ours already: all but what others hold.

    Never more than there is: pages of a mapped model file are ours and available at once, and what is held may be
    predicted too high. Pure.
    """
    return max(0, min(free + held, total) - reserve)


@dataclass(frozen=True)
class Ours:
    """The engines that are there: their processes, what they are charged with, and whether that is what they hold."""

    pids: tuple[int, ...]
    used: Bytes
    is_steady: bool  # none is on its way in or out

    def held(self, place: Place) -> Bytes | None:
        """What they hold now, which nobody else can have; None where that is not known just now."""
        card = card_bytes(self.pids) if place.n_devices and self.pids else 0
        if card is None:  # the driver does not say whose it is
            if not self.is_steady:
                return None
            card = self.used.card
        return Bytes.of(card, unshared_bytes(self.pids))


def look_again(limits: Bytes, ours: Ours, place: Place, card: int | None, host: int | None, reserve: int) -> Bytes:
    """What may be used now: as `limits`, but for what is "auto" (None), where what others took or left is seen.

    What our engines are charged with is not taken from them for less than half of the reserve: what is free moves by
    some MiB all the time. A card that has gone changes nothing here: its engines die, and a reload tells the rest.
    """
    free, held = find_free_space(has_gpu=place.n_devices > 0), ours.held(place)
    if held is None or free.n_devices != place.n_devices:
        return limits
    slack = max(reserve // 2, LOOK_STEP)
    card_limit, host_limit = limits.card, limits.host
    if card is None and free.cards:
        free_bytes, there = sum(one.free_bytes for one in free.cards), sum(one.total_bytes for one in free.cards)
        found = auto_bytes(free_bytes, held.card, there, reserve * free.n_devices)
        card_limit = settled(found, card_limit, ours.used.card, slack)
    if host is None:
        found = auto_bytes(free.host_bytes, held.host, read_memory().total_bytes, reserve)
        host_limit = settled(found, host_limit, ours.used.host, slack)
    return Bytes.of(card_limit, host_limit)


def settled(found: int, before: int, used: int, slack: int) -> int:
    """The limit after a look: `used` where it found no more than `slack` less than that; small moves are none. Pure."""
    found = used if found < used <= found + slack else found
    return before if abs(found - before) < LOOK_STEP and before >= used else found


class Demand:
    """What the engine of a model will take, and what would fit in its stead; its files' headers are read once."""

    def __init__(self, spec: EngineSpec, place: Place) -> None:
        """FileError where a file cannot be read, or contradicts itself."""
        self._spec = spec
        self._place = place
        self._file_size = 0
        self._predict: EnginePredictor | None = None
        try:
            self._predict = EnginePredictor(spec)
        except ContradictionError:
            raise
        except FileError:  # no language model, or of a kind that we do not know: it is its weights, mostly
            self._file_size = sum(read_model(path).file_size for path in files_of(in_force(spec)))

    @property
    def estimate(self) -> Estimate:
        """How what it will take is known: `generic` too where only the size of its files is."""
        if self._spec.memory is not None:
            return "own"
        return self._predict(placed(self._spec, self._place.n_devices)).estimate if self._predict else "generic"

    @property
    def context_size(self) -> int:
        """Tokens that each conversation may have; 0 where only the file would tell, and does not."""
        told = in_force(self._spec)
        return (self._predict.with_context(told) if self._predict else told).n_ctx_seq

    def __call__(self, ctx_size: int | None = None, gpu_layers: int | None = None) -> Bytes:
        """With these settings or the spec's own, the runtime's overhead on each card included.

        ContradictionError where the file contradicts itself, UsageError where llama.cpp would refuse the settings.
        """
        spec = placed(self._spec, self._place.n_devices)
        if ctx_size is not None:
            spec = replace(spec, n_ctx=ctx_size * spec.n_parallel)
        if gpu_layers is not None:
            spec = replace(spec, n_gpu_layers=gpu_layers)
        layers = in_force(self._spec).n_gpu_layers if gpu_layers is None else gpu_layers
        if self._predict is None:
            guess = _guess(self._file_size, self._place, layers)
            return guess if spec.memory is None else _own(guess, spec.memory)
        memory = self._predict(spec)
        if self._place.is_charged and not self._place.n_devices:  # a card in name only, beside the host
            charged = self._predict(replace(spec, n_devices=1, n_gpu_layers=layers))
            return Bytes.of(charged.device_bytes, memory.host.total_bytes)
        return Bytes.of(memory.device_bytes, memory.host.total_bytes)

    def advise(self, limits: Bytes) -> str:
        """The plan that would fit: a smaller context, fewer layers on the card, or another model."""

        def spare(ctx_size: int, gpu_layers: int | None) -> int:
            needs = self(ctx_size, gpu_layers)
            card = limits.card - needs.card if self._place.is_charged else limits.host
            return min(card, limits.host - needs.host)

        told = in_force(self._spec)
        n_layers = self._predict.n_layers if self._predict and self._place.n_devices else 0
        advice = find_advice(self.context_size, n_layers, spare)
        if advice.ctx_size is not None:
            if told.n_ctx != self._spec.n_ctx:
                return f"a context of {advice.ctx_size} would fit, and engine_args ask for more"
            return f"ctx_size = {advice.ctx_size} would fit"
        if advice.gpu_layers is not None:
            if told.n_gpu_layers != self._spec.n_gpu_layers:
                return f"{advice.gpu_layers} layers on the card would fit, and engine_args ask for more"
            return f"gpu_layers = {advice.gpu_layers} would fit"
        return "a smaller model, or a smaller quantisation, would fit (find-gguf --fits)"


def _own(guess: Bytes, own_bytes: int) -> Bytes:
    """A person's own estimate where nothing but the size of the files is known: of the card, or else of the host."""
    return Bytes.of(own_bytes, guess.host) if guess.card else Bytes.of(0, own_bytes)


def _guess(file_size: int, place: Place, gpu_layers: int | None) -> Bytes:
    """What a model takes of which only the file's size is known."""
    whole = int(file_size * UNKNOWN_SHARE)
    overhead = OVERHEAD_BYTES * place.n_devices
    if gpu_layers == 0:  # the runtime still takes its part of each card
        return Bytes.of(overhead, whole)
    on_card = whole + overhead if place.is_charged else 0
    # Of some layers on the card nobody knows how large they are: both pay.
    return Bytes.of(on_card, 0 if place.n_devices and gpu_layers is None else whole)


def is_model(path: str) -> bool:
    """Whether a file is a language model, and no projector, adapter or the like; True where it cannot be read."""
    try:
        return classify(read_model(path)) == "model"
    except FileError:
        return True  # what is wrong with it is told by `Demand`


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
        return Bytes.of(predicted.card, max(predicted.host, taken.host))
    growth = min(max(predicted.card - taken.card, 0), OVERHEAD_BYTES)
    return Bytes.of(taken.card + growth, max(predicted.host, taken.host))


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
    return sum(card.free_bytes for card in find_visible_cards().cards)


def file_bytes(path: str) -> int:
    """The size of a file, or 0 where it has gone."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
