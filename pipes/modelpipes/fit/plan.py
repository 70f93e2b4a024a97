"""Plan which models are resident together, under which settings and why; or which of them take turns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modelpipes.errors import UsageError
from modelpipes.fit.arrangement import Placed
from modelpipes.fit.rating import STEP, Space
from modelpipes.fit.search import Search, Turn, Whole, Wishes
from modelpipes.fit.shares import Memory
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header
from modelpipes.values.units import format_bytes

__all__ = ["MAX_MODELS", "Plan", "Planned", "Swap", "Wishes", "plan"]

MAX_MODELS = 12  # of so many, all subsets can be looked at

Kind = Literal["whole", "partial", "turns", "none"]


@dataclass(frozen=True, slots=True)
class Planned:
    """One model of a plan: its engine's settings, the devices it lies on, and what it takes there.

    `devices` are numbers in the space, in the order of `memory.devices`; `gpu_layers` of `n_layers` lie there (the
    output is one). A model that is not `resident` takes its turn with these settings, unless `fit` is `no`.
    """

    settings: EngineSpec
    devices: tuple[int, ...]
    memory: Memory
    gpu_layers: int
    n_layers: int
    fit: Literal["fits", "partial", "no"]
    resident: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Swap:
    """One model's turn: who leaves for it, and bytes of weights to load for it, and for them to come back."""

    enters: int
    leaves: tuple[int, ...]
    loads_bytes: int
    returns_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which models are resident together, and how.

    `whole`: all, on the devices. `partial`: all, with the host's help. `turns`: not all; the others come in by
    `swaps`. `none`: not all, and some have no turn either. `models` are in the order asked for. `n_ctx` is the
    common context; `contexts` says for each KV type the largest with all of them whole (0: none).
    """

    kind: Kind
    n_ctx: int
    models: tuple[Planned, ...]
    swaps: tuple[Swap, ...]
    contexts: Mapping[str, int]
    reason: str

    @property
    def is_together(self) -> bool:
        """Whether all are resident at once."""
        return self.kind in ("whole", "partial")

    @property
    def estimate(self) -> Literal["exact", "generic"]:
        """As in `Memory`, of the least exact."""
        return "generic" if any(each.memory.estimate == "generic" for each in self.models) else "exact"


def plan(headers: Sequence[Header], space: Space, wishes: Wishes | None = None) -> Plan:
    """Plan these models for the devices of a space; in one without devices, for the host.

        space = Space(device_bytes=(16 << 30,), host_bytes=32 << 30)
        planned = plan([read_header("a.gguf"), read_header("b.gguf")], space)
        print(planned.kind, planned.n_ctx, [model.settings for model in planned.models], planned.reason)

    All of them whole comes first: with the largest common context, at an equal context with the better KV type,
    then with the fewest models split over devices. Else, at the least context, the host takes over a part; else
    some take turns. Raises FileError where a file is no language model, UsageError where a wish cannot be met in
    any space.
    """
    if not 1 <= len(headers) <= MAX_MODELS:
        raise UsageError(f"{len(headers)} models: a plan is for 1 to {MAX_MODELS}")
    search = Search(headers, space, wishes or Wishes())
    whole = search.find_whole()
    if whole is not None:
        models = [_planned(search, model, placed, whole=whole) for model, placed in sorted(whole.placed.items())]
        return Plan("whole", whole.n_ctx, tuple(models), (), search.contexts, _why_whole(search, whole))
    return _plan_less(search)


def _plan_less(search: Search) -> Plan:
    """The plan where not all can be whole."""
    residents = search.find_residents()
    waiting = [model for model in search.models if model not in residents]
    turns = {model: turn for model in waiting if (turn := search.find_turn(model, residents)) is not None}
    models = []
    for model in search.models:
        if model in residents:
            models.append(_planned(search, model, residents[model]))
        elif model in turns:
            models.append(_planned(search, model, turns[model].placed, waits=True))
        else:
            models.append(_unplanned(search, model))
    kind: Kind = "partial" if not waiting else "turns" if len(turns) == len(waiting) else "none"
    reason = f"whole, at a context of {search.least}, {search.describe_lack()} are missing"
    if kind == "partial":
        work = format_bytes(search.arranger.host_work(residents))
        reason += f": the host takes over a part, and reads {work} of weights a token"
    elif not search.wishes.whole_only:
        reason += ", and the host cannot take over enough"
    swaps = tuple(_swap(search, turn) for turn in turns.values())
    return Plan(kind, search.least, tuple(models), swaps, search.contexts, reason)


def _swap(search: Search, turn: Turn) -> Swap:
    loads, returns = search.weights_bytes([turn.model]), search.weights_bytes(turn.leaves)
    return Swap(turn.model, turn.leaves, loads, returns)


def _planned(search: Search, model: int, placed: Placed, *, whole: Whole | None = None, waits: bool = False) -> Planned:
    settings, n_layers = placed.settings, search.arranger.hparams(model).n_layer + 1
    n_gpu = n_layers if settings.n_gpu_layers is None else settings.n_gpu_layers
    work = search.arranger.host_work({model: placed}) if placed.devices else 0
    reasons = []
    if waits:
        reasons.append("takes turns")
    if work:
        experts = ", experts on the host" if settings.cpu_moe else ""
        reasons.append(f"{n_gpu} of {n_layers} layers{experts}: the host reads {format_bytes(work)} a token")
    if len(placed.devices) > 1:
        reasons.append(f"split over {len(placed.devices)} cards, which hold more that way")
    if whole and settings.n_ctx < whole.n_ctx:
        reasons.append(f"trained for {settings.n_ctx} tokens")
    if whole and settings.type_k != whole.kv_type:
        refusal = search.refusals.get((model, whole.kv_type))
        reasons.append(refusal or f"there is space for a cache of {settings.type_k}")
    if placed.memory.estimate == "generic":
        reasons.append("an estimate by the general rule: the architecture is not known")
    return Planned(
        settings=settings,
        devices=placed.devices,
        memory=placed.memory,
        gpu_layers=n_gpu if placed.devices else 0,
        n_layers=n_layers,
        fit="partial" if work else "fits",
        resident=not waits,
        reason="; ".join(reasons) or "whole, at the common context",
    )


def _unplanned(search: Search, model: int) -> Planned:
    """A model that does not fit, even alone."""
    placed, space = search.alone(model), search.arranger.space
    needed = sum(share.total_bytes for share in (*placed.memory.devices, placed.memory.host))
    free = sum(max(n_bytes - space.reserve_bytes, 0) for n_bytes in space.device_bytes)
    return Planned(
        settings=placed.settings,
        devices=placed.devices,
        memory=placed.memory,
        gpu_layers=0,
        n_layers=search.arranger.hparams(model).n_layer + 1,
        fit="no",
        resident=False,
        reason=f"needs {format_bytes(needed)} even alone: there are {format_bytes(free)} on the devices, "
        f"{format_bytes(space.host_bytes)} on the host",
    )


def _why_whole(search: Search, whole: Whole) -> str:
    if search.wishes.n_ctx:
        end = "as asked for"
    elif whole.n_ctx >= search.longest:
        end = "as long as trained for"
    else:
        longer = min(whole.n_ctx + STEP, search.longest)
        missing = -search.spare_bytes(longer, whole.kv_type, whole.n_split)
        end = f"{longer} would need {format_bytes(missing)} more"
    reason = f"all whole at a context of {whole.n_ctx} ({end}), KV cache of {whole.kv_type}"
    better = [
        f"{kv_type} would end at {n_ctx}" if n_ctx else f"{kv_type} would not fit"
        for kv_type, n_ctx in itertools.takewhile(lambda item: item[0] != whole.kv_type, search.contexts.items())
    ]
    return f"{reason} ({', '.join(better)})" if better else reason
