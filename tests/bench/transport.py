"""Round trips and one-way rates of every way to carry messages, side by side.

In each round all rivals' processes are started; then each task is done by one rival after the other, so that
a drift of the machine meets all alike, and ratios are taken within the round.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from modelpipes.errors import PipesError
from modelpipes.values.deadline import Deadline
from modelpipes.values.percentiles import percentile
from tests.bench.record import Record
from tests.bench.results import ROOT, Figure, figure
from tests.bench.rivals import LIMIT_S, Task
from tests.bench.rivals.processes import interpreter
from tests.bench.talker import Talker

PART = "transport"
ONE_CORE, ANY_CORE = "one core", "unpinned"
C_BLOCKING, PLAIN = "C, blocking", "Python, os.read and os.write"
OURS, SAY = "modelpipes", "modelpipes, say and reply"
CONNECTION, ASYNCIO, ZMQ = "multiprocessing.Pipe", "Unix socket, asyncio", "pyzmq ipc"
BATCHED, SINGLE = "64 B", "64 B, one a read"

# name: (what the table calls it, may it be asked for one message a read)
ROWS = {
    "blocking": (C_BLOCKING, True),
    "poll": ("C, poll", True),
    "bytes": (PLAIN, True),
    "typed": ("Python, blocking, typed", True),
    "ping": (OURS, True),
    "say": (SAY, False),
    "multiprocessing": (CONNECTION, False),
    "socket": ("Unix socket", False),
    "asyncio": (ASYNCIO, False),
    "zmq": (ZMQ, False),
    "processes": ("a process a message", False),
}
IN_C = ("blocking", "poll")

# (kind, column, bytes of content, messages at a time)
TASKS = [
    ("round_trip", "64 B", 64, 4000),
    ("round_trip", "4 KiB", 4096, 4000),
    ("round_trip", "64 KiB", 65536, 1000),
    ("round_trip", "1 MiB", 1 << 20, 60),
    ("one_way", BATCHED, 64, 3000),
    ("one_way_single", SINGLE, 64, 3000),
    ("one_way", "4 KiB", 4096, 1000),
]
TABLES = {"round_trip": "round trip, p50 / p99", "one_way": "one way", "one_way_single": "one way"}
FLOODS = 15  # one-way tasks are short, and done so often a round: the median is of those that nobody else cut into
WARM_UP = 10  # a task is done first with so many times fewer messages
QUICKER = 20  # and so many times fewer in a quick run
SLOWNESS = {"processes": 200}  # a new process takes as long as so many messages
FEWEST = 3


class Key(NamedTuple):
    """What is measured of whom."""

    affinity: str
    kind: str
    column: str
    rival: str


def measure(record: Record) -> None:
    with tempfile.TemporaryDirectory(prefix="modelpipes-bench-") as folder:
        programs = find_programs(record, folder)
        times: dict[Key, list[float]] = defaultdict(list)
        p99s: dict[Key, list[float]] = defaultdict(list)
        for number in range(record.rounds):
            for affinity, cpu in ((ONE_CORE, record.cpu), (ANY_CORE, -1)):
                record.say(f"{PART}: round {number + 1} of {record.rounds}, {affinity}")
                with pairs(programs, cpu, os.path.join(folder, f"{number}-{affinity.replace(' ', '-')}")) as talkers:
                    _round(talkers, affinity, number, record.is_quick, times, p99s)
        record.add(*_figures(times, p99s))


def find_programs(record: Record, folder: str) -> dict[str, list[str]]:
    """The command of each rival that can run here, without its folder and core."""
    compiled = compile_c(folder)
    programs = {}
    for rival, (row, _) in ROWS.items():
        why = None
        if rival in IN_C:
            why = compiled if isinstance(compiled, str) else None
        elif rival == "zmq" and importlib.util.find_spec("zmq") is None:
            why = "pyzmq is not installed"
        elif rival == "processes" and interpreter() is None:
            why = "there is neither perl nor sh"
        if why:
            record.skip(row, why)
        elif isinstance(compiled, Path) and rival in IN_C:
            programs[rival] = [str(compiled), rival]
        else:
            programs[rival] = [sys.executable, "-m", "tests.bench.rivals.pair", rival]
    return programs


def compile_c(folder: str) -> Path | str:
    """The C rivals' program; why there is none."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there is no C compiler (cc, gcc, clang); ratios are to plain Python instead"
    program = Path(folder, "fifo")
    source = ROOT / "tests" / "bench" / "rivals" / "fifo.c"
    done = subprocess.run(
        [compiler, "-O2", "-o", program, source], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return f"{compiler} cannot compile it: {done.stderr.strip()}" if done.returncode else program


@contextmanager
def pairs(programs: Mapping[str, Sequence[str]], cpu: int, folder: str) -> Iterator[dict[str, Talker]]:
    """The two processes of each rival, ready."""
    deadline = Deadline.after(LIMIT_S)
    with ExitStack() as stack:
        talkers = {}
        for rival, program in programs.items():
            place = os.path.join(folder, rival)
            os.makedirs(place)
            if rival in IN_C:
                for name in ("there", "back"):
                    os.mkfifo(os.path.join(place, name), 0o600)
            talkers[rival] = stack.enter_context(Talker([*program, place, str(cpu)], ROWS.get(rival, (rival,))[0]))
        for talker in talkers.values():
            if (said := talker.hear(deadline)) != "ready":
                raise PipesError(f"a rival of the bench said {said!r} when it should be ready")
        yield talkers


def _round(
    talkers: Mapping[str, Talker],
    affinity: str,
    number: int,
    is_quick: bool,
    times: dict[Key, list[float]],
    p99s: dict[Key, list[float]],
) -> None:
    for kind, column, content_bytes, count in TASKS:
        able = [rival for rival in talkers if can(rival, kind)]
        first = number % len(able)  # else the same one would always follow the same other
        for rival in [*able[first:], *able[:first]]:
            messages = max(FEWEST, count // (QUICKER if is_quick else 1) // SLOWNESS.get(rival, 1))
            ask(talkers[rival], Task.make(kind, content_bytes, max(1, messages // WARM_UP)))
            task, key = Task.make(kind, content_bytes, messages), Key(affinity, kind, column, rival)
            if kind == "round_trip":
                taken_ns = sorted(ask(talkers[rival], task))
                times[key].append(percentile(taken_ns, 50) / 1000)
                p99s[key].append(percentile(taken_ns, 99) / 1000)
            else:
                floods_ns = [ask(talkers[rival], task)[0] for _ in range(FLOODS)]
                times[key].append(messages / median(floods_ns) * 1e9)


def can(rival: str, kind: str) -> bool:
    """Is there something to measure?"""
    if rival in ("processes", "say"):  # the one would lose messages, the other sends the same as "ping"
        return kind == "round_trip"
    return kind != "one_way_single" or ROWS[rival][1]


def ask(talker: Talker, task: Task) -> list[int]:
    """Have a task done; nanoseconds."""
    talker.tell(task.line())
    return [int(taken) for taken in talker.hear(Deadline.after(LIMIT_S)).split()]


def _figures(times: Mapping[Key, Sequence[float]], p99s: Mapping[Key, Sequence[float]]) -> Iterator[Figure]:
    for affinity in (ONE_CORE, ANY_CORE):
        for is_one_way in (False, True):
            for key, runs in times.items():
                if key.affinity != affinity or (key.kind != "round_trip") != is_one_way:
                    continue
                base = next(rival for rival in ("blocking", "bytes") if key._replace(rival=rival) in times)
                yield figure(
                    PART,
                    f"{TABLES[key.kind]}, {affinity}",
                    ROWS[key.rival][0],
                    key.column,
                    "per_second" if is_one_way else "us",
                    runs,
                    base=(ROWS[base][0], times[key._replace(rival=base)]),
                    lower_is_better=not is_one_way,
                    is_ours=key.rival in ("ping", "say"),
                    p99_runs=p99s.get(key, ()),
                )
