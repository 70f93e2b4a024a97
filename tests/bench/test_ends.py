from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.ends import MEASURES


def test_the_measurement_runs_and_gives_a_figure_for_each_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ends", "--runs", "1", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["what"] for f in figures] == list(MEASURES)
    assert all(f["runs"] == 1 and f["median_ms"] == f["longest_ms"] for f in figures)
