"""Good files with something broken in them: whatever it is, the reader says so, in little memory.

    python -m tests.gguf.test_mutations 5000000 [SEED]

runs longer than the tests do, and says how long the slowest reading took.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import Header, read_header
from tests.gguf.make import File, llama_entries, llama_tensors, vocabulary

COUNT = 50_000
LARGEST_KB = 64 << 10

EVIL = [
    0,
    1,
    7,
    8,
    9,
    12,
    13,
    31,
    255,
    256,
    65535,
    1 << 29,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
]
BASES = [
    File(llama_entries(), llama_tensors()),
    File(llama_entries(), llama_tensors(), sign=">"),
    File([*llama_entries(), ("a", "[string]", ["x", "yy", ""]), ("general.alignment", "u32", 64)], (), version=2),
    # Long enough for a search, and short enough for 50,000 readings.
    File([*llama_entries(1), *vocabulary(1030), ("tokenizer.ggml.eos_token_id", "u32", 0)], llama_tensors(1, 1)),
]


def flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.randrange(256)


def lie(data: bytearray, at: int, rng: random.Random) -> None:
    sign, letter = rng.choice("<>"), rng.choice("IQ")
    value = rng.choice(EVIL) & (1 << 8 * struct.calcsize("<" + letter)) - 1
    data[at : at + struct.calcsize("<" + letter)] = struct.pack(sign + letter, value)


def cut(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at:]


def drop(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.randrange(1, 40)]


def insert(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = rng.randbytes(rng.randrange(1, 40))


def repeat(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.randrange(1, 200)]


MUTATIONS: list[Callable[[bytearray, int, random.Random], None]] = [
    flip,
    overwrite,
    lie,
    lie,
    cut,
    drop,
    insert,
    repeat,
]


def mutated(whole: bytes, header_bytes: int, rng: random.Random) -> bytearray:
    """A good file with something broken in its header, most often one thing."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if data:
            rng.choice(MUTATIONS)(data, rng.randrange(min(header_bytes, len(data))), rng)
    return data


def outcome(path: str, strict: bool = False) -> Header | str:
    try:
        return read_header(path, strict)
    except ModelFileError as error:
        assert str(error).isprintable()  # one line, whatever the file says
        return str(error)


def mutate_and_read(count: int, seed: int) -> dict[str, float]:
    """Read `count` mutated files: how many were refused, the slowest reading, all of them, the memory it took."""
    rng = random.Random(seed)
    bases = [(bytes(base), len(base.header)) for base in BASES]
    refused = 0
    slowest_s = total_s = 0.0
    file = os.memfd_create("mutation")
    path = f"/proc/self/fd/{file}"
    before_kb = peak_kb()
    for number in range(count):
        whole, header_bytes = bases[number % len(bases)]
        data = mutated(whole, header_bytes, rng)
        os.ftruncate(file, 0)
        os.pwrite(file, data, 0)
        began_s = time.thread_time()
        found = outcome(path)
        took_s = time.thread_time() - began_s
        total_s += took_s
        slowest_s = max(slowest_s, took_s)
        refused += isinstance(found, str)
        walked = outcome(path, strict=True) if number % len(bases) == len(bases) - 1 else found
        # By their text, too, because NaN is not equal to itself. Only a walk sees damage within a vocabulary.
        alike = found == walked or repr(found) == repr(walked)
        assert alike or (isinstance(found, Header) and isinstance(walked, str)), f"mutation {number} of seed {seed}"
    os.close(file)
    return {
        "count": count,
        "refused": refused,
        "slowest_s": slowest_s,
        "readings_per_second": round(count / total_s),
        "memory_kb": peak_kb() - before_kb,
    }


def peak_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def test_no_mutation_of_a_good_file_breaks_the_reader() -> None:
    # A process of its own: the peak of this one's memory has other causes.
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf.test_mutations", str(COUNT)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["pipes", "."])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["count"] == COUNT
    assert COUNT // 2 < figures["refused"] < COUNT
    assert figures["memory_kb"] < LARGEST_KB


if __name__ == "__main__":
    print(json.dumps(mutate_and_read(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
