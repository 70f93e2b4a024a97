"""Builds in the user's data directory: kept whole, found in order, removed alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.engine import builds, locate
from modelpipes.engine.builds import Build
from modelpipes.errors import EngineError, UsageError
from modelpipes.machine.kernel import read_cpu_features


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    return tmp_path / "modelpipes" / "engines"


def make(version: str, variant: str = "cpu", *, says: str = "", cpu_features: tuple[str, ...] = ()) -> Build:
    build = Build(version, variant, ("-DX=1",), cpu_features, "2026-11-20T12:00:00+00:00", 99.5)
    path = builds.new_folder(build.name)
    server = Path(path, "bin", "llama-server")
    server.write_text(f"#!/bin/sh\necho {says or build.name}\n")
    server.chmod(0o755)
    builds.publish(path, build)
    return build


def test_without_any_there_are_none() -> None:
    assert builds.builds() == []


def test_what_is_published_is_there_whole() -> None:
    build = make("b11434")
    assert builds.builds() == [build]
    assert os.access(build.server, os.X_OK)


def test_an_unfinished_one_is_not_seen_and_is_swept_away(data: Path) -> None:
    path = builds.new_folder("b1-cpu")
    assert builds.builds() == []
    make("b2")
    assert not os.path.exists(path)
    assert len(list(data.iterdir())) == 2


def test_one_that_is_built_again_takes_the_place_of_the_first(data: Path) -> None:
    make("b7", says="first")
    again = make("b7", says="again")
    assert "again" in Path(again.server).read_text()
    assert sorted(entry.name[:4] for entry in data.iterdir()) == [".b7-", "b7-c"]


def test_the_newest_comes_first_and_at_one_age_the_card_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builds.DEVICES, "cuda", "/dev/null")
    for version, variant in (("b9999", "cuda"), ("b10000", "cpu"), ("b10000", "cuda"), ("unknown", "cpu")):
        make(version, variant)
    names = ["b10000-cuda", "b10000-cpu", "b9999-cuda", "unknown-cpu"]
    assert [build.name for build in builds.builds()] == names
    assert [name for name, _ in locate.engines("llama-server")] == names


def test_a_build_for_what_this_machine_has_not_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builds.DEVICES, "cuda", "/dev/no-such-card")
    make("b3", "cuda")
    make("b2", cpu_features=("a-feature-of-tomorrow",))
    with pytest.raises(EngineError, match="build-engine"):
        locate.find_engine("llama-server")
    here = make("b1", cpu_features=read_cpu_features())
    assert locate.find_engine().argv == (here.server,)


def test_the_users_own_choice_comes_before_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = make("b5")
    own = tmp_path / "llama-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert [name for name, _ in locate.engines("llama-server")] == ["PATH", build.name]
    monkeypatch.setenv("LLAMA_SERVER", build.server)
    assert [name for name, _ in locate.engines("llama-server")] == ["$LLAMA_SERVER", "PATH", build.name]


def test_a_build_says_its_own_version() -> None:
    make("b11434")
    assert locate.find_engine().version == "b11434"


def test_removing_one_leaves_the_others(data: Path) -> None:
    kept = make("b1")
    make("b2")
    builds.remove("b2-cpu")
    assert builds.builds() == [kept]
    assert len(list(data.iterdir())) == 2


@pytest.mark.parametrize("name", ["b9-cpu", "..", "", ".b1-cpu", "b1-cpu/bin", "/"])
def test_what_is_no_build_is_not_removed(name: str) -> None:
    make("b1")
    with pytest.raises(UsageError, match="there are: b1-cpu"):
        builds.remove(name)
    assert len(builds.builds()) == 1


@pytest.mark.parametrize("record", ["", "{", "[]", '{"version": "b1"}'])
def test_a_damaged_one_is_passed_over(record: str) -> None:
    build = make("b1")
    Path(build.server).parent.parent.joinpath("build.json").write_text(record)
    assert builds.builds() == []
