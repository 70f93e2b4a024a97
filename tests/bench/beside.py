"""Round trips of another checkout beside those of this one, and C beside both: `bin/bench --beside PATH`.

The same Python runs both; only where it finds the package differs. Who is measured changes many times a round, so
that what else goes on here meets all alike; a ratio is taken within a round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from modelpipes.errors import FileError, ProgramError
from modelpipes.values.percentiles import percentile
from tests.bench import transport
from tests.bench.record import Record
from tests.bench.results import ROOT, Figure, figure
from tests.bench.rivals import LIMIT_S, Task
from tests.bench.talker import Talker

PART = "beside"
ROUNDS = 5
OTHER = "other"  # how its rivals are told from ours
PACKAGE = "pipes"  # where a checkout has the package
OURS = {"ping": "ping", "say": "say and reply", "command": "ping-pipes --self"}

SLICES = 20  # of a round: each rival in turn, so many times
# (column, bytes of content, messages a slice)
TASKS = [("64 B", 64, 500), ("4 KiB", 4096, 300), ("64 KiB", 65536, 60)]
COMMANDS = 3  # runs of `ping-pipes --self` a round: each starts two processes
COMMAND_COUNT = {"64 B": 4000, "4 KiB": 3000, "64 KiB": 1000}
QUICKER = 10  # so many times fewer of all in a quick run

_Runs = dict[tuple[str, str], list[float]]  # of (rival, column)


def measure(record: Record, other: str) -> None:
    """Add the figures of the checkout at `other` and of this one; FileError where it has no package."""
    found = Path(other).resolve() / PACKAGE
    if not (found / "modelpipes").is_dir():
        raise FileError(f"{other}: no checkout of modelpipes; {PACKAGE}/modelpipes is not there")
    paths = {"": str(ROOT / PACKAGE), OTHER: str(found)}
    runs: _Runs = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="modelpipes-bench-") as folder:
        programs = _programs(record, folder, paths)
        for number in range(record.rounds):
            record.say(f"{PART}: round {number + 1} of {record.rounds}")
            with transport.pairs(programs, record.cpu, os.path.join(folder, str(number))) as talkers:
                for column, size_bytes, messages in TASKS:
                    _round(talkers, column, Task.make("round_trip", size_bytes, messages), record, runs)
            for column, size_bytes, _ in TASKS:
                _commands(paths, column, size_bytes, record, runs)
    record.add(*_figures(runs, other))


def _programs(record: Record, folder: str, paths: Mapping[str, str]) -> dict[str, list[str]]:
    """The command of each rival: C, and ours of both checkouts."""
    programs = {}
    compiled = transport.compile_c(folder)
    if isinstance(compiled, Path):
        programs["blocking"] = [str(compiled), "blocking"]
    else:
        record.skip(transport.C_BLOCKING, compiled)
    for whose, path in paths.items():
        for rival in ("ping", "say"):
            pair = [sys.executable, "-m", "tests.bench.rivals.pair", rival]
            programs[whose + rival] = ["env", f"PYTHONPATH={path}:{ROOT}", *pair]
    return programs


def _round(talkers: Mapping[str, Talker], column: str, task: Task, record: Record, runs: _Runs) -> None:
    taken_ns: dict[str, list[int]] = defaultdict(list)
    names = list(talkers)
    for number in range(1 + SLICES // (QUICKER if record.is_quick else 1)):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            taken = transport.ask(talkers[name], task)
            if number:  # the first warms up
                taken_ns[name] += taken
    for name, taken in taken_ns.items():
        runs[name, column].append(percentile(sorted(taken), 50) / 1000)


def _commands(paths: Mapping[str, str], column: str, size_bytes: int, record: Record, runs: _Runs) -> None:
    taken_us: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 if record.is_quick else COMMANDS):
        for whose, path in paths.items():
            count = COMMAND_COUNT[column] // (QUICKER if record.is_quick else 1)
            taken_us[whose].append(_command_us(path, size_bytes, count, record.cpu))
    for whose, taken in taken_us.items():
        runs[f"{whose}command", column].append(median(taken))


def _command_us(path: str, size_bytes: int, count: int, cpu: int) -> float:
    """The median round trip that `ping-pipes --self` reports."""
    argv = [sys.executable, "-P", "-m", "modelpipes", "ping", "--self", "--json", "--pin", str(cpu)]
    argv += ["--size", str(size_bytes), "--count", str(count)]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise ProgramError(f"ping-pipes of {path} ended with {done.returncode}: {done.stderr.strip()}")
    return float(json.loads(done.stdout)["round_trip_us"]["p50"])


def _figures(runs: _Runs, other: str) -> Iterator[Figure]:
    rows = {"blocking": transport.C_BLOCKING}
    for rival, does in OURS.items():
        rows[OTHER + rival] = f"{other}, {does}"
        rows[rival] = f"this checkout, {does}"
    for rival, row in rows.items():
        for column, *_ in TASKS:
            if (rival, column) in runs:
                base: Sequence[float] | None = runs.get(("blocking", column))
                yield figure(
                    PART,
                    "round trip, p50, one core",
                    row,
                    column,
                    "us",
                    runs[rival, column],
                    base=(transport.C_BLOCKING, base) if base else None,
                    is_ours=rival in OURS,
                )
