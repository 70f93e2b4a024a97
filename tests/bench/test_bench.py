"""The whole bench, in a hurry: that it runs, what it leaves, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import fairness, results
from tests.bench.results import ROOT
from tests.drill.processes import marked
from tests.peers import eventually

LIMIT_S = 120


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """The bench as bin/bench starts it, but in the Python that runs the tests."""
    (tmp_path / "tmp").mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    argv = [sys.executable, "-P", "-m", "tests.bench", *options]
    return subprocess.Popen(
        argv, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def left(tmp_path: Path) -> tuple[list[str], list[int]]:
    """What lies in its temporary folder, and which processes of its run."""
    return os.listdir(tmp_path / "tmp"), [one.pid for one in marked(f"TMPDIR={tmp_path / 'tmp'}")]


def test_a_quick_run_measures_everything_and_leaves_nothing(tmp_path: Path) -> None:
    bench = start(tmp_path, "--quick", "--output", "found.json")
    said, progress = bench.communicate(timeout=LIMIT_S)
    assert bench.returncode == 0, progress
    found = results.read(str(tmp_path / "found.json"))
    assert {figure.part for figure in found.figures} == {"transport", "start-up", "conversation", "fairness"}
    assert all(figure.value >= 0 and figure.runs for figure in found.figures)
    assert all(figure.value == 0 for figure in found.figures if figure.column == fairness.LOST)
    assert {skipped.what for skipped in found.skipped} >= {"overhead"}
    assert found.promises == []  # nothing is proved in a hurry
    assert said.startswith("round trip") and "a quick run, which proves nothing" in said
    assert "Traceback" not in progress
    assert left(tmp_path) == ([], [])


def test_another_checkout_is_measured_beside_this_one_and_leaves_nothing(tmp_path: Path) -> None:
    bench = start(tmp_path, "--beside", str(ROOT), "--quick", "--output", "found.json")
    said, progress = bench.communicate(timeout=LIMIT_S)
    assert bench.returncode == 0, progress
    found = results.read(str(tmp_path / "found.json"))
    for does in ("ping", "say and reply", "ping-pipes --self"):
        for whose in ("this checkout", str(ROOT)):
            figures = [figure for figure in found.figures if figure.row == f"{whose}, {does}"]
            assert [figure.column for figure in figures] == ["64 B", "4 KiB", "64 KiB"]
            assert all(figure.value > 0 for figure in figures)
            assert f"{whose}, {does}" in said
    assert left(tmp_path) == ([], [])


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    bench = start(tmp_path, "--beside", str(tmp_path))
    said, why = bench.communicate(timeout=LIMIT_S)
    assert (bench.returncode, said) == (1, "")
    assert why == f"bench: {tmp_path}: no checkout of modelpipes; pipes/modelpipes is not there\n"


def test_a_kept_run_is_shown_and_compared_without_measuring(tmp_path: Path) -> None:
    kept, slower = str(tmp_path / "kept.json"), str(tmp_path / "slower.json")
    for path, times in ((kept, 1.0), (slower, 2.0)):
        runs = [times, times, times]
        one = results.figure("start-up", "start-up", "ask-model", "--help", "ms", runs, is_ours=True)
        found = results.Results(1, results.now(), False, 3, results.Machine.here(), [one], [], [])
        results.write(path, found)
    for new, code, said in ((kept, 0, "nothing changed"), (slower, 1, "worse: start-up")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tests.bench", "--from", new, "--compare", kept, "--markdown"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (code, "")
        assert said in done.stdout
        assert "| ask-model |" in done.stdout


def test_what_cannot_be_read_is_said_in_a_line_before_anything_is_measured(tmp_path: Path) -> None:
    bench = start(tmp_path, "--compare", "missing.json")
    said, why = bench.communicate(timeout=LIMIT_S)
    assert (bench.returncode, said) == (1, "")
    assert why == "bench: missing.json: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ended_early_it_takes_everything_with_it(signum: signal.Signals, tmp_path: Path) -> None:
    bench = start(tmp_path, "--only", "transport")
    assert bench.stderr
    assert bench.stderr.readline().startswith("transport: round 1")
    mark = f"TMPDIR={tmp_path / 'tmp'}"
    eventually(lambda: len(marked(mark)) > 10, "the talkers", LIMIT_S)
    bench.send_signal(signum)
    said, progress = bench.communicate(timeout=LIMIT_S)
    assert (bench.returncode, said) == (128 + signum, "")
    assert "Traceback" not in progress
    assert left(tmp_path) == ([], [])
