"""A plan as fit-models shows it: a table with the card's memory as a bar, JSON, or command lines."""

from __future__ import annotations

import os
import shlex
import string
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from modelpipes.commands.cli.cards import DescribedCards
from modelpipes.fit.plan import Kind, Plan, Planned, Swap
from modelpipes.fit.rating import Space
from modelpipes.fit.shares import Share
from modelpipes.gguf.modelfile import path_base64, printable
from modelpipes.machine.cards import Card
from modelpipes.machine.nvml import Process
from modelpipes.terminal import output
from modelpipes.values.units import format_bytes

LETTERS = string.ascii_uppercase
HELD, KEPT, FREE = "#-."  # of a bar, beside the models' letters
DEFAULT_WIDTH = 80  # where stdout is no terminal
SPARE = ("buffers", "caches", "weights", "card")  # in a narrow terminal, the least needed first
MIN_NAME, MIN_BAR = 8, 20
HOST = "127.0.0.1"
FIRST_PORT = 8081  # 8080 is every other server's


@dataclass(frozen=True)
class View:
    """A plan with what it was made for: the models' names and files, the cards, and their space."""

    plan: Plan
    names: Sequence[str]
    paths: Sequence[str]
    cards: Sequence[Card]
    space: Space

    def planned_bytes(self, device: int) -> dict[int, int]:
        """What each resident model takes of a card."""
        return {
            number: share.total_bytes
            for number, model in enumerate(self.plan.models)
            if model.resident
            for at, share in zip(model.devices, model.memory.devices, strict=True)
            if at == device
        }

    @property
    def host_bytes(self) -> int:
        """What the resident models take of the host's memory."""
        return sum(model.memory.host.total_bytes for model in self.plan.models if model.resident)


# -- the table


def write_table(view: View) -> None:
    """The models, what was decided and why, and a bar for each card."""
    width = output.width() or DEFAULT_WIDTH
    rows = [_row(view, number) for number in range(len(view.names))]
    widths = [max(map(len, column)) for column in zip(HEADERS, *rows, strict=True)]
    for row in rows:
        row[1] = _cut(row[1], max(width - sum(2 + each for each in widths) + 2 + widths[1], MIN_NAME))
    output.write_table(rows, HEADERS, output.width(), spare=SPARE)
    lines = ["", *_wrapped("plan: ", view.plan.reason, width)]
    for letter, model in zip(LETTERS, view.plan.models, strict=False):
        lines += _wrapped(f"{letter}: ", model.reason, width)
    for swap in view.plan.swaps:
        leaves = ", ".join(LETTERS[number] for number in swap.leaves)
        text = f"{LETTERS[swap.enters]} in, {leaves} out loads {format_bytes(swap.loads_bytes)}"
        lines += _wrapped("swap: ", f"{text}; back again {format_bytes(swap.returns_bytes)}", width)
    for device, card in enumerate(view.cards):
        lines += ["", *_card_lines(view, device, card, width)]
    host = f"{format_bytes(view.host_bytes)} planned of {format_bytes(view.space.host_bytes)} available"
    lines += ["", *_wrapped("host memory: ", host, width)]
    output.write_text("".join(f"{line}\n" for line in lines))


HEADERS = ["", "model", "context", "KV", "layers", "card", "weights", "caches", "buffers", "host"]


def _row(view: View, number: int) -> list[str]:
    model = view.plan.models[number]
    shares = model.memory.devices
    buffers = sum(share.compute_bytes + share.overhead_bytes for share in shares)
    place = "+".join(map(str, model.devices)) if model.resident else "turns"
    return [
        LETTERS[number],
        printable(view.names[number]) + ("~" if model.memory.estimate == "generic" else ""),
        f"{model.settings.n_ctx:7}",
        model.settings.type_k,
        f"{model.gpu_layers}/{model.n_layers}" + (" -experts" if model.settings.cpu_moe else ""),
        "no" if model.fit == "no" else place,
        _gib(sum(share.model_bytes for share in shares)),
        _gib(sum(share.context_bytes for share in shares)),
        _gib(buffers),
        _gib(model.memory.host.total_bytes),
    ]


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f}G"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrapped(head: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head))


# -- the bar


def _card_lines(view: View, device: int, card: Card, width: int) -> list[str]:
    """A card's memory as a bar, and what its parts are."""
    planned = view.planned_bytes(device)
    free_now = view.space.device_bytes[device]
    kept = min(view.space.reserve_bytes, free_now)
    parts = [
        *((LETTERS[number], view.names[number], n_bytes) for number, n_bytes in planned.items()),
        (HELD, "in use now", card.total_bytes - free_now),
        (KEPT, "kept free", kept),
        (FREE, "free", free_now - kept - sum(planned.values())),
    ]
    parts = [(sign, name, n_bytes) for sign, name, n_bytes in parts if n_bytes > 0]
    legend = [f"{sign} {_cut(printable(name), width - 14)} {format_bytes(n_bytes)}" for sign, name, n_bytes in parts]
    bar = draw_bar([(sign, n_bytes) for sign, _, n_bytes in parts], max(width - 2, MIN_BAR))
    lines = [f"card {device}: {card.name}, {format_bytes(card.total_bytes)}", f"[{bar}]", *_joined(legend, width)]
    if card.processes:
        holders = [
            f"{printable(each.name) or 'unknown'} (pid {each.pid})"
            + (f" {format_bytes(each.used_bytes)}" if each.used_bytes is not None else "")
            for each in card.processes
        ]
        lines += _wrapped("in use by: ", ", ".join(holders), width)
    return lines


def draw_bar(parts: Sequence[tuple[str, int]], width: int) -> str:
    """A bar of so many characters; each part has its share of them, in its own."""
    total = sum(n_bytes for _, n_bytes in parts)
    bar, done = "", 0
    for sign, n_bytes in parts:
        done += n_bytes
        bar += sign * (done * width // total - len(bar))
    return bar


def _joined(items: Sequence[str], width: int) -> list[str]:
    """Items on as few lines as hold them, none broken."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 3 + len(item) <= width:
            lines[-1] += f"   {item}"
        else:
            lines.append(item)
    return lines


# -- JSON


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    estimate: Literal["exact", "generic"]
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


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan as JSON says it; `enters` and `leaves` of a swap are places in `models`.

    `context` is the common context in tokens; `contexts` says for each type of cache the largest with all models
    whole (0: none).
    """

    gpu: DescribedCards
    settings: Asked
    plan: Kind
    context: int
    contexts: Mapping[str, int]
    estimate: Literal["exact", "generic"]
    reason: str
    models: list[PlannedModel]
    swaps: tuple[Swap, ...]
    cards: list[PlannedCard]
    host: PlannedHost


def write_json(view: View, gpu: DescribedCards, settings: Asked) -> None:
    """The plan as one object, for other commands."""
    plan = view.plan
    output.write_json(
        Report(
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


# -- command lines


def write_commands(view: View) -> None:
    """A llama-server command line for each model, to be pasted into a shell."""
    for number, (model, path) in enumerate(zip(view.plan.models, view.paths, strict=True)):
        words = command_words(model, path, FIRST_PORT + number, len(view.cards))
        output.write_text(" ".join(map(_quoted, words)) + "\n")


def command_words(model: Planned, path: str, port: int, n_cards: int) -> list[str]:
    """The command line of one engine, which leaves nothing of the plan to llama-server."""
    settings = model.settings
    words = ["llama-server", "-m", path, "--fit", "off", "-c", str(settings.n_ctx), "-np", str(settings.n_parallel)]
    if settings.n_parallel > 1:
        words += ["--kv-unified"]
    words += ["-ngl", str(model.gpu_layers), "-ctk", settings.type_k, "-ctv", settings.type_v]
    words += ["-fa", "on" if settings.flash_attn else "off"]
    if settings.cpu_moe:
        words += ["--cpu-moe"]
    if n_cards > 1:  # llama.cpp counts the cards that it sees; a single one needs no name
        words += ["-dev", ",".join(f"CUDA{device}" for device in model.devices)]
    if settings.tensor_split:
        words += ["-ts", ",".join(f"{share:.0f}" for share in settings.tensor_split)]
    return [*words, "--host", HOST, "--port", str(port)]


def _quoted(word: str) -> str:
    """A word for the shell; what cannot be printed in the notation of POSIX.1-2024, which bash has had for long."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (f"\\{byte:03o}" if not 0x20 <= byte < 0x7F or byte in b"\\'" else chr(byte) for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"
