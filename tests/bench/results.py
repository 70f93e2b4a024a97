"""What a run of the bench found, as it stands in its JSON file, and the machine that it ran on.

    {"version": 1, "began": "2025-…", "quick": false, "rounds": 9,
     "machine": {"cpu": …, "cores": 2, "kernel": …, "python": …, "commit": …, "load_before": [0.1, 0.2, 0.2], …},
     "figures": [{"part": "transport", "table": "round trip, one core", "row": "modelpipes, ping", "column": "64 B",
                  "unit": "us", "lower_is_better": true, "is_ours": true, "value": 9.4, "runs": [9.3, 9.4, 9.6],
                  "p99": 14.0, "against": "C, blocking", "ratio": 2.04, "ratio_runs": [2.03, 2.04, 2.06]}, …],
     "promises": [{"what": …, "bound": …, "found": …, "holds": true}, …],
     "skipped": [{"what": …, "why": …}]}

`value` and `ratio` are the medians of their runs. A ratio is taken in each round by itself, between what ran
side by side: the machine's drift, which moves the values, leaves it alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import msgspec

from modelpipes.errors import FileError

VERSION = 1
ROOT = Path(__file__).parents[2]
PACKAGES = ("modelpipes", "msgspec", "click", "pyzmq", "xllamacpp")
GIT_LIMIT_S = 10


class Figure(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One thing measured."""

    part: str
    table: str
    row: str
    column: str
    unit: str  # us, ms, per_second, KiB, times, count
    value: float
    runs: tuple[float, ...]
    lower_is_better: bool = True
    is_ours: bool = False
    p99: float | None = None  # the median of the runs' own 99th percentiles
    against: str | None = None  # the row that the ratio is taken against
    ratio: float | None = None
    ratio_runs: tuple[float, ...] = ()
    slope: float | None = None  # of the unit, per 1000 turns
    slope_error: float | None = None  # its standard error

    @property
    def name(self) -> tuple[str, str, str, str]:
        """What makes it the same figure in another run."""
        return self.part, self.table, self.row, self.column


class Promise(msgspec.Struct, frozen=True):
    """Something that must hold, and whether it did."""

    what: str
    bound: str
    found: str
    holds: bool


class Skipped(msgspec.Struct, frozen=True):
    """What could not be measured here."""

    what: str
    why: str


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured, and with what."""

    cpu: str
    cores: int  # that we may use
    memory_bytes: int
    kernel: str
    python: str
    commit: str  # "+" at its end: the checkout was changed since
    load_before: tuple[float, float, float]
    versions: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=platform.release(),
            python=platform.python_version(),
            commit=_commit(),
            load_before=os.getloadavg(),
            versions=_versions(),
        )

    def is_like(self, other: Machine) -> bool:
        """Can figures, not only ratios, be held against those of the other?"""
        return (self.cpu, self.cores, self.python) == (other.cpu, other.cores, other.python)

    def name(self) -> str:
        """The machine in a line."""
        load = "/".join(f"{load:.1f}" for load in self.load_before)
        return (
            f"{self.cpu}, {self.cores} cores, Linux {self.kernel}, Python {self.python}, "
            f"commit {self.commit}, load before {load}"
        )


class Results(msgspec.Struct, frozen=True):
    """One run of the bench."""

    version: int
    began: str
    quick: bool
    rounds: int
    machine: Machine
    figures: list[Figure]
    promises: list[Promise]
    skipped: list[Skipped]


def figure(
    part: str, table: str, row: str, column: str, unit: str, runs: Sequence[float],
    *, base: tuple[str, Sequence[float]] | None = None, lower_is_better: bool = True, is_ours: bool = False,
    p99_runs: Sequence[float] = (),
) -> Figure:  # fmt: skip
    """A figure of its runs; `base` is what the ratio is taken against, by name, and its runs in the same rounds."""
    ratios = tuple(run / against for run, against in zip(runs, base[1], strict=True)) if base else ()
    return Figure(
        part=part,
        table=table,
        row=row,
        column=column,
        unit=unit,
        value=median(runs),
        runs=tuple(runs),
        lower_is_better=lower_is_better,
        is_ours=is_ours,
        p99=median(p99_runs) if p99_runs else None,
        against=base[0] if base else None,
        ratio=median(ratios) if ratios else None,
        ratio_runs=ratios,
    )


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write(path: str, results: Results) -> None:
    """Write the file; FileError where that cannot be."""
    try:
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    except OSError as e:
        raise FileError(f"{path}: cannot be written: {e.strerror}") from None


def read(path: str) -> Results:
    """Read the file; FileError where it is none of ours."""
    try:
        results = msgspec.json.decode(Path(path).read_bytes(), type=Results)
    except OSError as e:
        raise FileError(f"{path}: cannot be read: {e.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise FileError(f"{path}: no result of the bench: {e}") from None
    if results.version != VERSION:
        raise FileError(f"{path}: of version {results.version}; this bench reads version {VERSION}")
    return results


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + "+" * bool(changes)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
