"""What commands write: for whom it is, where it lies, how it is emptied."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelpipes.commands.checkup import written
from modelpipes.commands.checkup.written import Place, Size, judge_written, measure, tell
from modelpipes.engine.locate import EngineChoice
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline
from tests.engine.conftest import ENGINES
from tests.serving.daemons import LIMIT_S, Served, write_models
from tests.shell import BIN, TINY_CHAT

LONG = Deadline.after(3600)
KEYS = ["name", "path", "is_there", "size_bytes", "is_whole", "bound", "emptied_by"]


# -- pure, but for a folder


def test_a_folder_has_what_its_files_have_without_those_of_another_place_and_behind_links(tmp_path: Path) -> None:
    inner, other = tmp_path / "a" / "b", tmp_path / "a" / "other"
    for folder, size in ((tmp_path / "a", 5), (inner, 70), (other, 900)):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_bytes(bytes(size))
    (inner / "loop").symlink_to(tmp_path)
    os.mkfifo(inner / "fifo")
    link = os.lstat(inner / "loop").st_size
    assert measure(str(tmp_path), LONG, [str(tmp_path), str(other)]) == Size(75 + link)
    assert measure(str(other), LONG) == Size(900)
    assert measure(str(tmp_path / "none"), LONG) == Size(is_there=False)


def test_what_was_counted_when_time_is_up_is_told_as_at_least(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    assert measure(str(tmp_path), Deadline.after(0)) == Size(0, is_whole=False)
    places = [Place("x", f"/{n}", "at most 1 MiB", f"rm -r /{n}") for n in range(4)]
    said = [Size(2048), Size(2048, is_whole=False), None, Size(is_there=False)]
    checks = judge_written(tell(places, said))
    assert [check.found for check in checks] == [
        "x in /0: 2.0 KiB; at most 1 MiB",
        "x in /1: at least 2.0 KiB; at most 1 MiB",
        "x in /2: not counted in time; at most 1 MiB",
        "x in /3: not there yet; at most 1 MiB",
    ]
    assert [check.advice for check in checks] == [*(f"to empty it: rm -r /{n}" for n in range(3)), ""]
    assert {check.state for check in checks} == {"ok"}


def test_without_a_runtime_folder_no_place_is_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    places = [place.path for place in written.find_places()]
    assert len(places) == len(set(places)) == 7


# -- the commands, told to leave everything open


class Home(Served):
    """A home in which nothing is kept from others unless we keep it."""

    def __init__(self, base: Path, kind: EngineChoice) -> None:
        super().__init__(base)
        self.env |= {"PATH": f"{BIN}:{self.env['PATH']}", "SEARCH_PATH": str(self.cwd)}
        self.room = Room(str(self.runtime / "modelpipes" / "default"))
        self.quick = ("--engine", kind, "--engine-arg=--threads", "--engine-arg=1", "--ctx-size=1024")

    def ends(self, verb: str, *arguments: str) -> str:
        ended = self.run(self.command(verb, *arguments), limit_s=LIMIT_S)
        assert ended.code == 0, ended.stderr
        return ended.stdout

    def folders(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ends("check", "--json"))["folders"]
        return found

    def written(self) -> set[Path]:
        """All that is not a folder, anywhere in it."""
        base = self.cwd.parent
        roots = [self.cwd, self.runtime, self.temporary, base / "home"]
        return {path for root in roots for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}


@pytest.fixture(params=ENGINES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    umask = os.umask(0)  # of all that is started here
    try:
        with Home(tmp_path / "place", request.param) as home:
            yield home
    finally:
        os.umask(umask)


def test_what_holds_peoples_words_is_for_its_user_alone_and_lies_where_check_system_says(home: Home) -> None:
    kind = home.quick[1]
    home.write(write_models(home.cwd, ["alpha", "beta"]), dict.fromkeys(["alpha", "beta"], f'engine = "{kind}"'))
    theirs = home.written()

    home.ends("find", str(home.cwd))
    home.ends(
        "chat", "--model", f"alice={TINY_CHAT}", *home.quick, "--filter", "bob=cat", "--rounds=1", "--opening=Hi.",
        "--transcript=talk.jsonl",
    )  # fmt: skip
    home.start("--vram", "1GiB")
    home.ask("alpha")
    home.post("/models/alpha/unload")
    home.ends("setup", "bob")
    member, _ = home.spawn("attach", "bob", "--model", str(TINY_CHAT), *home.quick, "--engine-log", "bob.log")
    home.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    home.ends("ask", "bob", "--transcript", "memory.jsonl", "My name is Carol.")

    ours = home.written() - theirs
    open_to_others = {str(path): oct(path.lstat().st_mode) for path in ours if path.lstat().st_mode & 0o077}
    assert open_to_others == {}
    names = {path.name for path in ours}
    assert {"talk.jsonl", "memory.jsonl", "bob.log", "alpha.log", "hub_to_bob"} <= names
    assert any(name.endswith(".slot") for name in names)
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in our_folders(home, ours))

    folders = home.folders()
    assert all(list(folder) == KEYS for folder in folders)
    assert {folder["name"] for folder in folders if folder["size_bytes"]} == {
        "rooms", "logs", "daemons", "conversations", "cache"
    }  # fmt: skip
    chosen = {path for path in ours if path.is_relative_to(home.cwd)}  # by the user
    kept = ours - chosen
    assert all(any(path.is_relative_to(folder["path"]) for folder in folders) for path in kept), kept
    assert sum(folder["size_bytes"] for folder in folders) == sum(path.lstat().st_size for path in kept)

    member.terminate()
    member.wait(LIMIT_S)
    home.end()
    for folder in home.folders():
        if folder["is_there"] and folder["emptied_by"]:
            subprocess.run(["sh", "-c", folder["emptied_by"]], cwd=home.cwd, env=home.env, check=True, timeout=LIMIT_S)
    assert home.written() - theirs == chosen


def our_folders(home: Home, ours: set[Path]) -> set[Path]:
    """The folders of ours that these files lie in."""
    bases = {home.cwd, home.runtime, home.temporary, home.cwd.parent / "home"}
    found = {folder for path in ours for folder in path.parents if folder not in bases}
    return {folder for folder in found if any(folder.is_relative_to(base) for base in bases)}
