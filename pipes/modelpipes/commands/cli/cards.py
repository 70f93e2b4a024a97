"""Options of the commands that reckon with a card: which one, what is kept free, and how models are to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
import msgspec

from modelpipes.commands.cli import options, values
from modelpipes.commands.cli.configured import GET_CONFIG, in_force
from modelpipes.errors import UsageError
from modelpipes.fit.rating import DEFAULT_RESERVE_BYTES
from modelpipes.gguf.types import CACHE_TYPES
from modelpipes.machine.cards import Card, parse_gpu
from modelpipes.terminal import output
from modelpipes.values.units import format_bytes

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from modelpipes.config.settings import Use


PLAIN_KV_TYPES = ("f16", "f32", "bf16")  # llama.cpp takes the others for values with flash attention only


class KvType(click.ParamType[str]):
    """A type that a cache of keys and values can have."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in CACHE_TYPES:
            self.fail(f"{value!r} is none of {', '.join(CACHE_TYPES)}", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return click.Choice(list(CACHE_TYPES)).shell_complete(ctx, param, incomplete)


def prediction_options(command: Any) -> Any:
    """--kv-type, --parallel and --[no-]flash-attn."""
    for option in (
        click.option("--flash-attn/--no-flash-attn", default=True, help="Flash attention.  [yes]"),
        click.option("--parallel", type=click.IntRange(1, 256), default=1, metavar="N",
                     help="Conversations at a time, which share the context.  [1]"),
        options.option("--kv-type", key="find-gguf.kv_type", type=KvType(), default="f16", metavar="TYPE",
                     help="Type of the cache of keys and values, as q8_0.  [f16]"),
    ):  # fmt: skip
        command = option(command)
    return command


def card_options(command: Any) -> Any:
    """--gpu, --vram and --reserve."""
    for option in (
        options.option("--reserve", key="card.reserve", type=options.BYTES, default=DEFAULT_RESERVE_BYTES,
                       metavar="SIZE", help="Memory of the card to keep free.  [1GiB]"),
        options.option("--vram", key="card.vram", type=options.BYTES, metavar="SIZE",
                       help="Memory of each card, whatever it has."),
        options.option("--gpu", key="card.gpu", type=values.CARD, default="auto", metavar="CARD",
                       help="auto, a card's name as rtx4080, or '2x NAME'.  [auto]"),
    ):  # fmt: skip
        command = option(command)
    return command


def use_option(defaults: Callable[[Use], Mapping[str, Any]]) -> Callable[[options.Command], options.Command]:
    """--use NAME: a use case of the configuration, as `use`; what it says are defaults of this command's options."""

    def choose(ctx: click.Context, param: click.Parameter, name: str | None) -> Use | None:
        if name is None or ctx.resilient_parsing:
            return None
        loaded = in_force(ctx).loaded
        uses = loaded.config.use if loaded else {}
        if name not in uses:
            there = f"there are {', '.join(uses)}" if uses else f"none is configured; {GET_CONFIG}"
            raise UsageError(f"--use {name}: no such use case: {there}")
        use: Use = uses[name]
        said = {key: value for key, value in defaults(use).items() if value is not None}
        ctx.default_map = {**(ctx.default_map or {}), **said}
        return use

    text = "A use case of the configuration to reckon with, as two."
    return click.option("--use", type=values.USE, metavar="NAME", callback=choose, help=text)


def choose_cards(
    name: str, vram_bytes: int | None, use: Use | None = None, *, for_all: bool = False
) -> tuple[Card, ...]:
    """The cards to reckon with; says on stderr where it had to assume one.

    With a use case they have what it leaves to one of its models, or to all of them, and nothing else on them counts;
    UsageError where they have not as much.
    """
    cards = _choose_cards(name, vram_bytes)
    if use is None:
        return cards
    total_bytes = sum(card.total_bytes for card in cards)
    if use.memory * use.models > total_bytes:
        has = f"{format_bytes(total_bytes)} of {'' if len(cards) == 1 else f'{len(cards)} x '}{cards[0].name}"
        raise UsageError(f"--use: {use.models} x {format_bytes(use.memory)} are more than {has}")
    share = use.memory * (use.models if for_all else 1) // len(cards)
    return tuple(_with_memory(card, share) for card in cards)


def _with_memory(card: Card, size_bytes: int, **other: Any) -> Card:
    """The card, whatever it has and whoever uses it, with so much."""
    return msgspec.structs.replace(
        card, total_bytes=size_bytes, free_bytes=size_bytes, uuid=None, processes=(), stand_in=False, **other
    )


def _choose_cards(name: str, vram_bytes: int | None) -> tuple[Card, ...]:
    if name.lower() == "cpu":
        raise UsageError("--gpu cpu: models are rated for a card; without one, --vram 12GB says what they may take")
    found = parse_gpu(name)
    is_assumed = any(card.stand_in for card in found.cards)
    if vram_bytes == 0:
        raise UsageError("--vram 0 leaves no card: --no-gpu-fit rates nothing")
    if vram_bytes is not None:
        other = {"name": f"{format_bytes(vram_bytes)} card"} if is_assumed else {}
        return tuple(_with_memory(card, vram_bytes, **other) for card in found.cards)
    assumed = [f"reckoning with an {card.name} and its {format_bytes(card.total_bytes)} (--gpu NAME or --vram SIZE "
               "for another)" for card in found.cards if card.stand_in]  # fmt: skip
    if found.problems or assumed:
        output.say("; ".join([*found.problems, *assumed]))
    return found.cards
