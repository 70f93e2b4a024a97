"""How fast each engine of this machine is, side by side: the tiny model that talks, and one of 64 MiB.

    python -m tests.bench.engines [--runs 5] [--json]

Tokens a second, as the engine counts them, medians of runs that the engines do in turn, each with the settings that
`attach-model` starts it with; `times` is against the last row. Build one with `modelpipes build-engine`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import engines
from modelpipes.terminal.drawing import draw
from modelpipes.terminal.table import Table
from modelpipes.values.deadline import Deadline
from tests.models import scripted_model

READY_S = 60.0
ANSWER_S = 120.0
PROMPT_WORDS = 400
ANSWER_TOKENS = 200


def models(folder: Path) -> dict[str, str]:
    """What is asked: a name, and the file."""
    padded = scripted_model(folder / "padded.gguf", " on and on", endless=True, pad_mib=64)
    return {"tiny-chat, 1.6 MB": "tiny-chat", "64 MiB, f16": str(padded)}


def ask(engine: Engine, seed: int) -> tuple[float, float]:
    """Tokens a second that it reads and that it writes, of one answer; no prompt is in its cache."""
    question = f"{seed} " + "boats and goats " * (PROMPT_WORDS // 3)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": ANSWER_TOKENS, "cache_prompt": False}
    answer = httpx.post(f"{engine.base_url}/v1/chat/completions", json=body, timeout=ANSWER_S).raise_for_status()
    timings = answer.json()["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def measure(runs: int) -> list[dict[str, Any]]:
    """A row for each model and engine."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in models(Path(folder)).items():
            found: dict[str, list[tuple[float, float]]] = {}
            with ExitStack() as stack:
                started = {}
                for label, binary in engines():
                    engine = stack.enter_context(Engine(file, ctx_size=4096, engine=binary))
                    engine.be_ready(Deadline.after(READY_S))
                    started[f"{label} {binary.version}"] = engine
                for seed in range(runs):
                    for label, engine in started.items():
                        found.setdefault(label, []).append(ask(engine, seed))
            for label, figures in found.items():
                reads, writes = (statistics.median(column) for column in zip(*figures, strict=True))
                rows.append({"model": name, "engine": label, "reads_per_second": reads, "writes_per_second": writes})
            last = rows[-1]
            for row in rows[-len(found) :]:
                row["times_reading"] = row["reads_per_second"] / last["reads_per_second"]
                row["times_writing"] = row["writes_per_second"] / last["writes_per_second"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.runs)
    if options.json:
        print(json.dumps(rows))
        return
    shown = [
        (
            row["model"],
            row["engine"],
            f"{row['reads_per_second']:,.0f}",
            f"{row['times_reading']:.2f}",
            f"{row['writes_per_second']:,.0f}",
            f"{row['times_writing']:.2f}",
        )
        for row in rows
    ]
    headers = ["model", "engine", "reads, tokens/s", "times", "writes, tokens/s", "times"]
    print(draw(Table(headers, shown, right=headers[2:])), end="")


if __name__ == "__main__":
    main()
