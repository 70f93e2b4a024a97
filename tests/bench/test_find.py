from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_measurement_of_find_gguf_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.find", "--runs", "1", "--scale", "0.05", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["what"].split(" ", 1)[1] for f in figures] == [
        "files with 7 MB headers", "small files", "real models", "different models",
    ]  # fmt: skip
    assert all(each[key] > 0 for each in figures for key in ("ratio", "first_s", "again_s", "gguf_s"))
