"""What a residency decision costs, with the situation made for it and the moment of the next one.

    python -m tests.bench.decisions [--runs 41] [--json]

Medians. Many who wait for the same models cost what few do: the ratio is to the first line of each kind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from modelpipes.serving.bytes import Bytes
from modelpipes.serving.residency import decide, wake_at
from modelpipes.serving.situation import CLASSES, Model, Resident, Situation, Waiting
from modelpipes.serving.waiters import Waiter, WaitingList

NOW = 1000.0
USES = 64  # as the pool keeps


def waiting_list(loop: asyncio.AbstractEventLoop, names: list[str], count: int, classes: int = 1) -> WaitingList:
    """So many requests for these models in turn, each a millisecond after the one before."""
    waiters = WaitingList()
    for number in range(count):
        waiting = Waiting(number, names[number % len(names)], NOW - 10 + number / 1000, CLASSES[number % classes])
        waiters[number] = Waiter(waiting, loop.create_future())
    return waiters


def decision(waiters: WaitingList, models: dict[str, Model], residents: tuple[Resident, ...], budget: Bytes) -> None:
    situation = Situation(
        NOW,
        budget,
        models,
        residents,
        waiters.situation(lambda name: models[name].sequences),
        arrivals=waiters.arrivals(USES),
    )
    decide(situation)
    wake_at(situation)


def cases(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Kind, name and work of each line."""
    names = [f"model{number}" for number in range(60)]
    known = {name: Model(name, Bytes.of(5), 4.0, 4) for name in names}
    busy = tuple(Resident(name, Bytes.of(5), "ready", 4, 0.0, 0.0) for name in names[:4])
    for count, classes in ((40, 1), (5000, 1), (5000, 4)):
        waiters = waiting_list(loop, names[:20], count, classes)
        title = f"{count} wait, 20 models" + (f", {classes} classes" if classes > 1 else "")
        yield "waiting", title, partial(decision, waiters, known, busy, Bytes.of(20))
    for places in (("card",), ("card", "host"), ("card 1", "card 2", "host", "box")):
        one, six, ten = (Bytes(dict.fromkeys(places, size)) for size in (1, 6, 10))
        models = {name: Model(name, one, 4.0) for name in names[:10]} | {"large": Model("large", six, 4.0)}
        idle = tuple(Resident(name, one, "ready", 0, 0.0, float(number)) for number, name in enumerate(names[:10]))
        waiters = waiting_list(loop, ["large"], 1)
        yield "victims", f"6 of 10 go, {len(places)} places", partial(decision, waiters, models, idle, ten)
    mixed = tuple(Resident(name, Bytes.of(5), "ready", n % 2, 0.0, float(n)) for n, name in enumerate(names[:30]))
    waiters = waiting_list(loop, names, 180)
    yield "models", "60 models, 30 resident, 180 wait", partial(decision, waiters, known, mixed, Bytes.of(150))


def measure(runs: int) -> Iterator[dict[str, Any]]:
    loop = asyncio.new_event_loop()
    first_ms: dict[str, float] = {}
    for kind, name, work in cases(loop):
        taken = []
        for _ in range(runs):
            began = time.perf_counter()
            work()
            taken.append((time.perf_counter() - began) * 1e3)
        median_ms = statistics.median(taken)
        first_ms.setdefault(kind, median_ms)
        yield {"what": name, "ratio": median_ms / first_ms[kind], "ms": median_ms}
    loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=41, help="of each; the median is reported")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.json:
        print(f"{'':34}{'ratio':>8}{'ms':>10}")
    for figures in measure(given.runs):
        if given.json:
            print(json.dumps(figures), flush=True)
        else:
            print("{what:34}{ratio:8.2f}{ms:10.3f}".format(**figures), flush=True)


if __name__ == "__main__":
    main()
