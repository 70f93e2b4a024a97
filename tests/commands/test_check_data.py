"""find-gguf --check-data, as it is run."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from modelpipes.gguf.findings import DataCheck, DataFinding
from tests.commands.conftest import LIMIT_S, Commands
from tests.gguf.make import File, TensorSpec, llama_entries, padded
from tests.peers import eventually
from tests.shell import CHECKOUT, TINY_CHAT

Q4_K, ROW = 12, 2304
SPECS = [TensorSpec("token_embd.weight", (4096, 40), Q4_K), TensorSpec("blk.0.ffn_up.weight", (4096, 30), Q4_K)]
HEADER = padded(File(llama_entries(), SPECS).header)
CARD = "--gpu=rtx4080"
PADDING_AT = len(HEADER) + 30 * ROW
# Of the second matrix: a minimum of a block, and a page.
NAN_AT = len(HEADER) + 40 * ROW + 7 * ROW + 3 * 144 + 2
PAGE_AT = len(HEADER) + 40 * ROW + 12 * ROW + 5 * 144


def content(changes: dict[int, bytes] | None = None) -> bytes:
    """A model that is sound, but for these bytes at these offsets."""
    made = bytearray(HEADER + b"\x11" * (70 * ROW))
    for start, data in (changes or {}).items():
        made[start : start + len(data)] = data
    return bytes(made)


@pytest.fixture
def models(run: Commands) -> Path:
    """Where the commands run, with a sound, a suspect and two damaged models."""
    damaged = {NAN_AT: b"\xff\x7f", PAGE_AT: bytes(4096)}
    (run.cwd / "sound.gguf").write_bytes(content())
    (run.cwd / "padded.gguf").write_bytes(content({PADDING_AT: bytes(10 * ROW)}))
    (run.cwd / "torn.gguf").write_bytes(content(damaged))
    return run.cwd


def test_the_table_has_the_verdict_and_stderr_a_line_for_each_finding(run: Commands, models: Path) -> None:
    ended = run("find", str(models), CARD, "--check-data")
    rows = [re.split(r"\s{2,}", line) for line in ended.lines]
    assert [(row[0], row[-2]) for row in rows] == [
        ("name", "data"), ("padded", "suspect"), ("sound", "sound"), ("torn", "damaged"),
    ]  # fmt: skip
    suspect, nan, page = ended.stderr.splitlines()
    assert suspect == (
        f"{models}/padded.gguf: suspect: 22.5 KiB of zeros, all of whole rows, in token_embd.weight (q4_K), "
        f"row 30, block 0 (at byte {PADDING_AT}): padding and biases are so, and a lost block may be"
    )
    assert nan == (
        f"{models}/torn.gguf: damaged: NaN in blk.0.ffn_up.weight (q4_K), "
        f"row 7, block 3 (at byte {NAN_AT}): get the file again"
    )
    assert page == (
        f"{models}/torn.gguf: damaged: 4.0 KiB of zeros that begin or end inside a row in blk.0.ffn_up.weight (q4_K), "
        f"row 12, block 5 (at byte {PAGE_AT}): get the file again"
    )
    assert ended.code == 1


def test_without_it_no_data_are_read(run: Commands, models: Path) -> None:
    ended = run("find", str(models), CARD)
    assert (ended.code, ended.stderr) == (0, "")
    assert "data" not in ended.lines[0].split()
    assert {file["data"] for file in report(run, str(models))["files"]} == {None}


def report(run: Commands, *arguments: str, code: int = 0) -> dict[str, Any]:
    ended = run("find", *arguments, CARD, "--json")
    assert ended.code == code, ended.stderr
    made: dict[str, Any] = json.loads(ended.stdout)
    return made


def test_json_has_the_findings_under_data(run: Commands, models: Path) -> None:
    data = {file["name"]: file["data"] for file in report(run, str(models), "--check-data", code=1)["files"]}
    assert data["sound"] == {"verdict": "sound", "checked_bytes": 70 * ROW, "findings": []}
    assert data["padded"]["verdict"] == "suspect"
    assert data["torn"]["findings"] == [
        {
            "kind": "nan", "severity": "error", "path": str(models / "torn.gguf"), "tensor": "blk.0.ffn_up.weight",
            "type": "q4_K", "row": 7, "block": 3, "offset": NAN_AT, "size_bytes": 2, "n_tensors": 1, "reason": "NaN",
        },
        {
            "kind": "zeros", "severity": "error", "path": str(models / "torn.gguf"), "tensor": "blk.0.ffn_up.weight",
            "type": "q4_K", "row": 12, "block": 5, "offset": PAGE_AT, "size_bytes": 4096, "n_tensors": 1,
            "reason": "zeros that begin or end inside a row",
        },
    ]  # fmt: skip


def test_every_key_of_a_finding_is_documented() -> None:
    page = (CHECKOUT / "docs" / "models.md").read_text("utf-8")
    for name in (*DataCheck.__struct_fields__, *DataFinding.__struct_fields__):
        assert f"`{name}`" in page


def test_csv_has_the_verdict(run: Commands, models: Path) -> None:
    ended = run("find", str(models), CARD, "--check-data", "--format", "csv")
    rows = csv.DictReader(io.StringIO(ended.stdout))
    assert [(row["name"], row["data"]) for row in rows] == [
        ("padded", "suspect"), ("sound", "sound"), ("torn", "damaged"),
    ]  # fmt: skip


def test_what_is_suspect_is_no_failure(run: Commands, models: Path) -> None:
    assert run("find", "sound.gguf", "padded.gguf", CARD, "--check-data").code == 0
    assert run("find", str(TINY_CHAT), CARD, "--check-data", "--strict").stderr == ""


def test_only_files_that_are_listed_are_read(run: Commands, models: Path) -> None:
    (models / "large.gguf").write_bytes((models / "torn.gguf").read_bytes() + bytes(1 << 20))
    (models / "torn.gguf").unlink()
    ended = run("find", str(models), CARD, "--check-data", "--max-size", "1M", "--no-gpu-fit")
    assert (ended.code, len(ended.lines)) == (0, 3)
    assert "large" not in ended.stderr
    assert run("find", "large.gguf", CARD, "--check-data").code == 1


def test_a_file_that_cannot_be_read_fails_it_beside_sound_ones(run: Commands, models: Path) -> None:
    (models / "cut.gguf").write_bytes(content()[:-1000])
    ended = run("find", "sound.gguf", "cut.gguf", CARD, "--check-data")
    assert (ended.code, len(ended.lines)) == (1, 2)
    assert "incomplete download" in ended.stderr
    assert run("find", "sound.gguf", "cut.gguf", CARD).code == 0


def test_without_what_it_needs_it_says_what_to_install(run: Commands, models: Path) -> None:
    without_numpy = "import sys; sys.modules['numpy'] = None; from modelpipes import commands; commands.main()"
    command = [sys.executable, "-P", "-c", without_numpy, "find", str(models), CARD]
    ended = run.run([*command, "--check-data"], limit_s=LIMIT_S)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert "--check-data needs numpy" in ended.stderr
    assert "pip install 'modelpipes[check]'" in ended.stderr
    assert run.run(command, limit_s=LIMIT_S).code == 0


def test_ctrl_c_ends_it_at_once(run: Commands) -> None:
    large = TensorSpec("token_embd.weight", (4096, 28_000), Q4_K)
    (run.cwd / "0.gguf").write_bytes(padded(File(llama_entries(), [large]).header) + b"\x11" * large.n_bytes)
    for number in range(1, 500):  # 32 GB to read, and no disk
        os.link(run.cwd / "0.gguf", run.cwd / f"{number}.gguf")
    process = run.start("find", str(run.cwd), CARD, "--check-data")

    def has_read() -> bool:
        n_bytes = Path("/proc", str(process.pid), "io").read_text().split()[1]  # rchar
        return int(n_bytes) > 100_000_000  # more than what it starts with

    eventually(has_read, "look at the data")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")
