"""Several models on the devices of a room: which lies where, what is left, and what the host must take over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from modelpipes.fit.hparams import Hparams
from modelpipes.fit.memory import Memory, Predictor
from modelpipes.fit.rating import Room, host_work, largest
from modelpipes.fit.settings import Settings
from modelpipes.gguf.header import Header

MIB = 1 << 20
# Of devices for models. What people have needs some hundreds; beyond, the best found so far is taken.
MAX_TRIES = 5_000


@dataclass(frozen=True, slots=True)
class Placed:
    """One model's engine: its settings, its devices in the order of `memory.devices`, and what it takes there."""

    settings: Settings
    devices: tuple[int, ...]
    memory: Memory


Arrangement = Mapping[int, Placed]  # by the model's number, in the order asked for


class Arranger:
    """Arranges models of the list that it was made for; they are named by their numbers in it."""

    def __init__(self, headers: Sequence[Header], room: Room) -> None:
        """Raises FileError where a file is no language model."""
        self._predictors = [Predictor(header) for header in headers]
        self._keys = [header.signature for header in headers]
        self._known: dict[tuple[bytes, Settings], Memory] = {}
        self.room = room

    def hparams(self, model: int) -> Hparams:
        return self._predictors[model].hparams

    def predict(self, model: int, settings: Settings) -> Memory:
        """As `predict_memory`; asked again, it remembers."""
        key = self._keys[model], settings
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._predictors[model](settings)
        return found

    def host_work(self, placed: Arrangement) -> int:
        """Bytes of weights that the host reads when each model makes one token."""
        return sum(host_work(self._predictors[model], each.settings) for model, each in placed.items())

    def left_bytes(self, placed: Iterable[Placed]) -> list[int]:
        """What is left of every device above the reserve; negative: what is missing."""
        left = [free - self.room.reserve_bytes for free in self.room.device_bytes]
        for each in placed:
            for device, share in zip(each.devices, each.memory.devices, strict=True):
                left[device] -= share.total_bytes
        return left

    def host_left_bytes(self, placed: Iterable[Placed]) -> int:
        return self.room.host_bytes - sum(each.memory.host.total_bytes for each in placed)

    def spare_bytes(self, placed: Arrangement) -> int:
        """What the fullest of the devices in use, or the host, has left; negative: what is missing."""
        every = placed.values()
        left = self.left_bytes(every)
        used = {device for each in every for device in each.devices}
        return min([self.host_left_bytes(every), *(left[device] for device in used)])

    def whole(self, wanted: Mapping[int, Settings], n_split: int = 0) -> Arrangement | None:
        """All layers of every model on the devices: each on one, the `n_split` largest on all that have room.

        What is missing is for `spare_bytes` to say. None where there are no two devices to split over. Without
        devices, all is on the host.
        """
        n_devices = len(self.room.device_bytes)
        alone = {model: replace(each, n_devices=min(n_devices, 1)) for model, each in wanted.items()}
        if not n_devices:
            return {model: Placed(each, (), self.predict(model, each)) for model, each in alone.items()}
        sizes = {model: self.predict(model, each).devices[0].total_bytes for model, each in alone.items()}
        order = sorted(wanted, key=lambda model: -sizes[model])
        split, rest = order[:n_split], order[n_split:]
        devices = choose_devices([sizes[model] for model in rest], self.left_bytes(()))
        placed = {
            model: Placed(alone[model], (device,), self.predict(model, alone[model]))
            for model, device in zip(rest, devices, strict=True)
        }
        if split:
            left = self.left_bytes(placed.values())
            roomy = tuple(device for device, n_bytes in enumerate(left) if n_bytes >= MIB)
            if len(roomy) < 2:
                return None
            shares = tuple(float(left[device] // MIB) for device in roomy)
            for model in split:
                settings = replace(wanted[model], n_devices=len(roomy), tensor_split=shares)
                placed[model] = Placed(settings, roomy, self.predict(model, settings))
        return {model: placed[model] for model in wanted}

    def partial(self, wanted: Mapping[int, Settings], n_split: int = 0) -> Arrangement | None:
        """As `whole`, but with as much on the host as the devices lack; every model keeps a layer on a device.

        Experts go first, of which the host reads a few for each token; then layers, the largest model's first.
        None where that does not suffice, or the host has no room for it.
        """
        start = self.whole(wanted, n_split)
        if start is None:
            return None
        placed = dict(start)
        for model in sorted((each for each in placed if self.hparams(each).n_expert), key=self._used_experts):
            self._give_way(placed, model, replace(placed[model].settings, cpu_moe=True))
        for model in sorted(placed, key=lambda each: -self._device_bytes(start[each])):
            self._give_way(placed, model, replace(placed[model].settings, n_gpu_layers=1))
        return placed if self.spare_bytes(placed) >= 0 else None

    def _give_way(self, placed: dict[int, Placed], model: int, at_most: Settings) -> None:
        """Move as much of a model to the host as its devices lack; where nothing suffices, `at_most`."""
        others = [each for number, each in placed.items() if number != model]
        left, host_left = self.left_bytes(others), self.host_left_bytes(others)
        now, devices = placed[model].settings, placed[model].devices

        def spare(settings: Settings) -> int:
            shares = self.predict(model, settings).devices
            return min(left[device] - share.total_bytes for device, share in zip(devices, shares, strict=True))

        if spare(now) >= 0:
            return
        possible = []
        variants = {now, replace(now, cpu_moe=True)} if self.hparams(model).n_expert else {now}
        for variant in sorted(variants, key=lambda each: each.cpu_moe):
            some = [replace(variant, n_gpu_layers=n) for n in range(1, self.hparams(model).n_layer + 2)]
            n_layers = largest(1, len(some), lambda n, some=some: spare(some[n - 1]))  # type: ignore[misc]
            if n_layers and self.predict(model, some[n_layers - 1]).host.total_bytes <= host_left:
                possible.append(some[n_layers - 1])
        predictor = self._predictors[model]
        chosen = min(possible, key=lambda each: host_work(predictor, each), default=at_most)
        placed[model] = Placed(chosen, devices, self.predict(model, chosen))

    def _used_experts(self, model: int) -> float:
        """The share of a mixture's experts that a token needs."""
        hparams = self.hparams(model)
        return hparams.n_expert_used / hparams.n_expert

    @staticmethod
    def _device_bytes(placed: Placed) -> int:
        return sum(share.total_bytes for share in placed.memory.devices)


def choose_devices(sizes: Sequence[int], left_bytes: Sequence[int]) -> tuple[int, ...]:
    """A device for each size, such that the fullest of those in use is left the most.

    Tried first: in the order given, each where most is left; so give the largest first.
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
        size = sizes[len(chosen)]
        for n_bytes in sorted(set(left), reverse=True):  # devices with equal room are as good as each other
            device = left.index(n_bytes)
            rest = n_bytes - size
            tries += 1
            choose((*chosen, device), (*left[:device], rest, *left[device + 1 :]), min(spare, rest))

    choose((), tuple(left_bytes), max(left_bytes, default=0) + 1)
    return best
