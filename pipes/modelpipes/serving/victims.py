"""Which models go so that another has room: the set that costs least."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from modelpipes.serving.bytes import Bytes
from modelpipes.serving.situation import Resident

EXACT_VICTIMS = 10
"""Up to so many candidates every set of victims is looked at (1,023 sets); with more, one pass over the best."""


def smallest(
    candidates: Sequence[Resident],
    missing: Bytes,
    cost: Callable[[Resident], float],
    *,
    is_fewest_first: bool = True,
) -> tuple[Resident, ...] | None:
    """The set whose going frees what is missing: of the fewest the cheapest, or the cheapest; None if all are too few.

    Of equal cost the smaller goes, compared place by place in the order in which `missing` names them.
    """
    if not candidates:
        return None
    charges = {r.name: r.charge for r in candidates}
    short = [({r.name: charges[r.name][place] for r in candidates}, size) for place, size in missing.by_place.items()]
    short = [(freed, size) for freed, size in short if size > 0]

    def makes_room(victims: Iterable[Resident]) -> bool:
        return all(sum(freed[r.name] for r in victims) >= size for freed, size in short)

    if not makes_room(candidates):
        return None
    costs = {r.name: cost(r) for r in candidates}
    ranked = sorted(
        candidates, key=lambda r: (costs[r.name], *(charges[r.name][place] for place in missing.by_place), r.name)
    )
    if len(ranked) > EXACT_VICTIMS:
        return _pruned(ranked, makes_room)
    best: tuple[float, tuple[Resident, ...]] | None = None
    for count in range(1, len(ranked) + 1):
        for victims in itertools.combinations(ranked, count):
            total = sum(costs[r.name] for r in victims)
            if (best is None or total < best[0]) and makes_room(victims):
                best = total, victims
        if best is not None and is_fewest_first:
            break
    return best[1] if best is not None else None


def _pruned(ranked: list[Resident], makes_room: Callable[[Iterable[Resident]], bool]) -> tuple[Resident, ...]:
    """The first that make room, without those, dearest first, that it does not take."""
    victims = list(
        next(itertools.dropwhile(lambda some: not makes_room(some), itertools.accumulate([r] for r in ranked)))
    )
    for r in reversed(victims[:]):
        rest = [other for other in victims if other is not r]
        if makes_room(rest):
            victims = rest
    return tuple(victims)
