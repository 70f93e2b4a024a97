from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_measurement_runs_and_gives_a_ratio_for_each_figure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.overhead", "--runs", "1", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["what"] for f in figures] == [
        "start-up of setup-pipes",
        "start-up of list-seats",
        "start-up of ask-model",
        "start-up of cleanup-pipes",
        "first token of tiny-chat",
        "streaming 1000 tokens",
    ]
    assert all(f["ratio"] > 0 for f in figures)
