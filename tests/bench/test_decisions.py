from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_measurement_of_decisions_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.decisions", "--runs", "1", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["what"].split()[0] for one in figures] == ["40", "5000", "5000", "6", "6", "6", "60"]
    assert all(one["ms"] > 0 for one in figures)
