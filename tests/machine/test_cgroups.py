"""Control groups with a limit: where they are made, in a tree of files that plays the kernel's, and taken away."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from modelpipes.machine import cgroups
from modelpipes.machine.cgroups import MemoryGroup, make_memory_group

LIMIT = 10**9


def group(folder: Path, *, controls: str = "", has: str = "memory pids", processes: tuple[int, ...] = ()) -> Path:
    """A control group as its folder shows it."""
    folder.mkdir(parents=True)
    (folder / "cgroup.subtree_control").write_text(controls)
    (folder / "cgroup.controllers").write_text(has)
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
    return folder


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of our own group."""
    read = cgroups.read_text
    text = "0::/user/app/shell\n"
    monkeypatch.setattr(cgroups, "read_text", lambda path: text if path.endswith("/cgroup") else read(path))
    return "user/app/shell"


def test_beside_our_own_group_where_the_one_above_limits_memory_already(tmp_path: Path, own: str) -> None:
    group(tmp_path / "user/app", controls="memory pids")
    group(tmp_path / own, processes=(1, os.getpid()))
    made = make_memory_group(LIMIT, str(tmp_path))
    assert made is not None and Path(made.folder).parent == tmp_path / "user/app"
    assert Path(made.folder, "memory.max").read_text() == str(LIMIT)
    assert Path(made.folder, "memory.oom.group").read_text() == "1"
    assert made.processes == f"{made.folder}/cgroup.procs"


def test_below_our_own_group_where_nobody_else_is_in_it_once_we_have_moved_to_a_leaf(tmp_path: Path, own: str) -> None:
    group(tmp_path / "user/app")
    folder = group(tmp_path / own, processes=(os.getpid(),))
    made = make_memory_group(LIMIT, str(tmp_path))
    assert made is not None and Path(made.folder).parent == folder
    assert (folder / cgroups.OURS / "cgroup.procs").read_text() == str(os.getpid())
    assert (folder / "cgroup.subtree_control").read_text() == "+memory"


def test_none_where_a_shell_is_in_our_group_and_the_one_above_is_not_arranged_for_it(tmp_path: Path, own: str) -> None:
    group(tmp_path / "user/app")
    folder = group(tmp_path / own, processes=(1, os.getpid()))
    assert make_memory_group(LIMIT, str(tmp_path)) is None
    assert not (folder / cgroups.OURS).exists()


def test_none_where_the_system_has_no_memory_controller_in_that_hierarchy(tmp_path: Path, own: str) -> None:
    group(tmp_path / "user/app", has="")
    group(tmp_path / own, has="", processes=(os.getpid(),))
    assert make_memory_group(LIMIT, str(tmp_path)) is None


def test_what_those_of_us_left_that_were_killed_goes(tmp_path: Path, own: str) -> None:
    above = group(tmp_path / "user/app", controls="memory")
    group(tmp_path / own, processes=(1, os.getpid()))
    left, lives = above / f"{cgroups.PREFIX}99999999-1", above / f"{cgroups.PREFIX}{os.getpid()}-7"
    left.mkdir()
    lives.mkdir()
    make_memory_group(LIMIT, str(tmp_path))
    assert (left.exists(), lives.exists()) == (False, True)


def test_how_many_the_kernel_killed_is_read_of_its_own_file(tmp_path: Path) -> None:
    made = MemoryGroup(str(tmp_path / "g"), LIMIT)
    assert made.oom_kills() == 0
    (tmp_path / "g/memory.events").write_text("low 0\nmax 31\noom 1\noom_kill 1\noom_group_kill 1\n")
    assert made.oom_kills() == 1


def test_a_real_group_is_joined_and_taken_away_with_what_is_in_it() -> None:
    """In the hierarchy of version 2 that is mounted here; without a memory controller there is no limit in it."""
    root = cgroups._root()
    folder = f"{root}/{cgroups.PREFIX}{os.getpid()}-test"
    if not root or not os.access(root, os.W_OK):
        pytest.skip("no hierarchy of version 2 that is ours to write")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("no group can be made here")
    made = MemoryGroup.__new__(MemoryGroup)
    made.folder = folder
    process = subprocess.Popen(["/bin/sh", "-c", 'echo $$ > "$0" && exec sleep 60', made.processes])
    try:
        while str(process.pid) not in Path(made.processes).read_text().split():
            assert process.poll() is None
        assert made.remove()
        assert not os.path.exists(folder)
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait()
        if os.path.exists(folder):
            os.rmdir(folder)


def test_a_group_that_cannot_be_made_whole_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str, name: str, text: str) -> None:
        raise PermissionError(13, "refused")

    monkeypatch.setattr(cgroups, "_write", refuse)
    with pytest.raises(PermissionError):
        MemoryGroup(str(tmp_path / "g"), LIMIT)
    assert not (tmp_path / "g").exists()
