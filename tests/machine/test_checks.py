from __future__ import annotations

import pytest

from modelpipes.machine.cards import Card, Cards
from modelpipes.machine.checks import Check, judge_cards, judge_disk, judge_pipe_pages, judge_pipe_size
from modelpipes.machine.disk import Disk
from modelpipes.pipe.fifo import WIDE_BYTES

GIB = 1 << 30
CARD = Card(index=0, name="NVIDIA GeForce RTX 4080", total_bytes=16 * GIB, free_bytes=15 * GIB, driver_version="580.95")


def test_a_narrow_limit_to_pipes_is_told_with_the_sysctl_that_lifts_it() -> None:
    assert judge_pipe_size(1 << 20, WIDE_BYTES) == Check("pipe-size", "ok", "a pipe may be made 1.0 MiB wide")
    narrow = judge_pipe_size(65536, WIDE_BYTES)
    assert narrow.state == "warning"
    assert "sysctl fs.pipe-max-size=1048576" in narrow.advice
    assert judge_pipe_size(None, WIDE_BYTES).state == "warning"


def test_the_pages_of_a_users_pipes_are_told_as_seats() -> None:
    check = judge_pipe_pages(16384, 0, WIDE_BYTES // 4096)
    assert check.state == "ok"
    assert "1024 pipes" in check.found and "512 seats" in check.found and "256 pipes" in check.found
    few = judge_pipe_pages(256, 0, WIDE_BYTES // 4096)
    assert (few.state, "pipe-user-pages-soft=16384" in few.advice, "two pages" in few.advice) == ("warning", True, True)
    hard = judge_pipe_pages(16384, 256, WIDE_BYTES // 4096)
    assert (hard.state, "pipe-user-pages-hard" in hard.advice) == ("warning", True)
    assert "cannot be opened" in hard.advice
    assert judge_pipe_pages(0, 0, WIDE_BYTES // 4096).found == "no limit to a user's open pipes"


def test_a_full_disk_and_one_that_cannot_be_written_are_warnings() -> None:
    full = judge_disk("data", Disk("/d", 10 << 20, True), "/d", 500_000_000, "a build")
    assert (full.state, full.found) == ("warning", "/d: 10.0 MiB free")
    assert "a build takes some 476.8 MiB" in full.advice
    closed = judge_disk("cache", Disk("/d", GIB, False), "/d", 1, "…")
    assert (closed.state, "XDG_CACHE_HOME" in closed.advice) == ("warning", True)
    assert judge_disk("data", Disk("/d", GIB, True), "/d", 1, "…").state == "ok"
    assert judge_disk("data", None, "/d", 1, "…").state == "warning"


def test_each_card_has_a_line_with_its_memory_and_driver() -> None:
    seen, lost = judge_cards(Cards((CARD,), ("card 1 does not tell its memory (lost): left out",)), frozenset())
    assert seen == Check("gpu", "ok", "NVIDIA GeForce RTX 4080, 15.0 GiB of 16.0 GiB free, driver 580.95")
    assert lost.state == "warning"


@pytest.mark.parametrize(
    ("vendors", "problem", "state", "says"),
    [
        ({"NVIDIA"}, "no NVIDIA driver: libnvidia-ml.so.1 is not on this machine", "warning", "install its driver"),
        ({"AMD", "Intel"}, "no NVIDIA driver: libnvidia-ml.so.1 is not on this machine", "warning", "--vram"),
        ({"Intel"}, "no NVIDIA driver: libnvidia-ml.so.1 is not on this machine", "missing", "CPU"),
        (set(), "no NVIDIA driver: libnvidia-ml.so.1 is not on this machine", "missing", "CPU"),
        (set(), "the NVIDIA driver cannot be asked (Driver Not Loaded)", "warning", "nvidia-smi"),
        ({"NVIDIA"}, "CUDA_VISIBLE_DEVICES='-1' hides every card", "warning", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_no_card_is_seen_decides_what_to_do(vendors: set[str], problem: str, state: str, says: str) -> None:
    (check,) = judge_cards(Cards(problems=(problem,)), vendors)
    assert check.state == state
    assert says in check.advice
