"""A plan as fit-models shows it: a table; to a person also what was decided, why, and each card's memory as a bar."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from modelpipes.fit.plan import Plan
from modelpipes.fit.rating import Space
from modelpipes.gguf.modelfile import printable
from modelpipes.machine.cards import Card
from modelpipes.terminal import output
from modelpipes.terminal.table import Table
from modelpipes.values.units import format_bytes

LETTERS = string.ascii_uppercase
HELD, KEPT, FREE = "#-."  # of a bar, beside the models' letters
SPARE = ("buffers", "caches", "weights", "card")  # in a narrow terminal, the least needed first
MIN_NAME, MIN_BAR = 8, 20


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


def write_document(view: View, format_: str) -> None:
    """The models and why each is where it is, as a table for others."""
    rows = [
        [*(cell.strip() for cell in _row(view, number)[1:]), model.reason]
        for number, model in enumerate(view.plan.models)
    ]
    headers = [*HEADERS[1:], "why"]
    output.write_table(Table(headers, rows, right=headers[5:-1]), format_)


def write_screen(view: View) -> None:
    """The models, what was decided and why, and a bar for each card."""
    width = output.columns()
    rows = [_row(view, number) for number in range(len(view.names))]
    widths = [max(map(len, column)) for column in zip(HEADERS, *rows, strict=True)]
    for row in rows:
        row[1] = _cut(row[1], max(width - sum(2 + each for each in widths) + 2 + widths[1], MIN_NAME))
    output.write_table(Table(HEADERS, rows, spare=SPARE))
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
