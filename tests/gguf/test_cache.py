from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpipes.gguf import cache as cache_module
from modelpipes.gguf.cache import Cache
from tests.gguf.conftest import Unprivileged

PACKAGE = Path(cache_module.__file__).parent.parent.parent
STAMP = (7, 1_700_000_000_000_000_000, 42)


class Value(msgspec.Struct, array_like=True):
    name: str
    sizes: list[int] = []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "headers"


def opened(path: Path, version: str = "1") -> Cache[Value]:
    return Cache(str(path), Value, version)


def filled(path: Path, **values: Value) -> Cache[Value]:
    cache = opened(path)
    for name, value in values.items():
        cache.put(f"/m/{name}", STAMP, value)
    assert cache.save()
    return cache


def test_what_was_put_is_there_the_next_time(path: Path) -> None:
    filled(path, a=Value("a", [1, 2, 1 << 40]), b=Value("b"))
    cache = opened(path)
    assert cache.get("/m/a", STAMP) == Value("a", [1, 2, 1 << 40])
    assert cache.get("/m/b", STAMP) == Value("b")
    assert cache.get("/m/c", STAMP) is None


@given(st.dictionaries(st.binary(min_size=1), st.tuples(st.lists(st.integers(0, 2**63)), st.text())))
@settings(max_examples=50)
def test_any_path_and_value_come_back(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[bytes, tuple[list[int], str]]
) -> None:
    path = tmp_path_factory.mktemp("cache") / "headers"
    cache = opened(path)
    for key, (stamp, name) in entries.items():
        cache.put(os.fsdecode(key), tuple(stamp), Value(name))
    assert cache.save()
    again = opened(path)
    for key, (stamp, name) in entries.items():
        assert again.get(os.fsdecode(key), tuple(stamp)) == Value(name)


@pytest.mark.parametrize("stamp", [(8, *STAMP[1:]), (STAMP[0], 1, STAMP[2]), (*STAMP[:2], 43), STAMP * 2, ()])
def test_a_file_that_has_changed_is_not_known(path: Path, stamp: tuple[int, ...]) -> None:
    filled(path, a=Value("a"))
    assert opened(path).get("/m/a", stamp) is None


def test_a_value_of_another_version_or_type_is_not_known(path: Path) -> None:
    filled(path, a=Value("a"))
    assert opened(path, version="2").get("/m/a", STAMP) is None
    assert Cache(str(path), int, "1").get("/m/a", STAMP) is None


def test_a_damaged_cache_counts_as_empty_and_is_made_again(path: Path) -> None:
    filled(path, a=Value("a", [5] * 20))
    good = path.read_bytes()
    for damaged in (b"", b"\x00", good[:-1], good + b"\x00", good[: len(good) // 2], b"[" * 100_000):
        path.write_bytes(damaged)
        assert opened(path).get("/m/a", STAMP) is None
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert opened(path).get("/m/a", STAMP) is None
    filled(path, b=Value("b"))
    assert opened(path).get("/m/b", STAMP) == Value("b")


def test_what_stands_in_the_caches_place_does_no_harm(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    cache = opened(path)  # does not wait for a writer
    cache.put("/m/a", STAMP, Value("a"))
    assert cache.save()
    assert opened(path).get("/m/a", STAMP) == Value("a")
    path.unlink()
    path.mkdir()
    cache = opened(path)
    cache.put("/m/a", STAMP, Value("a"))
    assert not cache.save()
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_cannot_be_made_or_written_is_done_without(tmp_path: Path, unprivileged: Unprivileged) -> None:
    (tmp_path / "file").write_text("")
    cache = opened(tmp_path / "file" / "headers")
    cache.put("/m/a", STAMP, Value("a"))
    assert not cache.save()
    assert cache.get("/m/a", STAMP) == Value("a")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with unprivileged():
        cache = opened(closed / "headers")
        cache.put("/m/a", STAMP, Value("a"))
        assert not cache.save()


def test_a_full_disk_leaves_the_old_cache_and_no_rubbish(path: Path) -> None:
    filled(path, a=Value("a"))
    program = """
import resource, signal, sys
from modelpipes.gguf.cache import Cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache = Cache(sys.argv[1], list[str], "1")
cache.put("/m/b", (1,), ["x" * 100_000])
sys.exit(cache.save())
"""
    subprocess.run([sys.executable, "-c", program, path], env=os.environ | {"PYTHONPATH": str(PACKAGE)}, check=True)
    assert os.listdir(path.parent) == [path.name]
    assert opened(path).get("/m/a", STAMP) == Value("a")


def test_nothing_is_written_when_nothing_has_changed(path: Path) -> None:
    filled(path, a=Value("a"))
    before = path.stat()
    cache = opened(path)
    assert cache.get("/m/a", STAMP)
    assert cache.save()
    assert path.stat().st_ino == before.st_ino


def test_the_cache_is_for_nobody_else(path: Path) -> None:
    filled(path, a=Value("a"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_writers_at_once_leave_a_whole_cache(path: Path) -> None:
    first, second = opened(path), opened(path)
    first.put("/m/a", STAMP, Value("a"))
    second.put("/m/b", STAMP, Value("b"))
    assert first.save()
    assert second.save()
    assert opened(path).get("/m/b", STAMP) == Value("b")
    assert os.listdir(path.parent) == [path.name]


def test_entries_of_vanished_files_are_dropped_and_those_of_other_folders_kept(path: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("stays", "unused", "new"):
        (models / name).write_text("")
    cache = opened(path)
    for name in ("stays", "unused", "vanished"):
        cache.put(str(models / name), STAMP, Value(name))
    cache.put("/unmounted/model", STAMP, Value("away"))
    assert cache.save()
    cache = opened(path)
    assert cache.get(str(models / "stays"), STAMP)
    cache.put(str(models / "new"), STAMP, Value("new"))
    assert cache.save()
    cache = opened(path)
    known = {name for name in ("stays", "unused", "vanished", "new") if cache.get(str(models / name), STAMP)}
    assert known == {"stays", "unused", "new"}
    assert cache.get("/unmounted/model", STAMP) == Value("away")


def test_of_too_many_entries_those_go_that_were_not_used_for_longest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_ENTRIES", 3)
    filled(path)
    for name in ("a", "b", "c"):
        cache = opened(path)
        cache.put(f"/{name}/model", STAMP, Value(name))
        assert cache.save()
    cache = opened(path)
    assert cache.get("/a/model", STAMP)
    cache.put("/d/model", STAMP, Value("d"))
    assert cache.save()
    cache = opened(path)
    assert [name for name in "abcd" if cache.get(f"/{name}/model", STAMP)] == ["a", "c", "d"]


def test_a_cache_larger_than_any_of_ours_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, a=Value("a"))
    monkeypatch.setattr(cache_module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    assert opened(path).get("/m/a", STAMP) is None
