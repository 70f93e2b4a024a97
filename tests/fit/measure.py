"""Measure the models of `archs.py`, and of a folder of tiny ones, with `measure.cpp`; write `archs.jsonl.gz`.

python -m tests.fit.measure ./measure TINY_MODELS SCRATCH
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import ArrayInfo, Value, read_header
from tests.fit.archs import MODELS
from tests.fit.shapes import write_model
from tests.fit.table import ABORT, ARCHS, NO_MODEL

SETTINGS = [
    EngineSpec(),
    EngineSpec(n_gpu_layers=0),
    EngineSpec(n_gpu_layers=2),
    EngineSpec(n_devices=2),
    EngineSpec(n_devices=2, tensor_split=(3, 1)),
    EngineSpec(n_parallel=4, kv_unified=False, n_ctx=8192),
    EngineSpec(n_parallel=4, n_ctx=1000),
    EngineSpec(type_k="q8_0", type_v="q8_0"),
    EngineSpec(flash_attn=False),
    EngineSpec(cpu_moe=True, n_gpu_layers=3),
    EngineSpec(n_ubatch=2048, n_ctx=16384),
    EngineSpec(flash_attn=False, n_parallel=3, kv_unified=False, n_ctx=3000, n_devices=2, tensor_split=(1, 2)),
    EngineSpec(type_k="q4_0", n_ctx=300, n_ubatch=1024),
    EngineSpec(n_outputs=512, n_ubatch=256),
]


def main(measure: str, tiny: str, scratch: str) -> None:
    models = sorted(Path(tiny).glob("*.gguf"))
    for name, shape in MODELS.items():
        models.append(Path(scratch) / f"{name}.gguf")
        write_model(models[-1], shape.build())
    keys = list(asdict(SETTINGS[0]))
    keys.remove("backend")
    all_settings = [{key: getattr(settings, key) for key in keys} for settings in SETTINGS]
    figures = run(measure, [{"path": str(path), **settings} for path in models for settings in all_settings])
    with ARCHS.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
        file.write(json.dumps({"llama_cpp": "b11434", "settings": all_settings}).encode() + b"\n")
        for path in models:
            row = {"name": path.stem, "figures": [next(figures) for _ in all_settings]}
            if any(outcome == NO_MODEL for outcome in row["figures"]):
                raise SystemExit(f"{path}: llama.cpp does not load it")
            if path.stem not in MODELS:
                row |= header_of(path)
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")


def run(measure: str, rows: list[dict[str, Any]]) -> Iterator[Any]:
    """The outcome of every row; llama.cpp is started again after a row at which it stops itself."""
    while rows:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        result = subprocess.run([measure], input=lines, stdout=subprocess.PIPE, text=True, check=False)
        outcomes = [json.loads(line) for line in result.stdout.splitlines() if line.startswith(("[[", '"'))]
        if len(outcomes) < len(rows):
            outcomes.append(ABORT)
        yield from outcomes
        rows = rows[len(outcomes) :]


def header_of(path: Path) -> dict[str, Any]:
    """What the table keeps of a header: all but the tokenizer, and what is for people to read."""
    header = read_header(path)
    kept: dict[str, Value] = {
        key: value
        for key, value in header.metadata.items()
        if not key.startswith(("tokenizer.", "general.")) and not isinstance(value, ArrayInfo)
    }
    kept["general.architecture"] = header.architecture or ""
    return {"metadata": kept, "tensors": [(tensor.name, tensor.type, tensor.shape) for tensor in header.tensors]}


if __name__ == "__main__":
    main(*sys.argv[1:])
