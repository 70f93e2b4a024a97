"""The cards that were reckoned with, as the reports of find-gguf and fit-models tell of them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from modelpipes.machine.cards import Card

Source: TypeAlias = Literal["nvml", "name", "vram", "stand-in"]


class DescribedCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One card that was reckoned with, as JSON says it."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int


class DescribedCards(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cards that were reckoned with, as JSON says them: what all have together, and each.

    `source` is how they are known: `nvml` shows them, they were given by `name`, only their memory was given
    (`vram`), or one is a `stand-in` where none was seen.
    """

    name: str
    source: Source
    total_bytes: int
    free_bytes: int
    cards: list[DescribedCard]


def describe(cards: tuple[Card, ...], *, is_given: bool) -> DescribedCards:
    """The cards as JSON says them; `is_given` where their memory was."""
    first = cards[0]
    source: Source = "vram" if is_given else "nvml" if first.uuid else "stand-in" if first.stand_in else "name"
    return DescribedCards(
        name=first.name if len(cards) == 1 else f"{len(cards)}x {first.name}",
        source=source,
        total_bytes=sum(card.total_bytes for card in cards),
        free_bytes=sum(card.free_bytes for card in cards),
        cards=[DescribedCard(card.index, card.name, card.total_bytes, card.free_bytes) for card in cards],
    )
