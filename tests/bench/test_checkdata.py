from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_measurement_of_the_check_of_data_runs_and_finds_both_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.checkdata", "--runs", "1", "--size", "8", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert 7 < figures["size_mib"] < 9
    assert figures["check_data_s"] > 0
