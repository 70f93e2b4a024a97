"""Bytes by place: what is held, needed or free on each card, of host memory, on a back-end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelpipes.values.units import format_bytes

CARD = "card"
"""All cards of this machine together."""

HOST = "host"
"""Host memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Bytes:
    """So many bytes at each place, by its name; a place that is not named has 0."""

    by_place: Mapping[str, int]

    @classmethod
    def of(cls, card: int = 0, host: int = 0) -> Bytes:
        """On the card and of host memory: all places that the daemon has."""
        return cls({CARD: card, HOST: host})

    @classmethod
    def total(cls, some: Iterable[Bytes]) -> Bytes:
        """Of all of them together."""
        sums: dict[str, int] = {}
        for one in some:
            for place, size in one.by_place.items():
                sums[place] = sums.get(place, 0) + size
        return cls(sums)

    @property
    def card(self) -> int:
        return self.by_place.get(CARD, 0)

    @property
    def host(self) -> int:
        return self.by_place.get(HOST, 0)

    def __getitem__(self, place: str) -> int:
        return self.by_place.get(place, 0)

    def __add__(self, other: Bytes) -> Bytes:
        if not other.by_place:
            return self
        sums = dict(self.by_place)
        for place, size in other.by_place.items():
            sums[place] = sums.get(place, 0) + size
        return Bytes(sums)

    def __sub__(self, other: Bytes) -> Bytes:
        rests = dict(self.by_place)
        for place, size in other.by_place.items():
            rests[place] = rests.get(place, 0) - size
        return Bytes(rests)

    def __le__(self, other: Bytes) -> bool:
        """Whether these fit into the others at every place; not an order: neither of two may be below the other."""
        mine, theirs = self.by_place, other.by_place
        for place, size in mine.items():
            if size > theirs.get(place, 0):
                return False
        return all(size >= 0 or place in mine for place, size in theirs.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bytes) and self._named() == other._named()

    def __hash__(self) -> int:
        return hash(frozenset(self._named().items()))

    def _named(self) -> dict[str, int]:
        return {place: size for place, size in self.by_place.items() if size}


NOTHING = Bytes({})


def amount(size: Bytes, asked: Bytes) -> str:
    """The bytes at each place of which some are asked for, in words; never below nothing.

    Where no other place has a name to be told, the card's are told in any case, and need none.
    """
    named = sorted(place for place, bytes_ in asked.by_place.items() if bytes_ > 0 and place not in (CARD, HOST))
    words = [f"{_words(size[place])} of {place}" for place in named]
    if not named:
        words = [_words(size.card)]
    elif asked.card > 0:
        words.insert(0, f"{_words(size.card)} of the card")
    if asked.host > 0:
        words.append(f"{_words(size.host)} of host memory")
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _words(size_bytes: int) -> str:
    return format_bytes(max(0, size_bytes))
