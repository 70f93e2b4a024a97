from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_measurement_of_headers_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.headers", "--runs", "1", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    readers = ("ours", "strict", "gguf package")
    assert [f["what"] for f in figures] == [
        f"{size}, {who}" for size in ("7 MB header", "small header") for who in readers
    ]
    assert all(f["ratio"] > 0 for f in figures)
    # What the budget of the reader allows for a 7 MB header.
    assert figures[0]["memory_kb"] < 16 << 10
