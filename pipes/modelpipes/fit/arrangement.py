"""Several models on the devices of a space: which lies where, what is left, and what the host takes over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from modelpipes.fit.hparams import Hparams
from modelpipes.fit.memory import Predictor
from modelpipes.fit.rating import Space, host_work, largest
from modelpipes.fit.shares import Memory
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header

MIB = 1 << 20
# Choices of devices for models. What people have needs some hundreds; beyond, the best found so far is taken.
MAX_TRIES = 5_000


@dataclass(frozen=True, slots=True)
class Placed:
    """One model's engine: its settings, its devices in the order of `memory.devices`, and what it takes there."""

    settings: EngineSpec
    devices: tuple[int, ...]
    memory: Memory


Arrangement: TypeAlias = Mapping[int, Placed]  # by the model's number, in the order asked for
NOBODY: Arrangement = MappingProxyType({})


class Arranger:
    """Arranges models of the list that it is made for, known by their numbers in it."""

    def __init__(self, headers: Sequence[Header], space: Space) -> None:
        """Raises FileError where a file is no language model."""
        alike = {header.signature: header for header in headers}
        predictors = {signature: Predictor(header) for signature, header in alike.items()}
        self._predictors = [predictors[header.signature] for header in headers]
        self.space = space

    def hparams(self, model: int) -> Hparams:
        return self._predictors[model].hparams

    def predict(self, model: int, settings: EngineSpec) -> Memory:
        """As `predict_memory`."""
        return self._predictors[model](settings)

    def host_work(self, placed: Arrangement) -> int:
        """Bytes of weights that the host reads while each model makes one token."""
        return sum(host_work(self._predictors[model], each.settings) for model, each in placed.items())

    def left_bytes(self, placed: Iterable[Placed]) -> list[int]:
        """What is left of every device above the reserve; negative: what is missing."""
        left = [free - self.space.reserve_bytes for free in self.space.device_bytes]
        for each in placed:
            for device, share in zip(each.devices, each.memory.devices, strict=True):
                left[device] -= share.total_bytes
        return left

    def host_left_bytes(self, placed: Iterable[Placed]) -> int:
        return self.space.host_bytes - sum(each.memory.host.total_bytes for each in placed)

    def spare_bytes(self, placed: Arrangement) -> int:
        """What the fullest of the devices in use, or the host, has left; negative: what is missing."""
        left = self.left_bytes(placed.values())
        used = {device for each in placed.values() for device in each.devices}
        return min([self.host_left_bytes(placed.values()), *(left[device] for device in used)])

    def whole(
        self, wanted: Mapping[int, EngineSpec], n_split: int = 0, beside: Arrangement = NOBODY
    ) -> Arrangement | None:
        """All layers of the models on the devices, each on one, the `n_split` largest on all that have space.

        Those that they lie beside stay as they are. What is missing is for `spare_bytes` to say; None where there
        are no two devices to split over. In a space without devices, all is on the host.
        """
        n_devices = len(self.space.device_bytes)
        alone = {model: replace(each, n_devices=min(n_devices, 1)) for model, each in wanted.items()}
        if not n_devices:
            return {**beside, **{model: Placed(each, (), self.predict(model, each)) for model, each in alone.items()}}
        sizes = {model: self.predict(model, each).devices[0].total_bytes for model, each in alone.items()}
        order = sorted(wanted, key=lambda model: -sizes[model])
        split, rest = order[:n_split], order[n_split:]
        devices = choose_devices([sizes[model] for model in rest], self.left_bytes(beside.values()))
        placed = dict(beside)
        for model, device in zip(rest, devices, strict=True):
            placed[model] = Placed(alone[model], (device,), self.predict(model, alone[model]))
        if split:
            left = self.left_bytes(placed.values())
            roomy = tuple(device for device, n_bytes in enumerate(left) if n_bytes >= MIB)
            if len(roomy) < 2:
                return None
            shares = tuple(float(left[device] // MIB) for device in roomy)
            for model in split:
                settings = replace(wanted[model], n_devices=len(roomy), tensor_split=shares)
                placed[model] = Placed(settings, roomy, self.predict(model, settings))
        return {model: placed[model] for model in (*beside, *wanted)}

    def partial(
        self, wanted: Mapping[int, EngineSpec], n_split: int = 0, beside: Arrangement = NOBODY
    ) -> Arrangement | None:
        """As `whole`, but with on the host what the devices lack space for; each model keeps a layer on a device.

        Experts go first, of which the host reads only a few for each token; then layers, of the largest model
        first. None where that does not suffice, or the host lacks space as well.
        """
        start = self.whole(wanted, n_split, beside)
        if start is None:
            return None
        weights = sum(share.model_bytes for model in wanted for share in start[model].memory.devices)
        if weights > sum(max(left, 0) for left in self.left_bytes(beside.values())) + self.host_left_bytes(
            start.values()
        ):
            return None  # whoever gives way
        placed = dict(start)
        mixtures = [model for model in wanted if self.hparams(model).n_expert]
        for model in sorted(mixtures, key=self._used_experts):
            self._give_way(placed, model, replace(placed[model].settings, cpu_moe=True))
        for model in sorted(wanted, key=lambda model: -sum(each.total_bytes for each in placed[model].memory.devices)):
            self._give_way(placed, model, replace(placed[model].settings, n_gpu_layers=1))
        return placed if self.spare_bytes(placed) >= 0 else None

    def _give_way(self, placed: dict[int, Placed], model: int, at_most: EngineSpec) -> None:
        """Move as much of a model to the host as its devices lack; if nothing suffices, `at_most`."""
        others = [each for number, each in placed.items() if number != model]
        left, host_left = self.left_bytes(others), self.host_left_bytes(others)
        now, devices = placed[model].settings, placed[model].devices
        hparams = self.hparams(model)

        def spare(settings: EngineSpec) -> int:
            shares = self.predict(model, settings).devices
            return min(left[device] - share.total_bytes for device, share in zip(devices, shares, strict=True))

        def with_most_layers(settings: EngineSpec) -> EngineSpec:
            n_layers = largest(1, hparams.n_layer + 1, lambda n: spare(replace(settings, n_gpu_layers=n)))
            return replace(settings, n_gpu_layers=n_layers)

        if spare(now) >= 0:
            return
        variants = [now, replace(now, cpu_moe=True)] if hparams.n_expert else [now]
        possible = [
            each
            for each in map(with_most_layers, variants)
            if each.n_gpu_layers and self.predict(model, each).host.total_bytes <= host_left
        ]
        chosen = min(possible, key=lambda each: host_work(self._predictors[model], each), default=at_most)
        placed[model] = Placed(chosen, devices, self.predict(model, chosen))

    def _used_experts(self, model: int) -> float:
        """The share of a mixture's experts that a token needs."""
        hparams = self.hparams(model)
        return hparams.n_expert_used / hparams.n_expert


def choose_devices(sizes: Sequence[int], left_bytes: Sequence[int]) -> tuple[int, ...]:
    """A device for each size, such that the fullest of those in use has the most left.

    First tried is each in turn where most is left: give the largest first.
    """
    best: tuple[int, ...] = ()
    best_spare: int | None = None
    tries = 0

    def choose(chosen: tuple[int, ...], left: tuple[int, ...], spare: int) -> None:
        nonlocal best, best_spare, tries
        if best_spare is not None and (spare <= best_spare or tries >= MAX_TRIES):
            return
        if len(chosen) == len(sizes):
            best, best_spare = chosen, spare
            return
        tries += 1
        for n_bytes in sorted(set(left), reverse=True):  # of devices with equal space one is as good as the other
            device = left.index(n_bytes)
            rest = n_bytes - sizes[len(chosen)]
            choose((*chosen, device), (*left[:device], rest, *left[device + 1 :]), min(spare, rest))

    choose((), tuple(left_bytes), max(left_bytes))
    return best
