"""What find-gguf --check-data takes for one large file, the start of the process included, beside sha256sum.

    python -m tests.bench.checkdata [--runs 5] [--size 1024] [--json]

The file has so many MiB of random blocks of Q4_K, and with them a block of 4 KiB of zeros and a scale that is NaN, both
in its last tensor: each run has to find them, and has to read all before. Both run in turns, and the file is in memory.
Medians, of wall time and of CPU time; the ratio is that of our wall time to sha256sum's, at most 1.
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
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.gguf.make import File, TensorSpec, llama_entries, padded

Q4_K, BLOCK_BYTES = 12, 144
WIDTH, ROWS = 4096, 14336  # of Llama 3's feed-forward matrices
ZEROS_BYTES = 4096
NAN = b"\xff\x7f"
MIB = 1 << 20


class Taken(NamedTuple):
    wall_s: float
    cpu_s: float


def write_model(path: Path, size_mib: int) -> None:
    """Write a damaged model of about this size."""
    rows = min(ROWS, size_mib * MIB // (WIDTH // 256 * BLOCK_BYTES) // 4)
    spec = TensorSpec("", (WIDTH, rows), Q4_K)
    count = max(1, round(size_mib * MIB / spec.n_bytes))
    tensors = [TensorSpec(f"blk.{number}.ffn_up.weight", spec.shape, Q4_K) for number in range(count)]
    data = random_blocks(spec.n_bytes // BLOCK_BYTES)
    with path.open("wb") as file:
        file.write(padded(File(llama_entries(count), tensors).header))
        for _ in range(count - 1):
            file.write(data)
        last = bytearray(data)
        third = len(last) // 3 // BLOCK_BYTES * BLOCK_BYTES
        last[third : third + len(NAN)] = NAN
        last[2 * third : 2 * third + ZEROS_BYTES] = bytes(ZEROS_BYTES)
        file.write(last)


def random_blocks(count: int) -> bytes:
    """Blocks of any quants and any scales that are numbers."""
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (count, BLOCK_BYTES), np.uint8)
    blocks[:, :4] = rng.uniform(-1, 1, (count, 2)).astype(np.float16).view(np.uint8)
    return blocks.tobytes()


def run(command: list[str], code: int) -> tuple[Taken, bytes]:
    """Run a command, with what it took and said."""
    before = os.times()
    began_s = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    wall_s = time.perf_counter() - began_s
    after = os.times()
    if done.returncode != code:
        raise SystemExit(f"{command[0]} ended with {done.returncode}, not {code}")
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return Taken(wall_s, cpu_s), done.stdout


def check(path: Path) -> Taken:
    """Check the data of the file; insists on both faults."""
    command = [sys.executable, "-P", "-m", "modelpipes", "find", str(path)]
    taken, said = run([*command, "--check-data", "--no-gpu-fit", "--no-cache", "--json"], 1)
    found = json.loads(said)["files"][0]["data"]["findings"]
    if [each["kind"] for each in found] != ["nan", "zeros"]:
        raise SystemExit(f"found {found} instead of NaN and zeros")
    return taken


def measure(runs: int, size_mib: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        write_model(path, size_mib)
        size_bytes = path.stat().st_size
        ours, theirs = [], []
        for number in range(runs + 1):
            times = check(path), run(["sha256sum", str(path)], 0)[0]
            if number:  # the first run warms up
                ours.append(times[0])
                theirs.append(times[1])
    wall_s, sha256sum_s = (statistics.median(taken.wall_s for taken in each) for each in (ours, theirs))
    cpu_s, sha256sum_cpu_s = (statistics.median(taken.cpu_s for taken in each) for each in (ours, theirs))
    return {
        "size_mib": size_bytes / MIB,
        "check_data_s": wall_s,
        "sha256sum_s": sha256sum_s,
        "ratio": wall_s / sha256sum_s,
        "check_data_cpu_s": cpu_s,
        "sha256sum_cpu_s": sha256sum_cpu_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each; the median is reported")
    parser.add_argument("--size", type=int, default=1024, help="of the file, in MiB")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(given.runs, given.size)
    if given.json:
        print(json.dumps(figures))
    else:
        print(f"{'':14}{'wall s':>9}{'CPU s':>9}   of {figures['size_mib']:,.0f} MiB")
        for name, what in (("--check-data", "check_data"), ("sha256sum", "sha256sum")):
            print(f"{name:14}{figures[f'{what}_s']:9.2f}{figures[f'{what}_cpu_s']:9.2f}")
        print(f"ratio {figures['ratio']:.2f}, at most 1")


if __name__ == "__main__":
    main()
