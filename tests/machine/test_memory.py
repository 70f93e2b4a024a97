from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from modelpipes.machine.memory import available_bytes, find_limits, read_memory

V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"
V2 = "memory.max", "memory.current"


def meminfo(key: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def write_group(folder: Path, names: tuple[str, str], limit: str, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")


def test_the_machine_has_what_psutil_and_the_kernel_say_unless_a_group_is_limited() -> None:
    memory = read_memory()
    if memory.total_bytes < meminfo("MemTotal"):
        pytest.skip("a control group limits us")
    assert memory.total_bytes == psutil.virtual_memory().total == meminfo("MemTotal")
    # Others take and give in between.
    assert memory.available_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert memory.available_bytes == pytest.approx(meminfo("MemAvailable"), rel=0.2)


def test_who_asks_for_what_is_available_alone_is_told_the_same() -> None:
    assert available_bytes() == pytest.approx(read_memory().available_bytes, rel=0.2)


def test_the_limits_of_version_2_are_those_of_our_group_and_of_all_around_it(tmp_path: Path) -> None:
    write_group(tmp_path / "user" / "shell", V2, "max", 1)
    write_group(tmp_path / "user", V2, "700", 300)
    write_group(tmp_path, V2, "900", 400)
    assert list(find_limits("0::/user/shell\n", str(tmp_path))) == [(700, 300), (900, 400)]


def test_the_limits_of_version_1_are_those_of_the_memory_controllers_groups(tmp_path: Path) -> None:
    unlimited = "9223372036854771712"
    write_group(tmp_path / "memory" / "job", V1, "500", 100)
    write_group(tmp_path / "memory", V1, unlimited, 400)
    groups = "5:cpu,cpuacct:/\n4:hugetlb,memory:/job\n1:name=systemd:/job\n0::/job\n"
    assert list(find_limits(groups, str(tmp_path))) == [(500, 100), (int(unlimited), 400)]


def test_in_a_container_that_is_named_as_on_its_host_the_mounted_root_is_its_own(tmp_path: Path) -> None:
    write_group(tmp_path, V2, "600", 200)
    assert list(find_limits("0::/docker/1234\n", str(tmp_path))) == [(600, 200)]


def test_files_that_the_kernel_keeps_in_memory_are_not_used_up(tmp_path: Path) -> None:
    write_group(tmp_path, V2, "900", 800)
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 300\nactive_file 350\nshmem 50\n")
    assert list(find_limits("0::/\n", str(tmp_path))) == [(900, 150)]
    write_group(tmp_path / "memory", V1, "900", 800)
    (tmp_path / "memory" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 600\ntotal_active_file 9\n")
    assert list(find_limits("4:memory:/\n", str(tmp_path))) == [(900, 191)]


def test_where_nothing_is_said_of_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert list(find_limits("", str(tmp_path))) == []
    assert list(find_limits("0::/\n4:memory:/\n", str(tmp_path))) == []
