"""What find-gguf takes for many files, the start of the process included, side by side with the gguf package.

    python -m tests.bench.find [--runs 5] [--scale 1] [--beside CHECKOUT] [--json]

Medians of wall time of whole runs, piped: the first time (an empty cache) and again. The large files are links to
one, as 7 GB of headers would measure the disk, so all is warm. The different models have the headers of real ones
without their vocabularies. The ratio is that of the gguf package's time to our first run: it reads some of the files
in a running process, scaled to their number, and rates nothing. `--beside` gives a first run's CPU time as a share
of that of another checkout, both run in turn on the same files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from tests.bench.headers import write_large, write_small
from tests.fit.archs import MODELS
from tests.fit.shapes import SHAPES, write_model

HERE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """Files to find; `make` writes so many. What it should take at most, in seconds: the first time, and again."""

    what: str
    n_files: int
    make: Callable[[Path, int], None]
    first_s: float | None
    again_s: float | None
    n_read_by_gguf: int


def make_large(folder: Path, n_files: int) -> None:
    write_large(folder / "0.gguf")
    for number in range(1, n_files):
        os.link(folder / "0.gguf", folder / f"{number}.gguf")


def make_small(folder: Path, n_files: int) -> None:
    write_small(folder / "0.gguf")
    content = (folder / "0.gguf").read_bytes()
    for number in range(1, n_files):
        (folder / f"{number}.gguf").write_bytes(content)


def make_different(folder: Path, n_files: int) -> None:
    builders = {**SHAPES, **{name: model.build for name, model in MODELS.items()}}
    for name in list(builders)[:n_files]:
        write_model(folder / f"{name}.gguf", builders[name]())


def make_real(folder: Path, n_files: int) -> None:
    """The models that people have most: the 13 shapes, and as many others."""
    builders = {**SHAPES, **{name: MODELS[name].build for name in REAL}}
    for name in list(builders)[:n_files]:
        write_model(folder / f"{name}.gguf", builders[name]())


REAL = (
    "granite-3.3-8b", "granite-switch-3b", "phi-4", "mistral-small-24b", "glm-4-9b-chat", "minimax-m2", "glm-4.5-air",
    "ling-mini-2", "granite-4-tiny", "qwen2-57b-a14b", "bitnet-2b", "exaone-3.5-2.4b", "trinity-mini",
)  # fmt: skip

CASES = (
    Case("files with 7 MB headers", 1000, make_large, 4.0, 0.3, 1),
    Case("small files", 10_000, make_small, 2.0, None, 50),
    Case("real models", len(SHAPES) + len(REAL), make_real, None, None, 20),
    Case("different models", len(SHAPES) + len(MODELS), make_different, None, None, 20),
)


def run_s(folder: Path, cache: Path, checkout: Path = HERE) -> tuple[float, float]:
    """Wall and CPU time of one run."""
    command = [sys.executable, "-P", "-m", "modelpipes", "find", str(folder), "--gpu", "rtx4080"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(checkout / "pipes")}
    began_s, cpu_began_s = time.perf_counter(), cpu_s()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return time.perf_counter() - began_s, cpu_s() - cpu_began_s


def cpu_s() -> float:
    """Of the children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_share(folder: Path, base: Path, beside: Path, runs: int) -> float:
    """Our CPU time for a first run, of that of another checkout."""
    taken: dict[Path, list[float]] = {HERE: [], beside: []}
    for number, checkout in itertools.product(range(runs), taken):
        taken[checkout].append(run_s(folder, base / f"{checkout.name}-{number}-beside", checkout)[1])
    return statistics.median(taken[HERE]) / statistics.median(taken[beside])


def gguf_s(paths: Sequence[Path]) -> float:
    """What the gguf package takes for one of these files."""
    began_s = time.perf_counter()
    for path in paths:
        gguf.GGUFReader(path)
    return (time.perf_counter() - began_s) / len(paths)


def measure(runs: int, scale: float, beside: Path | None) -> Iterator[dict[str, Any]]:
    for case in CASES:
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base, "models")
            folder.mkdir()
            case.make(folder, max(1, int(case.n_files * scale)))
            paths = sorted(folder.iterdir())
            run_s(folder, Path(base, "warm"))
            taken = []
            for number in range(runs):
                cache = Path(base, str(number))
                taken.append((run_s(folder, cache)[0], run_s(folder, cache)[0]))
            first_s, again_s = (statistics.median(values) for values in zip(*taken, strict=True))
            package_s = gguf_s(paths[: case.n_read_by_gguf]) * len(paths)
            yield {
                "what": f"{len(paths)} {case.what}",
                "ratio": package_s / first_s,
                "first_s": first_s,
                "first_at_most_s": case.first_s,
                "again_s": again_s,
                "again_at_most_s": case.again_s,
                "gguf_s": package_s,
                "cpu_share": beside and cpu_share(folder, Path(base), beside, runs),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each; the median is reported")
    parser.add_argument("--scale", type=float, default=1, help="of the number of files")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, run in turn with this one")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.json:
        print(
            f"{'':32}{'first s':>9}{'target':>8}{'again s':>9}{'target':>8}{'gguf s':>9}{'times faster':>14}"
            f"{'CPU of beside':>15}"
        )
    for figures in measure(given.runs, given.scale, given.beside):
        if given.json:
            print(json.dumps(figures), flush=True)
        else:
            share = f"{figures['cpu_share']:15.2f}" if given.beside else ""
            targets = (figures["first_at_most_s"] or "-", figures["again_at_most_s"] or "-")
            print(f"{figures['what']:32}{figures['first_s']:9.2f}{targets[0]:>8}{figures['again_s']:9.2f}"
                  f"{targets[1]:>8}{figures['gguf_s']:9,.1f}{figures['ratio']:14,.1f}{share}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
