"""The data of whole model files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelpipes.errors import ModelFileError
from modelpipes.gguf.data.check import check_data
from modelpipes.gguf.findings import DataCheck
from modelpipes.gguf.modelfile import ModelFile
from modelpipes.gguf.scan import find_model_files
from modelpipes.gguf.types import TENSOR_TYPES
from tests.gguf.conftest import Unprivileged
from tests.gguf.make import Entry, File, TensorSpec, llama_entries, padded
from tests.shell import TINY_CHAT

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
ROW = 2304  # of the matrices here: 4096 weights of q4_K
NAN_SCALE = b"\x00\x7e"


def matrix(name: str, rows: int, type_: int = Q4_K) -> TensorSpec:
    return TensorSpec(name, (4096, rows), type_)


def data_of(spec: TensorSpec) -> bytearray:
    """Random data that are sound."""
    known = TENSOR_TYPES[spec.type]
    blocks = np.random.default_rng(len(spec.name)).integers(
        1, 100, (spec.n_bytes // known.block_bytes, known.block_bytes)
    )
    return bytearray(blocks.astype(np.uint8).tobytes())


def write(
    path: Path, specs: Sequence[TensorSpec], entries: Sequence[Entry] = (), **data: bytes | bytearray
) -> dict[str, int]:
    """Write a model, with other data than random ones where given; where each tensor begins."""
    content = bytearray(padded(File(entries or llama_entries(), specs).header))
    starts = {}
    for spec in specs:
        name = str(spec.name)
        starts[name] = len(content)
        content += padded(bytes(data.get(name) or data_of(spec)))
    path.write_bytes(content)
    return starts


def model(path: Path) -> ModelFile:
    (found,) = find_model_files([str(path)])
    assert isinstance(found, ModelFile)
    return found


def check(path: Path) -> DataCheck:
    return check_data(model(path))


def findings(path: Path) -> list[tuple[Any, ...]]:
    """Of each finding what it is, and where."""
    return [(each.kind, each.severity, each.tensor, each.row, each.block, each.offset) for each in check(path).findings]


class TestValues:
    def test_a_sound_model_has_no_findings_and_all_of_it_was_read(self, tmp_path: Path) -> None:
        specs = [matrix("a", 5), TensorSpec("b", (300,), F32), matrix("c", 3, F16), matrix("d", 7, Q8_0)]
        write(tmp_path / "m.gguf", specs)
        assert check(tmp_path / "m.gguf") == DataCheck("sound", sum(spec.n_bytes for spec in specs), [])

    def test_the_model_that_comes_with_us_is_sound(self) -> None:
        assert check(TINY_CHAT).verdict == "sound"

    def test_the_first_scale_that_is_nan_is_named_with_row_and_block(self, tmp_path: Path) -> None:
        specs = [matrix("a", 5), matrix("b", 2000), matrix("c", 2)]  # b is longer than a piece
        bad, other = data_of(specs[1]), data_of(specs[2])
        where = 1500 * ROW + 3 * 144 + 2  # the minimum of block 3 of row 1500
        bad[where : where + 2] = bad[where + 9 * ROW : where + 9 * ROW + 2] = NAN_SCALE
        other[:2] = NAN_SCALE
        starts = write(tmp_path / "m.gguf", specs, b=bad, c=other)
        assert findings(tmp_path / "m.gguf") == [("nan", "error", "b", 1500, 3, starts["b"] + where)]
        (found,) = check(tmp_path / "m.gguf").findings
        assert (found.type, found.n_tensors, found.size_bytes) == ("q4_K", 2, 2)
        assert found.path == str(tmp_path / "m.gguf")
        assert check(tmp_path / "m.gguf").verdict == "damaged"

    def test_infinity_is_told_from_nan_and_a_value_is_named_where_there_are_no_blocks(self, tmp_path: Path) -> None:
        bad = np.ones((3, 4096), np.float16)
        bad[2, 77] = -np.inf
        starts = write(tmp_path / "m.gguf", [matrix("a", 3, F16)], a=bad.tobytes())
        assert findings(tmp_path / "m.gguf") == [("infinity", "error", "a", 2, 77, starts["a"] + 2 * 8192 + 77 * 2)]

    def test_big_endian_files_are_read_as_such(self, tmp_path: Path) -> None:
        spec = TensorSpec("a", (4096,), F32)
        header = padded(File(llama_entries(), [spec], sign=">").header)
        good = np.linspace(-1, 1, 4096).astype(">f4")
        (tmp_path / "m.gguf").write_bytes(header + good.tobytes())
        assert check(tmp_path / "m.gguf").verdict == "sound"
        good[1000] = np.nan
        (tmp_path / "m.gguf").write_bytes(header + good.tobytes())
        assert findings(tmp_path / "m.gguf") == [("nan", "error", "a", 0, 1000, len(header) + 4000)]

    def test_a_type_that_is_not_known_is_told_and_the_rest_checked(self, tmp_path: Path) -> None:
        odd = TensorSpec("odd", (64,), 99)
        after = TensorSpec("after", (64,), F32, offset=640)
        bad = np.full(64, np.nan, np.float32)
        header = padded(File(llama_entries(), [odd, after]).header)
        (tmp_path / "m.gguf").write_bytes(header + bytes(640) + bad.tobytes())
        assert findings(tmp_path / "m.gguf") == [
            ("nan", "error", "after", 0, 0, len(header) + 640),
            ("unchecked", "unchecked", "odd", 0, 0, len(header)),
        ]
        (tmp_path / "m.gguf").write_bytes(header + bytes(640) + np.ones(64, np.float32).tobytes())
        assert check(tmp_path / "m.gguf").verdict == "unchecked"


class TestZeros:
    def test_a_page_of_zeros_is_damage_at_the_row_where_it_begins(self, tmp_path: Path) -> None:
        specs = [matrix("a", 2000)]
        bad = data_of(specs[0])
        where = 1800 * ROW + 4 * 144
        bad[where : where + 4096] = bytes(4096)
        starts = write(tmp_path / "m.gguf", specs, a=bad)
        assert findings(tmp_path / "m.gguf") == [("zeros", "error", "a", 1800, 4, starts["a"] + where)]
        assert check(tmp_path / "m.gguf").findings[0].size_bytes == 4096

    def test_rows_of_zeros_as_padded_vocabularies_have_are_suspect(self, tmp_path: Path) -> None:
        specs = [matrix("a", 90), matrix("b", 10)]
        bad = data_of(specs[0])
        bad[85 * ROW :] = bytes(5 * ROW)
        starts = write(tmp_path / "m.gguf", specs, a=bad)
        assert findings(tmp_path / "m.gguf") == [("zeros", "suspect", "a", 85, 0, starts["a"] + 85 * ROW)]
        assert check(tmp_path / "m.gguf").verdict == "suspect"

    def test_biases_of_zeros_are_one_suspicion_that_counts_them(self, tmp_path: Path) -> None:
        specs = [TensorSpec(f"b{number}", (2048,), F32) for number in range(3)]
        write(tmp_path / "m.gguf", specs, b0=bytes(8192), b2=bytes(8192))
        (found,) = check(tmp_path / "m.gguf").findings
        assert (found.severity, found.tensor, found.n_tensors) == ("suspect", "b0", 2)

    def test_less_than_a_page_is_nothing(self, tmp_path: Path) -> None:
        specs = [matrix("a", 20)]
        good = data_of(specs[0])
        good[1000:5095] = bytes(4095)
        write(tmp_path / "m.gguf", specs, a=good)
        assert check(tmp_path / "m.gguf").verdict == "sound"

    def test_a_page_across_two_tensors_is_damage_of_both(self, tmp_path: Path) -> None:
        specs = [matrix("a", 20), matrix("b", 20)]
        first, second = data_of(specs[0]), data_of(specs[1])
        first[-2000:] = bytes(2000)
        second[:2096] = bytes(2096)
        starts = write(tmp_path / "m.gguf", specs, a=first, b=second)
        assert findings(tmp_path / "m.gguf") == [("zeros", "error", "a", 19, 2, starts["b"] - 2000)]
        assert check(tmp_path / "m.gguf").findings[0].n_tensors == 2

    def test_a_file_that_was_made_long_and_never_filled_is_damaged(self, tmp_path: Path) -> None:
        specs = [matrix("a", 200), matrix("b", 200)]
        with open(tmp_path / "m.gguf", "wb") as file:
            header = padded(File(llama_entries(), specs).header)
            file.write(header)
            file.truncate(len(header) + sum(spec.n_bytes for spec in specs))
        assert [each[:3] for each in findings(tmp_path / "m.gguf")] == [("zeros", "error", "a")]
        assert "never written" in check(tmp_path / "m.gguf").findings[0].reason

    def test_rows_of_zeros_in_a_sparse_copy_are_no_worse_than_in_the_original(self, tmp_path: Path) -> None:
        specs = [matrix("a", 190), matrix("b", 10)]
        padding = data_of(specs[0])
        padding[85 * ROW : 185 * ROW] = bytes(100 * ROW)
        write(tmp_path / "m.gguf", specs, a=padding)
        subprocess.run(["cp", "--sparse=always", tmp_path / "m.gguf", tmp_path / "n.gguf"], check=True)
        verdicts = [check(tmp_path / name).verdict for name in ("m.gguf", "n.gguf")]
        assert verdicts == ["suspect", "suspect"]

    def test_errors_come_before_suspicions(self, tmp_path: Path) -> None:
        specs = [TensorSpec("a", (2048,), F32), matrix("b", 20), matrix("c", 20)]
        torn, bad = data_of(specs[1]), data_of(specs[2])
        torn[1000:6000] = bytes(5000)
        bad[:2] = NAN_SCALE
        write(tmp_path / "m.gguf", specs, a=bytes(8192), b=torn, c=bad)
        assert [each[:3] for each in findings(tmp_path / "m.gguf")] == [
            ("nan", "error", "c"), ("zeros", "error", "b"), ("zeros", "suspect", "a"),
        ]  # fmt: skip


class TestFiles:
    def shards(self, folder: Path) -> tuple[Path, Path]:
        paths = folder / "m-00001-of-00002.gguf", folder / "m-00002-of-00002.gguf"
        for number, path in enumerate(paths):
            spec = matrix(f"t{number}", 9)
            bad = data_of(spec)
            if number:
                bad[144 : 144 + 2] = NAN_SCALE
            split: list[Entry] = [
                ("split.no", "u16", number), ("split.count", "u16", 2), ("split.tensors.count", "i32", 2),
            ]  # fmt: skip
            write(path, [spec], [*(llama_entries() if not number else []), *split], **{f"t{number}": bad})
        return paths

    def test_all_shards_are_read_and_the_damaged_one_is_named(self, tmp_path: Path) -> None:
        first, second = self.shards(tmp_path)
        checked = check(first)
        assert checked.checked_bytes == 2 * 9 * ROW
        assert [(each.path, each.tensor, each.block) for each in checked.findings] == [(str(second), "t1", 1)]

    def test_it_tells_how_far_it_is(self, tmp_path: Path) -> None:
        write(tmp_path / "m.gguf", [matrix("a", 4000)])
        told: list[str] = []
        check_data(model(tmp_path / "m.gguf"), told.append)
        assert len(told) == 5
        assert told[-1] == "m: 100 % of 8.8 MiB checked"
        assert told[0].startswith("m: 22 % of ")

    def problem(self, path: Path, during: Any) -> ModelFileError:
        """What is wrong when this is done to the file while it is read, at the first word of progress."""
        found = model(path)
        happened: list[str] = []

        def progress(line: str) -> None:
            if not happened:
                during(path)
            happened.append(line)

        with pytest.raises(ModelFileError) as raised:
            check_data(found, progress)
        assert raised.value.path == str(path)
        return raised.value

    def test_a_file_that_shrinks_while_it_is_read_is_told(self, tmp_path: Path) -> None:
        write(tmp_path / "m.gguf", [matrix("a", 4000)])
        error = self.problem(tmp_path / "m.gguf", lambda path: os.truncate(path, 3_000_000))
        assert (error.reason, error.offset) == ("cut short while it was read", 3_000_000)

    def test_a_file_that_vanishes_while_it_is_read_is_told(self, tmp_path: Path) -> None:
        write(tmp_path / "m.gguf", [matrix("a", 4000)])
        assert self.problem(tmp_path / "m.gguf", os.unlink).reason == "removed while it was read"

    def test_a_file_that_is_written_while_it_is_read_is_told(self, tmp_path: Path) -> None:
        write(tmp_path / "m.gguf", [matrix("a", 4000)])

        def go_on(path: Path) -> None:
            with open(path, "ab") as file:
                file.write(b"more")

        assert self.problem(tmp_path / "m.gguf", go_on).reason.startswith("changed while it was read")

    def test_a_file_that_is_another_than_was_found_is_told(self, tmp_path: Path) -> None:
        write(tmp_path / "m.gguf", [matrix("a", 9)])
        found = model(tmp_path / "m.gguf")
        write(tmp_path / "n.gguf", [matrix("a", 9)])
        os.replace(tmp_path / "n.gguf", tmp_path / "m.gguf")
        with pytest.raises(ModelFileError, match="changed while it was read"):
            check_data(found)

    def test_a_file_that_is_gone_or_may_not_be_read_is_told(self, tmp_path: Path, unprivileged: Unprivileged) -> None:
        write(tmp_path / "m.gguf", [matrix("a", 9)])
        found = model(tmp_path / "m.gguf")
        os.chmod(tmp_path / "m.gguf", 0)
        with unprivileged(), pytest.raises(ModelFileError, match="cannot be read: Permission denied"):
            check_data(found)
        os.unlink(tmp_path / "m.gguf")
        with pytest.raises(ModelFileError, match="cannot be read: No such file"):
            check_data(found)

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        peaks = [peak_kib(tmp_path / f"{rows}.gguf", rows) for rows in (100, 100_000)]  # 230 kB, 230 MB
        assert peaks[1] - peaks[0] < 16 << 10


PEAK = """
import resource, sys
from modelpipes.gguf.data.check import check_data
from modelpipes.gguf.scan import find_model_files
(found,) = find_model_files(sys.argv[1:])
check_data(found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(path: Path, rows: int) -> int:
    """The largest memory of a process that checks a file of holes."""
    spec = matrix("a", rows)
    with open(path, "wb") as file:
        file.write(padded(File(llama_entries(), [spec]).header))
        file.truncate(file.tell() + spec.n_bytes)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)
