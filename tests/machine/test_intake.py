from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelpipes.machine.intake import Intake, read_intake

MIB = 1 << 20
SIZE = 32 * MIB
SLACK = 4 * MIB  # of what Python reads for itself, and of pages that the kernel brings along
MAPPED = "import mmap; m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[i] for i in range(0, half, 4096))"
READ = "f.readinto(memoryview(bytearray(half)))"
PAST_THE_CACHE = (
    "import mmap, os; d = os.open(f.name, os.O_RDONLY | getattr(os, 'O_DIRECT', 0)); m = mmap.mmap(-1, half);"
    "os.readv(d, [m])"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "big.gguf"
    with path.open("wb") as made:
        made.truncate(SIZE)
    return path


@contextmanager
def process(file: Path, does: str) -> Iterator[int]:
    """One that has taken in half of a file in some way, and waits."""
    code = f"import sys; f = open(sys.argv[1], 'rb', buffering=0); half = {SIZE // 2}; {does}; print(); input()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin and child.stdout
        try:
            assert child.stdout.readline() == b"\n"
            yield child.pid
        finally:
            child.stdin.close()


@pytest.mark.parametrize("does", [MAPPED, READ, PAST_THE_CACHE])
def test_what_a_process_has_of_a_file_is_seen_however_it_reads(file: Path, does: str) -> None:
    with process(file, does) as pid:
        found = read_intake(pid, [str(file)])
    assert found
    assert found.total_bytes == SIZE
    assert SIZE // 2 <= found.done_bytes <= SIZE // 2 + SLACK


def test_a_file_is_found_by_a_link_to_it(file: Path) -> None:
    link = file.with_name("link.gguf")
    link.symlink_to(file)
    with process(file, MAPPED) as pid:
        found = read_intake(pid, [str(link)])
    assert found and found.done_bytes >= SIZE // 2


def test_a_mapping_of_another_file_does_not_count(file: Path) -> None:
    other = file.with_name("other.gguf")
    other.write_bytes(bytes(SIZE))
    with process(file, MAPPED) as pid:
        found = read_intake(pid, [str(other)])
    assert found and found.done_bytes <= SLACK


def test_several_files_count_together_and_never_more_than_they_have(file: Path) -> None:
    small = file.with_name("small.gguf")
    small.write_bytes(bytes(MIB))
    with process(file, READ) as pid:
        assert (found := read_intake(pid, [str(file), str(small)])) and found.total_bytes == SIZE + MIB
        assert read_intake(pid, [str(small)]) == Intake(MIB, MIB)


def test_of_a_process_that_has_gone_and_of_no_file_nothing_is_told(file: Path) -> None:
    with process(file, READ) as pid:
        assert read_intake(pid, [str(file.with_name("none.gguf"))]) is None
        assert read_intake(pid, []) is None
    assert read_intake(pid, [str(file)]) is None
