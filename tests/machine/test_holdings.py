from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpipes.machine import holdings
from modelpipes.machine.holdings import Taken, look
from modelpipes.machine.processes import command_of, family, host_bytes, is_alive, name_of, parent_of, resident_bytes
from tests.machine.driver import build_driver

MIB = 1 << 20
PACKAGE = Path(holdings.__file__).parents[2]
HOLD = """
import sys
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
print("held", flush=True)
sys.stdin.read()
"""
PARENT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"


@pytest.fixture
def holding() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that holds so many bytes, and is ready; with `below`, in a child of it."""
    started: list[subprocess.Popen[str]] = []

    def start(n_bytes: int, *, below: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, *(["-c", PARENT] if below else []), "-c", HOLD, str(n_bytes)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.communicate()


def held_on_cards(folder: Path, pids: tuple[int, ...]) -> int | None:
    """What these processes hold by the driver whose library is the one in this folder."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    script = f"import json; from modelpipes.machine.cards import card_bytes; print(json.dumps(card_bytes({pids})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=kept | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    held: int | None = json.loads(done.stdout)
    return held


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


def test_the_memory_of_a_process_is_what_it_holds(holding: Callable[..., subprocess.Popen[str]]) -> None:
    small, large = holding(0), holding(64 * MIB)
    assert host_bytes(large.pid) - host_bytes(small.pid) == pytest.approx(64 * MIB, abs=8 * MIB)


def test_the_memory_of_its_children_is_its_own(holding: Callable[..., subprocess.Popen[str]]) -> None:
    process = holding(64 * MIB, below=True)
    assert host_bytes(process.pid) < 48 * MIB
    assert look(process.pid, has_cards=False).host > 64 * MIB
    assert look(process.pid, has_cards=False).card is None


def test_a_process_that_has_gone_holds_nothing(holding: Callable[..., subprocess.Popen[str]]) -> None:
    process = holding(MIB)
    process.communicate()
    assert look(process.pid, has_cards=False) == Taken(None, 0)
    assert (is_alive(process.pid), family(process.pid), name_of(process.pid), command_of(process.pid)) == (
        False,
        (),
        "",
        [],
    )


def test_the_card_is_asked_for_these_processes_only(driver: Path) -> None:
    assert held_on_cards(driver, (200, 400)) == 1564 * MIB
    assert held_on_cards(driver, (200, 300)) == 1500 * MIB  # of 300 the driver does not say
    assert held_on_cards(driver, (300,)) is None
    assert held_on_cards(driver, (1,)) is None


def test_a_process_is_known_by_its_parent_its_name_and_its_command_line(
    holding: Callable[..., subprocess.Popen[str]],
) -> None:
    process = holding(MIB, below=True)
    parent, child = family(process.pid)
    assert (parent, parent_of(child), parent_of(parent)) == (process.pid, parent, os.getpid())
    assert command_of(child)[1:] == ["-c", HOLD, str(MIB)]
    assert name_of(child) == Path(f"/proc/{child}/comm").read_text().strip()
    assert is_alive(child)
    assert resident_bytes(child) > MIB
