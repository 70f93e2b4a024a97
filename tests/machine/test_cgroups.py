"""Control groups that limit memory. A kernel that has the memory controller in version 2 is needed for the real thing
(`tests/engine/test_confinement.py` then meets it); here is what we write, and where.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.machine import cgroups, kernel
from modelpipes.machine.cgroups import OURS, MemoryGroup, make_memory_group

LIMIT = 1 << 30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy in which our group is /user/shell, whose parent hands the memory controller down."""
    (tmp_path / "user" / "shell").mkdir(parents=True)
    (tmp_path / "user" / "cgroup.subtree_control").write_text("cpu memory\n")
    (tmp_path / "user" / "shell" / "cgroup.procs").write_text(f"{os.getppid()}\n{os.getpid()}\n")
    own = f"/proc/{os.getpid()}/cgroup"
    read = kernel.read_text
    monkeypatch.setattr(cgroups, "read_text", lambda path: "0::/user/shell\n" if path == own else read(path))
    return tmp_path


def test_a_group_beside_ours_is_made_where_it_may_limit_memory(root: Path) -> None:
    group = make_memory_group(LIMIT, str(root))
    assert group is not None and os.path.dirname(group.folder) == str(root / "user")
    assert os.path.basename(group.folder).startswith(f"modelpipes-{os.getpid()}-")
    written = {name: Path(group.folder, name).read_text() for name in ("memory.max", "memory.swap.max")}
    assert written == {"memory.max": str(LIMIT), "memory.swap.max": "0"}
    assert group.processes == os.path.join(group.folder, "cgroup.procs")


def test_a_folder_in_which_we_are_with_others_is_not_ours_to_arrange(root: Path) -> None:
    (root / "user" / "cgroup.subtree_control").write_text("cpu\n")
    (root / "user" / "shell" / "cgroup.controllers").write_text("memory\n")
    assert make_memory_group(LIMIT, str(root)) is None
    assert not (root / "user" / "shell" / OURS).exists()


def test_without_a_hierarchy_there_is_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_root", lambda: "")
    assert make_memory_group(LIMIT) is None


def test_what_a_killed_one_of_us_left_is_swept(root: Path) -> None:
    left, kept = root / "user" / "modelpipes-4194304-1", root / "user" / f"modelpipes-{os.getpid()}-9"
    left.mkdir()
    kept.mkdir()
    make_memory_group(LIMIT, str(root))
    assert not left.exists() and kept.exists()


def test_kills_for_the_limit_are_counted(tmp_path: Path) -> None:
    group = MemoryGroup(str(tmp_path / "group"), LIMIT)
    assert group.oom_kills() == 0
    (tmp_path / "group" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert group.oom_kills() == 2
