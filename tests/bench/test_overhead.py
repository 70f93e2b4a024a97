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
    commands = ("setup-pipes", "list-seats", "ask-model", "ping-pipes", "cleanup-pipes")
    assert [f["what"] for f in figures] == [
        *(f"start-up of {command}" for command in commands),
        *(f"start-up of {command}, processor time" for command in commands),
        "first token of tiny-chat",
        "streaming 1000 tokens",
    ]
    assert all(f["ratio"] > 0 for f in figures)
