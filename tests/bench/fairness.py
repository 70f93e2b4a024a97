"""Many at once: 64 seats around one hub, and 64 askers of one member. Is anything lost, is anybody passed over?

Everybody asks anew as soon as the answer is there, for some seconds; members echo (`--filter cat`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import NamedTuple

import msgspec

from modelpipes.child import Child
from modelpipes.pipe.endpoint import Arrival, Endpoint, Lost
from modelpipes.pipe.message import Failure, Reply, Say, new_id
from modelpipes.pipe.room import HUB, Room, star
from modelpipes.values.deadline import Deadline
from modelpipes.values.percentiles import percentile
from tests.bench.askers import SILENCE_S, Asked
from tests.bench.conversation import own_memory_kib
from tests.bench.record import Record
from tests.bench.results import figure
from tests.bench.talker import Talker

PART = "fairness"
LOST, P50, P99, SERVED, SLOWEST = "lost", "p50", "p99", "most / least served", "slowest / fastest mean"
RATE, MEMORY = "answers a second", "memory of a member, median"
CROWD, QUICK_CROWD = 64, 4
SECONDS, QUICK_SECONDS = 2.0, 0.3  # of asking: some thirty answers for each of 64
MOST_ROUNDS = 5
START_S = 0.2  # for all askers to have heard when they are to begin
SIT_S = 60.0  # for 64 members to load on a small machine


class Served(NamedTuple):
    """How one round went, by who was served."""

    taken_ms: Mapping[str, Sequence[float]]
    lost: int


def measure(record: Record) -> None:
    crowd = QUICK_CROWD if record.is_quick else CROWD
    names = [f"m{number}" for number in range(crowd)]
    for row, rounds in (
        (f"{crowd} seats around one hub", _around_a_hub),
        (f"{crowd} askers of one member, a seat each", _askers_of_one),
        (f"{crowd} askers of one member, one seat", _askers_in_one_seat),
    ):
        record.say(f"{PART}: {row}")
        with tempfile.TemporaryDirectory(prefix="modelpipes-bench-") as folder:
            _add(record, row, *rounds(Room.make(os.path.join(folder, "room")), names, record))


def _add(record: Record, row: str, served: Sequence[Served], memory_kib: Sequence[float]) -> None:
    every = [sorted(one for taken in each.taken_ms.values() for one in taken) for each in served]
    counts = [[len(taken) for taken in each.taken_ms.values()] for each in served]
    # Who was never served waited for the whole of it.
    means = [[fmean(taken) if taken else SILENCE_S * 1000 for taken in each.taken_ms.values()] for each in served]
    seconds = QUICK_SECONDS if record.is_quick else SECONDS
    for column, unit, runs in (
        (LOST, "count", [float(each.lost) for each in served]),
        (SERVED, "times", [max(count) / max(min(count), 1) for count in counts]),
        (SLOWEST, "times", [max(mean) / min(mean) for mean in means]),
        (P50, "ms", [_percentile(taken, 50) for taken in every]),
        (P99, "ms", [_percentile(taken, 99) for taken in every]),
        (RATE, "per_second", [len(taken) / seconds for taken in every]),
        (MEMORY, "KiB", list(memory_kib)),
    ):
        table = "many at once"
        record.add(figure(PART, table, row, column, unit, runs, lower_is_better=column != RATE, is_ours=True))


def _percentile(taken_ms: Sequence[float], percent: float) -> float:
    return percentile([round(taken * 1000) for taken in taken_ms], percent) / 1000


@contextmanager
def _members(room: Room, names: Sequence[str]) -> Iterator[list[float]]:
    """Seat a member that echoes under each name; the memory of each in KiB, looked at afterwards."""
    memory_kib: list[float] = []
    with ExitStack() as stack:
        children = []
        for name in names:
            argv = [sys.executable, "-P", "-m", "modelpipes", "attach", name, "-d", room.path, "--filter", "cat"]
            children.append(stack.enter_context(Child(argv, name=f"member {name}")))
        room.wait_for(names, Deadline.after(SIT_S))
        yield memory_kib
        memory_kib += [own_memory_kib(child.pid) for child in children]


def _rounds(record: Record) -> int:
    return min(record.rounds, MOST_ROUNDS)


def _around_a_hub(room: Room, names: Sequence[str], record: Record) -> tuple[list[Served], list[float]]:
    room.make_pipes(star(HUB, names))
    with _members(room, names) as memory_kib, Endpoint(room, HUB) as hub:
        for name in names:
            hub.listen(name)
            hub.connect(name, Deadline.after(SILENCE_S))
        seconds = QUICK_SECONDS if record.is_quick else SECONDS
        served = [_ask_all(hub, names, seconds) for _ in range(_rounds(record))]
    return served, memory_kib


def _ask_all(hub: Endpoint, names: Sequence[str], seconds: float) -> Served:
    """Keep one message with every seat for some seconds, then hear the last answers out."""
    taken_ms: dict[str, list[float]] = {name: [] for name in names}
    open_: dict[str, tuple[Say, float]] = {}
    lost = 0

    def ask(name: str) -> None:
        say = Say(new_id(), HUB, name, f"{name} {len(taken_ms[name])}")
        open_[name] = say, time.monotonic()
        hub.send(name, say, Deadline.after(SILENCE_S))

    for name in names:
        ask(name)
    end = Deadline.after(seconds)
    while open_ and (event := hub.receive(Deadline.after(SILENCE_S))):
        if isinstance(event, Lost):
            lost += open_.pop(event.receiver, None) is not None
        elif isinstance(event, Arrival) and isinstance(event.item, Reply | Failure) and event.sender in open_:
            say, began_s = open_.pop(event.sender)
            if isinstance(event.item, Reply) and event.item.content.strip() == say.content:
                taken_ms[event.sender].append((time.monotonic() - began_s) * 1000)
            else:
                lost += 1
            if not end.has_passed():
                ask(event.sender)
    return Served(taken_ms, lost + len(open_))


def _askers_of_one(room: Room, names: Sequence[str], record: Record) -> tuple[list[Served], list[float]]:
    room.make_pipes([pair for name in names for pair in ((name, "bob"), ("bob", name))])
    return _ask_one(room, {name: name for name in names}, record)


def _askers_in_one_seat(room: Room, names: Sequence[str], record: Record) -> tuple[list[Served], list[float]]:
    """As many `ask-model`s from one shell: they take turns at the seat's lock."""
    room.make_pipes(star(HUB, ["bob"]))
    return _ask_one(room, dict.fromkeys(names, HUB), record)


def _ask_one(room: Room, seats: Mapping[str, str], record: Record) -> tuple[list[Served], list[float]]:
    with _members(room, ["bob"]) as memory_kib, ExitStack() as stack:
        askers = {}
        for name, seat in seats.items():
            argv = [sys.executable, "-m", "tests.bench.askers", room.path, seat, "bob"]
            askers[name] = stack.enter_context(Talker(argv, f"asker {name}"))
        ready = Deadline.after(SIT_S)
        for asker in askers.values():
            asker.hear(ready)
        served = [_let_ask(askers, record) for _ in range(_rounds(record))]
    return served, memory_kib


def _let_ask(askers: Mapping[str, Talker], record: Record) -> Served:
    begin_s = time.monotonic() + START_S
    seconds = QUICK_SECONDS if record.is_quick else SECONDS
    for asker in askers.values():
        asker.tell(f"{begin_s} {begin_s + seconds}")
    heard_by = Deadline.after(START_S + seconds + 2 * SILENCE_S)
    heard = {name: msgspec.json.decode(asker.hear(heard_by), type=Asked) for name, asker in askers.items()}
    for why in {asked.why for asked in heard.values()} - {""}:
        record.say(f"{PART}: lost: {why}")
    return Served({name: asked.taken_ms for name, asked in heard.items()}, sum(asked.lost for asked in heard.values()))
