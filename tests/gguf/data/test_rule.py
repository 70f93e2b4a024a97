"""Which runs of zeros are damage, by where they begin and end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.gguf.data.rule import Laid, is_cut, is_unwritten
from modelpipes.gguf.data.zeros import Run
from modelpipes.gguf.tensors import Tensor

ROW = 2304  # 4096 weights of q4_K
START = 8192 + 32
MATRIX = Laid(Tensor("m", (4096, 100), 12, 0, 100 * ROW), START, START + 100 * ROW, ROW)
BIAS = Laid(Tensor("b", (4096,), 0, 0, 16384), START, START + 16384, 16384)


def rows(first: float, last: float) -> Run:
    """From one row up to another."""
    return Run(START + round(first * ROW), START + round(last * ROW))


@pytest.mark.parametrize(
    ("run", "is_error"),
    [
        (rows(90, 100), False),
        (rows(0, 100), False),
        (rows(4, 6), False),
        (Run(START - 32, START + 2 * ROW), False),  # with the padding before
        (Run(START + 4 * ROW - 63, START + 6 * ROW + 63), False),  # zero bytes of neighbours
        (Run(START + 4 * ROW - 64, START + 6 * ROW), True),
        (Run(START + 4 * ROW, START + 6 * ROW + 64), True),
        (rows(4.5, 100), True),
        (rows(0, 2.5), True),
        (rows(4.2, 4.8), True),  # less than a row
        (rows(4, 4.9), True),
        (Run(START + 100 * ROW - 40, START + 100 * ROW + 9000), False),  # of another tensor
    ],
)
def test_zeros_in_a_matrix_are_whole_rows_or_an_error(run: Run, is_error: bool) -> None:
    assert is_cut(run, MATRIX) is is_error


@pytest.mark.parametrize(
    ("start", "end", "is_error"),
    [
        (START, START + 16384, False),  # a bias of zeros
        (START + 5000, START + 5000 + 4096, False),  # a part that is zero
        (START + 5000, START + 16384, False),
        (12288, 16384, True),  # a page
        (12288, START + 16384, True),
        (12288 - 3, 16384 + 3, True),  # a page beside round numbers
        (START, 16384, True),
        (START, 16384 + 8, False),
    ],
)
def test_zeros_in_a_single_row_are_an_error_only_at_the_end_of_a_page(start: int, end: int, is_error: bool) -> None:
    assert is_cut(Run(start, end), BIAS) is is_error


def test_a_run_is_in_a_tensor_with_more_than_a_few_bytes_or_with_all() -> None:
    tiny = Laid(Tensor("t", (4,), 0, 0, 16), START, START + 16, 16)
    assert tiny.has(Run(START - 5000, START + 16))
    assert not tiny.has(Run(START - 5000, START + 12))
    assert BIAS.has(Run(START - 5000, START + 64))
    assert not BIAS.has(Run(START - 5000, START + 63))
    assert not BIAS.has(Run(START - 5000, START - 100))


def sparse(path: Path, *written: tuple[int, int]) -> int:
    """A file of 1 MiB with holes where nothing was written; an open descriptor of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 1 << 20)
    for start, end in written:
        os.pwrite(descriptor, b"\x01" * (end - start), start)
    if os.lseek(descriptor, 0, os.SEEK_HOLE) == 1 << 20:
        pytest.skip("this file system has no holes")
    return descriptor


def test_zeros_that_end_with_a_hole_were_never_written(tmp_path: Path) -> None:
    descriptor = sparse(tmp_path / "m", (0, 65536), (262144, 327680))
    try:
        assert is_unwritten(descriptor, Run(65536, 262144))
        assert is_unwritten(descriptor, Run(65536 - 3, 262144 + 3))
        assert is_unwritten(descriptor, Run(327680, 1 << 20))  # to the end of the file
        assert is_unwritten(descriptor, Run(327680 + 1000, (1 << 20) - 1000))  # what is looked at ends before
        assert not is_unwritten(descriptor, Run(0, 65536))
    finally:
        os.close(descriptor)


def test_zeros_that_go_on_before_and_behind_a_hole_were_copied_so(tmp_path: Path) -> None:
    descriptor = sparse(tmp_path / "m", (0, 65536), (262144, 1 << 20))
    try:
        assert not is_unwritten(descriptor, Run(65536 - 500, 262144 + 500))
        assert is_unwritten(descriptor, Run(65536 - 500, 262144))
        assert is_unwritten(descriptor, Run(65536, 262144 + 500))
    finally:
        os.close(descriptor)
