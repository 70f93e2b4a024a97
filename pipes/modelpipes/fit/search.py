"""Look for settings under which several models are resident together: contexts, types of caches, devices."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelpipes.errors import UsageError
from modelpipes.fit.arrangement import NOBODY, Arrangement, Arranger, Placed
from modelpipes.fit.rating import LEAST_CONTEXT, STEP, Space, largest
from modelpipes.fit.spec import Backend, EngineSpec
from modelpipes.gguf.header import Header
from modelpipes.values.units import format_bytes

KV_TYPES = ("f16", "q8_0", "q4_0")
NEVER = -(1 << 60)  # bytes, where there is nothing to be missing


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked of a plan.

    `n_ctx` fixes the common context; without it, it is as large as fits, and at least `min_ctx`. Each model's is
    cut to what it was trained for. `kv_types` are those that caches may have, the best first; a model that refuses
    one gets the next better. With `whole_only` nothing goes to the host. The rest is as in `EngineSpec`.
    """

    n_ctx: int | None = None
    min_ctx: int = LEAST_CONTEXT
    kv_types: tuple[str, ...] = KV_TYPES
    whole_only: bool = False
    n_parallel: int = 1
    flash_attn: bool = True
    backend: Backend = "cuda"


@dataclass(frozen=True, slots=True)
class Whole:
    """All models whole at the largest common context, with the type meant for all caches."""

    n_ctx: int
    kv_type: str
    n_split: int
    placed: Arrangement


@dataclass(frozen=True, slots=True)
class Turn:
    """One model comes in for others, which leave; those that stay are not touched."""

    model: int
    leaves: tuple[int, ...]
    placed: Placed


class Search:
    """The search for one list of models; `least` is the least common context, `longest` the longest of use."""

    def __init__(self, headers: Sequence[Header], space: Space, wishes: Wishes) -> None:
        """Raises FileError where a file is no language model, UsageError where one takes none of the KV types."""
        self.arranger = Arranger(headers, space)
        self.wishes = wishes
        self.models = tuple(range(len(headers)))
        self._trained = [
            self.arranger.hparams(model).n_ctx_train or wishes.n_ctx or wishes.min_ctx for model in self.models
        ]
        self.longest = max(self._trained)
        self.least = min(wishes.n_ctx or -(-wishes.min_ctx // STEP) * STEP, self.longest)
        self._candidates = range(self.least, self.least + 1 if wishes.n_ctx else self.longest + STEP, STEP)
        self.refusals: dict[tuple[int, str], str] = {}
        """Why a model does not take a KV type."""
        self._choices = self._choose_types([header.path for header in headers])
        self.contexts = dict.fromkeys(self._choices, 0)
        """By KV type, the largest common context with all models whole; 0: none."""

    # -- what can be had

    def find_whole(self) -> Whole | None:
        """All models whole: with the largest context, then the best type, then the fewest of them split."""
        splits = dict.fromkeys(self.contexts, 0)
        for n_split, kv_type in itertools.product(self._splits(self.models), self.contexts):
            n_ctx = self._largest_context(kv_type, n_split, above=self.contexts[kv_type])
            if n_ctx:
                self.contexts[kv_type], splits[kv_type] = n_ctx, n_split
        kv_type = max(self.contexts, key=self.contexts.__getitem__)  # of equal ones the first, which is the best
        n_ctx, n_split = self.contexts[kv_type], splits[kv_type]
        return Whole(n_ctx, kv_type, n_split, self._with_better_types(n_ctx, kv_type, n_split)) if n_ctx else None

    def find_together(self, models: Sequence[int], beside: Arrangement = NOBODY) -> Arrangement | None:
        """These models at the least context: whole with the best type that allows it, else in part; or None."""
        for kv_type, n_split in itertools.product(self._choices, self._splits(models)):
            placed = self.arranger.whole(self._wanted(models, kv_type), n_split, beside)
            if placed is not None and self.arranger.spare_bytes(placed) >= 0:
                return placed
        if self.wishes.whole_only or not self.arranger.space.device_bytes:
            return None
        for kv_type in self._choices:
            wanted = self._wanted(models, kv_type)
            tried = [self.arranger.partial(wanted, n_split, beside) for n_split in self._splits(models)]
            if possible := [placed for placed in tried if placed is not None]:
                return min(possible, key=self.arranger.host_work)
        return None

    def find_residents(self) -> Arrangement:
        """The most models that can be resident together; then the least work for the host, then the most bytes."""
        for size in range(len(self.models), 0, -1):
            tried = [self.find_together(models) for models in itertools.combinations(self.models, size)]
            if possible := [placed for placed in tried if placed is not None]:
                return min(possible, key=lambda placed: (self.arranger.host_work(placed), -self.weights_bytes(placed)))
        return NOBODY

    def find_turn(self, model: int, residents: Arrangement) -> Turn | None:
        """Who leaves so that a model can come in: the fewest, then for the least work of the host, then the fewest
        bytes. None if it would not suffice that all leave.
        """
        for size in range(1, len(residents) + 1):
            turns: list[tuple[int, int, Turn]] = []
            for leaves in itertools.combinations(residents, size):
                staying = {other: placed for other, placed in residents.items() if other not in leaves}
                placed = self.find_together([model], beside=staying)
                if placed is not None:
                    work = self.arranger.host_work({model: placed[model]})
                    turns.append((work, self.weights_bytes(leaves), Turn(model, leaves, placed[model])))
            if turns:
                return min(turns, key=lambda turn: turn[:2])[2]
        return None

    def spare_bytes(self, n_ctx: int, kv_type: str, n_split: int) -> int:
        """What is left, or missing, with all models whole."""
        placed = self.arranger.whole(self._wanted(self.models, kv_type, n_ctx), n_split)
        return NEVER if placed is None else self.arranger.spare_bytes(placed)

    def describe_lack(self) -> str:
        """What is missing, and where, for all models to be whole at the least context."""
        tried = [
            self.arranger.whole(self._wanted(self.models, kv_type), n_split)
            for kv_type, n_split in itertools.product(self._choices, self._splits(self.models))
        ]
        nearest = max((placed for placed in tried if placed is not None), key=self.arranger.spare_bytes)
        missing = -self.arranger.spare_bytes(nearest)
        is_on_host = missing == -self.arranger.host_left_bytes(nearest.values())
        return f"{format_bytes(missing)} of {'host' if is_on_host else 'card'} memory"

    def alone(self, model: int) -> Placed:
        """A model whole on the roomiest device, whether it fits or not."""
        placed = self.arranger.whole(self._wanted([model], next(iter(self._choices))))
        assert placed is not None
        return placed[model]

    def weights_bytes(self, models: Iterable[int]) -> int:
        """Bytes of weights to be read for these models to become resident."""
        memories = (self.alone(model).memory for model in models)
        return sum(share.model_bytes for memory in memories for share in (*memory.devices, memory.host))

    # -- how

    def _largest_context(self, kv_type: str, n_split: int, above: int) -> int:
        """The largest common context with all models whole, if it is above one that is known; else 0."""
        low = bisect.bisect_right(self._candidates, above)
        if above >= self.longest or low == len(self._candidates):
            return 0
        if n_split and not self._has_room(self._candidates[low], kv_type):
            return 0

        def spare(number: int) -> int:
            return self.spare_bytes(self._candidates[number], kv_type, n_split)

        best = largest(low, len(self._candidates) - 1, spare)
        return min(self._candidates[best], self.longest) if best >= low else 0

    def _has_room(self, n_ctx: int, kv_type: str) -> bool:
        """Whether all devices together have space for all models; split ones take more than whole ones, never less."""
        placed = self.arranger.whole(self._wanted(self.models, kv_type, n_ctx)) or NOBODY
        needed = sum(share.total_bytes for each in placed.values() for share in each.memory.devices)
        return needed <= sum(max(left, 0) for left in self.arranger.left_bytes(()))

    def _with_better_types(self, n_ctx: int, kv_type: str, n_split: int) -> Arrangement:
        """The arrangement, with better types than meant where there is space, for models named first before others."""
        wanted = self._wanted(self.models, kv_type, n_ctx)
        placed = self.arranger.whole(wanted, n_split)
        assert placed is not None
        known = self.wishes.kv_types
        for model in self.models:
            for better in known[: known.index(wanted[model].type_k)]:
                if (model, better) in self.refusals:
                    continue
                tried = {**wanted, model: self._settings(model, better, n_ctx)}
                found = self.arranger.whole(tried, n_split)
                if found is not None and self.arranger.spare_bytes(found) >= 0:
                    wanted, placed = tried, found
                    break
        return placed

    def _splits(self, models: Sequence[int]) -> range:
        """How many of the models may be split over several devices."""
        return range(len(models) + 1 if len(self.arranger.space.device_bytes) > 1 else 1)

    def _settings(self, model: int, kv_type: str, n_ctx: int) -> EngineSpec:
        return EngineSpec(
            n_ctx=min(n_ctx, self._trained[model]),
            n_parallel=self.wishes.n_parallel,
            flash_attn=self.wishes.flash_attn,
            type_k=kv_type,
            type_v=kv_type,
            backend=self.wishes.backend,
        )

    def _wanted(self, models: Iterable[int], kv_type: str, n_ctx: int | None = None) -> dict[int, EngineSpec]:
        types = self._choices[kv_type]
        return {model: self._settings(model, types[model], n_ctx or self.least) for model in models}

    def _choose_types(self, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """By the type meant for all, the best first: each model's own. What comes to the same is there once."""
        known = self.wishes.kv_types
        choices: dict[str, tuple[str, ...]] = {}
        for number, kv_type in enumerate(known):
            types = []
            for model in self.models:
                try:
                    self.arranger.predict(model, self._settings(model, kv_type, self.least))
                except UsageError as error:
                    self.refusals[model, kv_type] = str(error)
                accepted = [each for each in known[: number + 1] if (model, each) not in self.refusals]
                if not accepted:
                    raise UsageError(f"{paths[model]}: {self.refusals[model, kv_type]}")
                types.append(accepted[-1])
            if tuple(types) not in choices.values():
                choices[kv_type] = tuple(types)
        return choices
