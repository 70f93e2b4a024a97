from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from modelpipes.machine import processes
from tests.peers import LIMIT_S, eventually

TELLS = "import sys; print('runs', flush=True); sys.stdin.read()"


@contextmanager
def running(*argv: str) -> Iterator[int]:
    """A process that runs until the end, its exec behind it; its pid."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        yield process.pid
        process.communicate(timeout=LIMIT_S)


def test_the_descendants_of_a_process_are_those_that_psutil_finds() -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELLS!r}])"
    with running(sys.executable, "-c", script) as pid:
        below = psutil.Process(pid).children(recursive=True)
        assert len(below) == 1
        assert processes.family(pid) == (pid, *(child.pid for child in below))


def test_a_zombie_is_there_with_its_name_and_holds_nothing() -> None:
    process = subprocess.Popen(["true"])
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "its end")
    assert processes.is_alive(process.pid)
    assert processes.parent_of(process.pid) == os.getpid()
    assert processes.name_of(process.pid) == "true"
    assert processes.command_of(process.pid) == []
    assert (processes.host_bytes(process.pid), processes.resident_bytes(process.pid)) == (0, 0)
    process.wait()
    assert not processes.is_alive(process.pid)


@pytest.mark.parametrize("pid", [-1, 2**22 + 1, 2**40])  # the kernel's greatest is 2**22
def test_what_is_no_process_is_told_as_gone(pid: int) -> None:
    assert not processes.is_alive(pid)
    assert processes.parent_of(pid) is None
    assert (processes.command_of(pid), processes.name_of(pid)) == ([], "")
    assert (processes.host_bytes(pid), processes.resident_bytes(pid)) == (0, 0)


def test_a_thread_is_no_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert os.path.exists(f"/proc/{thread.native_id}")
        assert not processes.is_alive(thread.native_id)
    finally:
        done.set()
        thread.join()


def test_a_name_that_the_kernel_cuts_off_is_told_whole(tmp_path: Path) -> None:
    program = tmp_path / "a-server-with-a-long-name"
    program.symlink_to("/bin/sh")
    with running(str(program), "-c", "echo runs; read end; exit 0") as pid:
        assert processes.name_of(pid) == program.name


def test_a_word_that_is_no_unicode_is_told_with_a_replacement() -> None:
    with running(sys.executable, "-c", TELLS, os.fsdecode(b"mod\xe8le"), "") as pid:
        assert processes.command_of(pid)[3:] == ["mod\N{REPLACEMENT CHARACTER}le", ""]


SLEEPS = "import sys, time\nprint('runs', flush=True)\nwhile time.sleep(0.001) or not sys.argv[1:]: pass\n"
POLLS = "import select, sys\nprint('runs', flush=True)\nselect.select([0], [], [])"
THREAD = "import sys, threading\nthreading.Thread(target=input).start()\nprint('runs', flush=True)"
READS_ELSEWHERE = "import os\nr, w = os.pipe()\nprint('runs', flush=True)\nos.read(r, 1)"


@pytest.mark.parametrize(
    ("script", "awaits"), [(TELLS, True), (THREAD, True), (POLLS, None), (READS_ELSEWHERE, False), (SLEEPS, False)]
)
def test_who_waits_for_input_is_told_from_who_is_busy(script: str, awaits: bool | None) -> None:
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        eventually(lambda: processes.awaits_input(process.pid) is awaits, "what it does")
        process.kill()


def test_of_a_process_that_has_gone_nobody_knows_what_it_awaits() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert processes.awaits_input(process.pid) is None
