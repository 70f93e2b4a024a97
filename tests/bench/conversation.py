"""A long conversation of two members that echo: does it grow in memory, or in time a turn?

`chat-models` leads; the resident memory of it and of both members is looked at as turns go by.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from modelpipes.errors import PipesError
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline
from tests.bench.record import Record
from tests.bench.results import Figure
from tests.bench.rivals import content
from tests.bench.spread import blocks, slope
from tests.bench.talker import Talker

PART = "conversation"
TIME, LEADER, MEMBERS = "time a turn", "memory of the leader", "memory of a member"
TURNS, QUICK_TURNS = 10_000, 100
SEATS = ("alice", "bob")
WARM_UP = 10  # the first so-manieth of the turns is left out: caches fill, pools are made
BLOCKS = 50  # a straight line is laid through the medians of so many blocks of turns
LOOK_TURNS = 10  # between looks at memory, which take a tenth of a turn
SILENCE_S = 30.0


def measure(record: Record) -> None:
    turns = QUICK_TURNS if record.is_quick else TURNS
    record.say(f"{PART}: {turns} turns")
    with tempfile.TemporaryDirectory(prefix="modelpipes-bench-") as folder:
        times_ms, memory_kib = converse(folder, turns)
    table = f"conversation of {turns} turns, two members with --filter cat"
    record.add(
        trend(table, TIME, "ms", times_ms, turns),
        trend(table, LEADER, "KiB", memory_kib["leader"], turns),
        *(trend(table, f"{MEMBERS}, {seat}", "KiB", memory_kib[seat], turns) for seat in SEATS),
    )


def converse(folder: str, turns: int) -> tuple[list[float], dict[str, list[float]]]:
    """The time of each turn in milliseconds, and memory in KiB every LOOK_TURNS."""
    room = os.path.join(folder, "room")
    argv = [
        sys.executable,
        "-P",
        "-m",
        "modelpipes",
        "chat",
        "-d",
        room,
        "--rounds",
        str(turns // len(SEATS)),
        "--json",
    ]
    argv += [f"--filter={seat}=cat" for seat in SEATS]
    argv += ["--opening", content(64), "--transcript", os.path.join(folder, "talk.jsonl")]
    times_ms: list[float] = []
    memory_kib: dict[str, list[float]] = defaultdict(list)
    with Talker(argv, "chat-models") as leader:
        last_s, said, pids = 0.0, "", {"leader": leader.pid}
        for number in range(turns + 1):
            turn = json.loads(leader.hear(Deadline.after(SILENCE_S)))
            now_s = time.perf_counter()
            said = said or turn["content"].strip()
            if (turn["turn"], turn["content"].strip()) != (number, said):
                raise PipesError(f"instead of turn {number}, an echo of {said!r}, came {turn}")
            if number == 0:
                pids |= {seat: Room(room).sitting(seat).pid or 0 for seat in SEATS}
            else:
                times_ms.append((now_s - last_s) * 1000)
            last_s = now_s
            if number % LOOK_TURNS == 0:
                for who, pid in pids.items():
                    memory_kib[who].append(own_memory_kib(pid))
    return times_ms, memory_kib


def own_memory_kib(pid: int) -> int:
    """A process's resident memory that is no file's."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def trend(table: str, row: str, unit: str, values: Sequence[float], turns: int) -> Figure:
    """A figure whose runs are blocks of turns, with the slope of these, per 1000 turns.

    `values` are as evenly spread over the turns as can be.
    """
    settled = values[len(values) // WARM_UP :]
    runs = blocks(settled, BLOCKS)
    block_turns = turns / len(values) * len(settled) / len(runs)
    rise = slope([number * block_turns / 1000 for number in range(len(runs))], runs)
    return Figure(
        part=PART,
        table=table,
        row=row,
        column="median",
        unit=unit,
        value=median(runs),
        runs=tuple(runs),
        is_ours=True,
        slope=rise.slope,
        slope_error=rise.error,
    )
