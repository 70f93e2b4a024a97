"""A plan as one JSON object, for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from modelpipes.commands.views.cards import DescribedCards
from modelpipes.commands.views.plan import View
from modelpipes.fit.plan import Kind, Swap
from modelpipes.fit.shares import Estimate, Share
from modelpipes.gguf.modelfile import path_base64, printable
from modelpipes.machine.cards import Card
from modelpipes.machine.nvml import Process
from modelpipes.terminal import output


class PlanAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the plan was made for: contexts in tokens, null where the largest is wanted."""

    ctx_size: int | None
    min_ctx: int
    kv_types: tuple[str, ...]
    parallel: int
    flash_attn: bool
    whole: bool
    reserve_bytes: int
    host_available_bytes: int


class PlannedMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model takes of each of its devices, and of the host."""

    devices: tuple[Share, ...]
    host: Share


class PlannedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model: the settings of its engine, where it lies, what it takes; `devices` are places in `cards`.

    One that is not `resident` takes its turn with these settings, unless `fit` is `no`. `path_bytes` is the path in
    base64 where it cannot be printed. `context` counts tokens.
    """

    name: str
    path: str
    path_bytes: str | None
    fit: Literal["fits", "partial", "no"]
    resident: bool
    context: int
    parallel: int
    kv_unified: bool
    flash_attn: bool
    type_k: str
    type_v: str
    gpu_layers: int
    n_layers: int
    cpu_moe: bool
    devices: tuple[int, ...]
    tensor_split: tuple[float, ...] | None
    memory: PlannedMemory
    estimate: Estimate
    reason: str


class PlannedCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One card: its memory, how much of it the plan uses, and who holds some now."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    reserve_bytes: int
    used_by_plan_bytes: int
    processes: tuple[Process, ...]


class PlannedHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The host memory, and how much of it the plan uses."""

    available_bytes: int
    used_by_plan_bytes: int


class PlanReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan as JSON says it; `enters` and `leaves` of a swap are places in `models`.

    `context` is the common context in tokens; `contexts` says for each type of cache the largest with all models
    whole (0: none).
    """

    gpu: DescribedCards
    settings: PlanAsked
    plan: Kind
    context: int
    contexts: Mapping[str, int]
    estimate: Literal["exact", "generic"]
    reason: str
    models: list[PlannedModel]
    swaps: tuple[Swap, ...]
    cards: list[PlannedCard]
    host: PlannedHost


def write(view: View, gpu: DescribedCards, settings: PlanAsked) -> None:
    """Write the plan to stdout as one object."""
    plan = view.plan
    output.write_json(
        PlanReport(
            gpu=gpu,
            settings=settings,
            plan=plan.kind,
            context=plan.n_ctx,
            contexts=plan.contexts,
            estimate=plan.estimate,
            reason=plan.reason,
            models=[_model_record(view, number) for number in range(len(plan.models))],
            swaps=plan.swaps,
            cards=[_card_record(view, device, card) for device, card in enumerate(view.cards)],
            host=PlannedHost(view.space.host_bytes, view.host_bytes),
        )
    )


def _model_record(view: View, number: int) -> PlannedModel:
    model, path = view.plan.models[number], view.paths[number]
    settings = model.settings
    return PlannedModel(
        name=printable(view.names[number]),
        path=printable(path),
        path_bytes=path_base64(path),
        fit=model.fit,
        resident=model.resident,
        context=settings.n_ctx,
        parallel=settings.n_parallel,
        kv_unified=settings.kv_unified,
        flash_attn=settings.flash_attn,
        type_k=settings.type_k,
        type_v=settings.type_v,
        gpu_layers=model.gpu_layers,
        n_layers=model.n_layers,
        cpu_moe=settings.cpu_moe,
        devices=model.devices,
        tensor_split=settings.tensor_split,
        memory=PlannedMemory(model.memory.devices, model.memory.host),
        estimate=model.memory.estimate,
        reason=model.reason,
    )


def _card_record(view: View, device: int, card: Card) -> PlannedCard:
    return PlannedCard(
        index=card.index,
        name=card.name,
        total_bytes=card.total_bytes,
        free_bytes=view.space.device_bytes[device],
        reserve_bytes=view.space.reserve_bytes,
        used_by_plan_bytes=sum(view.planned_bytes(device).values()),
        processes=card.processes,
    )
