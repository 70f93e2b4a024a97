"""What reading a model file's header costs: ours, searching and strict, side by side with the gguf package.

    python -m tests.bench.headers [--runs 15] [--json]

For a header as of Llama 3 (7 MB: 128,256 tokens, 280,147 merges, 291 tensors) and a small one (15 keys, 20
tensors), warm: medians of CPU time, and by how much the memory of a fresh process grows at most. The ratio
is that of the gguf package's time to ours.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf

from modelpipes.gguf.header import read_header
from tests.gguf.make import Entry, File, TensorSpec, llama_entries

TOKENS, MERGES = 128_256, 280_147
# (name, rows, columns, type)
BLOCK = [
    ("attn_norm", 4096, 1, 0),
    ("attn_q", 4096, 4096, 12),
    ("attn_k", 4096, 1024, 12),
    ("attn_v", 4096, 1024, 14),
    ("attn_output", 4096, 4096, 12),
    ("ffn_norm", 4096, 1, 0),
    ("ffn_gate", 4096, 14336, 12),
    ("ffn_up", 4096, 14336, 12),
    ("ffn_down", 14336, 4096, 12),
]
PROGRAMS = {
    "ours": "from modelpipes.gguf.header import read_header",
    "strict": "from modelpipes.gguf.header import read_header",
    "gguf package": "import gguf",
}
CALLS = {
    "ours": "read_header(path)",
    "strict": "read_header(path, strict=True)",
    "gguf package": "gguf.GGUFReader(path)",
}
PEAK = """
import sys
{program}
path = sys.argv[1]
def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before_kb = peak_kb()
kept = {call}
print(peak_kb() - before_kb)
"""


def write_large(path: Path) -> None:
    rng = random.Random(1)
    parts = ["th", "er", "in", "Ġa", "on", "ing", "Ġthe", "ion", "re", "x", "q", "able", "中", "ство"]

    def word(most: int) -> str:
        return "".join(rng.choices(parts, k=rng.randint(1, most)))

    tokens = [word(4) for _ in range(TOKENS)]
    tokens[220] = "Ġ" * 128  # vocabularies have a few long ones
    entries: list[Entry] = [
        *llama_entries(32),
        ("tokenizer.ggml.model", "string", "gpt2"),
        ("tokenizer.ggml.tokens", "[string]", tokens),
        ("tokenizer.ggml.token_type", "[i32]", [1] * TOKENS),
        ("tokenizer.ggml.merges", "[string]", [f"{word(2)} {word(2)}" for _ in range(MERGES)]),
        ("tokenizer.ggml.bos_token_id", "u32", 128_000),
        ("tokenizer.chat_template", "string", "{% x %}" * 600),
    ]
    tensors = [TensorSpec("token_embd.weight", (4096, TOKENS), 12), TensorSpec("output_norm.weight", (4096,))]
    tensors += [TensorSpec(f"blk.{n}.{name}.weight", (a, b), kind) for n in range(32) for name, a, b, kind in BLOCK]
    write(path, File(entries, [*tensors, TensorSpec("output.weight", (4096, TOKENS), 14)]))


def write_small(path: Path) -> None:
    more: list[Entry] = [(f"llama.more{number}", "u32", number) for number in range(5)]
    tensors = [TensorSpec("token_embd.weight", (256, 256), 12), TensorSpec("output_norm.weight", (256,))]
    tensors += [TensorSpec(f"blk.{n}.{name}.weight", (256, 256), kind) for n in (0, 1) for name, _, _, kind in BLOCK]
    write(path, File([*llama_entries(), *more], tensors))


def write(path: Path, file: File) -> None:
    """Write a file whose data are a hole: as long as they should be, without room on the disk."""
    header = file.header
    with path.open("wb") as opened:
        opened.write(header)
        data_bytes = sum(-(-tensor.n_bytes // 32) * 32 for tensor in file.tensors)
        opened.truncate(-(-len(header) // 32) * 32 + data_bytes)


def median_ms(runs: int, repeats: int, read: Callable[[], object]) -> float:
    taken = []
    for number in range(runs + 1):
        began_ns = time.thread_time_ns()
        for _ in range(repeats):
            read()
        if number or not runs:  # the first run warms up
            taken.append((time.thread_time_ns() - began_ns) / repeats / 1e6)
    return statistics.median(taken)


def memory_kb(path: Path, what: str) -> int:
    program = PEAK.format(program=PROGRAMS[what], call=CALLS[what])
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure(runs: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for name, write_file, repeats in (("7 MB header", write_large, 1), ("small header", write_small, 100)):
            path = Path(folder) / "model.gguf"
            write_file(path)
            # The large one takes it seconds: once, and cold, is enough.
            package_ms = median_ms(0 if repeats == 1 else runs, 1, partial(gguf.GGUFReader, path))
            for what, strict in (("ours", False), ("strict", True)):
                ours_ms = median_ms(runs, repeats, partial(read_header, path, strict))
                yield {
                    "what": f"{name}, {what}",
                    "ratio": package_ms / ours_ms,
                    "cpu_ms": ours_ms,
                    "memory_kb": memory_kb(path, what),
                }
            yield {
                "what": f"{name}, gguf package",
                "ratio": 1.0,
                "cpu_ms": package_ms,
                "memory_kb": memory_kb(path, "gguf package"),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each; the median is reported")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.json:
        print(f"{'':28}{'times faster':>14}{'CPU ms':>12}{'memory kB':>12}")
    for figures in measure(given.runs):
        if given.json:
            print(json.dumps(figures), flush=True)
        else:
            print("{what:28}{ratio:14,.1f}{cpu_ms:12,.3f}{memory_kb:12,}".format(**figures), flush=True)


if __name__ == "__main__":
    main()
