"""What a model that drafts, a projector and a batch add: predicted against what the engine says that it allocates.

    python -m tests.bench.counted [--engine embedded] [--json]

Model files of real shapes, whose weights are a hole; an engine loads them and tells each buffer (`-lv 4`), and may end
then, for they have no vocabulary. Host memory, without a card. The pictures' buffers are those of llama-server's own
estimate for the largest picture, which it makes with the same code.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from modelpipes.child import Child
from modelpipes.engine.arguments import make_arguments, placed
from modelpipes.engine.locate import Binary, EngineChoice, find_engine
from modelpipes.errors import DeadlineError, EngineError
from modelpipes.fit.prediction import EnginePredictor
from modelpipes.fit.spec import EngineSpec, spec_of
from modelpipes.values.deadline import Deadline
from tests.fit.shapes import SHAPES, write_model
from tests.projector import PROJECTORS, write_projector

MIB = 1 << 20
LOAD_S = 120.0  # a hole of gigabytes is read as any other file
LOOK_S = 0.05
BUFFER = re.compile(r"\w+: +(CPU\w*) +(model|output|KV|RS|compute) buffer size = +([\d.]+) MiB")
PICTURES = re.compile(r"\[mtmd\] estimated worst-case memory usage of mmproj is ([\d.]+) MiB")
IS_LOADED = re.compile(r"load_model: initializing, n_slots|server is listening|exiting due to model loading error")


@dataclass(frozen=True)
class Case:
    """One setting: a model by its shape, and what it is given."""

    name: str
    model: str
    given: dict[str, Any] = field(default_factory=dict)
    draft: str = ""
    projector: str = ""


CASES = (
    Case("alone", "llama-3.2-1b"),
    Case("batch_size = 512", "llama-3.2-1b", {"batch_size": 512}),
    Case("draft", "llama-3.2-1b", draft="qwen3-0.6b"),
    Case("draft, batch_size = 512", "llama-3.2-1b", {"batch_size": 512}, draft="qwen3-0.6b"),
    Case("draft, 4 conversations, q8_0", "llama-3.2-1b", {"parallel": 4, "kv_type": "q8_0"}, draft="qwen3-0.6b"),
    Case("draft of its own shape", "qwen3-0.6b", {"ctx_size": 8192}, draft="qwen3-0.6b"),
    *(Case(f"--mmproj, {name}", "llama-3.2-1b", projector=name) for name in PROJECTORS),
)


@dataclass(frozen=True)
class Counted:
    """Bytes of weights, of caches with what is computed in, and of pictures."""

    weights: int = 0
    working: int = 0
    pictures: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.working + self.pictures


def spec_in(folder: Path, case: Case) -> EngineSpec:
    """The spec of a case, its files written."""

    def shape(name: str) -> str:
        path = folder / f"{name}.gguf"
        if not path.exists():
            write_model(path, SHAPES[name]())
        return str(path)

    arguments = ["-lv", "4"]
    if case.projector:
        path = folder / f"{case.projector}.mmproj.gguf"
        write_projector(path, PROJECTORS[case.projector])
        arguments += ["--mmproj", str(path)]
    else:
        arguments.append("--no-warmup")
    draft = shape(case.draft) if case.draft else None
    return spec_of(shape(case.model), draft=draft, engine_args=arguments, **case.given)


def predict(spec: EngineSpec) -> Counted:
    """What is counted for it, on the host."""
    spec = placed(spec, 0)
    whole = EnginePredictor(spec)(spec).host.total_bytes
    bare = replace(spec, arguments=(), projector="")
    host = EnginePredictor(bare)(bare).host
    return Counted(host.model_bytes, host.total_bytes - host.model_bytes, whole - host.total_bytes)


def measure(binary: Binary, spec: EngineSpec) -> Counted:
    """What the engine says of its buffers while it loads; EngineError where it says nothing."""
    command = [*binary.argv, *make_arguments(binary, spec, 0, None)]
    lines: list[str] = []
    with Child(command, name="engine", sink=_collect(lines)) as child:
        deadline = Deadline.after(LOAD_S)
        while child.exit_code() is None and not any(map(IS_LOADED.search, lines)):
            deadline.check("buffers told by the engine")
            try:
                child.wait(Deadline.after(LOOK_S))
            except DeadlineError:
                continue
    found = [match for line in lines if (match := BUFFER.search(line))]
    if not found:
        raise EngineError(f"the engine says nothing of its buffers: {lines[-1] if lines else 'it said nothing'}")
    found = [match for match in found if not match[0].startswith("reserve_compute_meta")]  # it is of the pictures
    weights = sum(float(match[3]) for match in found if match[2] == "model")
    working = sum(float(match[3]) for match in found if match[2] != "model")
    pictures = sum(float(match[1]) for line in lines if (match := PICTURES.search(line)))
    return Counted(int(weights * MIB), int(working * MIB), int(pictures * MIB))


def _collect(lines: list[str]) -> Callable[[bytes], None]:
    rest = [b""]

    def take(data: bytes) -> None:
        *whole, rest[0] = (rest[0] + data).split(b"\n")
        lines.extend(line.decode("utf-8", "replace") for line in whole)

    return take


def rows(binary: Binary) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            spec = spec_in(Path(folder), case)
            if case.projector and "--mmproj" not in binary.flags:
                continue
            predicted, measured = predict(spec), measure(binary, spec)
            yield {
                "setting": case.name,
                "model": case.model,
                "predicted_bytes": predicted.total,
                "measured_bytes": measured.total,
                "weights": (predicted.weights, measured.weights),
                "working": (predicted.working, measured.working),
                "pictures": (predicted.pictures, measured.pictures),
                "ratio": predicted.total / measured.total,
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=get_args(EngineChoice), default="auto")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    binary = find_engine(given.engine)
    found = list(rows(binary))
    if given.json:
        print(json.dumps({"engine": binary.version, "settings": found}))
        return 0
    print(f"{binary.kind} {binary.version}; MiB, predicted / measured")
    for row in found:
        pairs = "".join(f"{key} {a / MIB:9.2f} /{b / MIB:9.2f}   " for key in ("weights", "working", "pictures")
                        for a, b in [row[key]])  # fmt: skip
        print(f"{row['model']:14}{row['setting']:32}{pairs}{row['ratio']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
