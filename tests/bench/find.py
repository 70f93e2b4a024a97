"""What find-gguf takes for many files, the start of the process included, side by side with the gguf package.

    python -m tests.bench.find [--runs 5] [--scale 1] [--json]

Medians of wall time of whole runs, piped: the first time (an empty cache) and again. The large files are links to
one, as 7 GB of headers would measure the disk, so all is warm. The different models have the headers of real ones
without their vocabularies. The ratio is that of the gguf package's time to our first run: it reads some of the files
in a running process, scaled to their number, and rates nothing.
"""

from __future__ import annotations

import argparse
import json
import os
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


CASES = (
    Case("files with 7 MB headers", 1000, make_large, 4.0, 0.3, 1),
    Case("small files", 10_000, make_small, 2.0, None, 50),
    Case("different models", len(SHAPES) + len(MODELS), make_different, None, None, 20),
)


def run_s(folder: Path, cache: Path) -> float:
    command = [sys.executable, "-P", "-m", "modelpipes", "find", str(folder), "--gpu", "rtx4080"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    began_s = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return time.perf_counter() - began_s


def gguf_s(paths: Sequence[Path]) -> float:
    """What the gguf package takes for one of these files."""
    began_s = time.perf_counter()
    for path in paths:
        gguf.GGUFReader(path)
    return (time.perf_counter() - began_s) / len(paths)


def measure(runs: int, scale: float) -> Iterator[dict[str, Any]]:
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
                taken.append((run_s(folder, cache), run_s(folder, cache)))
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
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each; the median is reported")
    parser.add_argument("--scale", type=float, default=1, help="of the number of files")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.json:
        print(f"{'':32}{'first s':>9}{'target':>8}{'again s':>9}{'target':>8}{'gguf s':>9}{'times faster':>14}")
    for figures in measure(given.runs, given.scale):
        if given.json:
            print(json.dumps(figures), flush=True)
        else:
            targets = (figures["first_at_most_s"] or "-", figures["again_at_most_s"] or "-")
            print(f"{figures['what']:32}{figures['first_s']:9.2f}{targets[0]:>8}{figures['again_s']:9.2f}"
                  f"{targets[1]:>8}{figures['gguf_s']:9,.1f}{figures['ratio']:14,.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
