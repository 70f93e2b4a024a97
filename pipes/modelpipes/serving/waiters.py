"""Who waits in the pool for an engine, kept so that a decision is told of them without a walk over all."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass

from modelpipes.serving.grant import Grant
from modelpipes.serving.situation import Class, Waiters, Waiting


@dataclass
class Waiter:
    """A request, and what it is given."""

    waiting: Waiting
    granted: asyncio.Future[Grant]


class WaitingList(MutableMapping[int, Waiter]):
    """By id, in order of arrival."""

    def __init__(self) -> None:
        # Ordered ones give their first and last at once, however many went before; a plain dictionary looks for them.
        self._all: OrderedDict[int, Waiter] = OrderedDict()
        self._alike: dict[tuple[str, Class], OrderedDict[int, Waiter]] = {}

    def __setitem__(self, id_: int, waiter: Waiter) -> None:
        self._all[id_] = waiter
        self._alike.setdefault(_kind(waiter), OrderedDict())[id_] = waiter

    def __delitem__(self, id_: int) -> None:
        kind = _kind(self._all.pop(id_))
        alike = self._alike[kind]
        del alike[id_]
        if not alike:
            del self._alike[kind]

    def __getitem__(self, id_: int) -> Waiter:
        return self._all[id_]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of_model(self, name: str) -> list[Waiter]:
        """All that wait for it, of whatever class."""
        return [waiter for kind, alike in self._alike.items() if kind[0] == name for waiter in alike.values()]

    def count(self, name: str) -> int:
        """How many wait for it, of whatever class."""
        return sum(len(alike) for kind, alike in self._alike.items() if kind[0] == name)

    def situation(self, sequences: Callable[[str], int]) -> tuple[Waiters, ...]:
        """For each model and class the first, as many as the model has `sequences`, and how many there are."""
        return tuple(
            Waiters(tuple(one.waiting for one in itertools.islice(alike.values(), sequences(name))), len(alike))
            for (name, _), alike in self._alike.items()
        )

    def arrivals(self, count: int) -> tuple[float, ...]:
        """When the last so many of them came, in order."""
        last = [waiter.waiting.since for waiter in itertools.islice(reversed(self._all.values()), count)]
        return tuple(reversed(last))


def _kind(waiter: Waiter) -> tuple[str, Class]:
    return waiter.waiting.name, waiter.waiting.of_class
