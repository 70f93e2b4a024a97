"""cleanup-pipes, as it is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelpipes.pipe.room import HUB, Room
from tests.peers import LIMIT_S, Peer, modelpipes, peer


@pytest.fixture
def room(tmp_path: Path) -> Room:
    assert modelpipes("setup", "alice", "bob", "-d", str(tmp_path / "room")).returncode == 0
    return Room(str(tmp_path / "room"))


def cleanup(room: Room, *args: str) -> tuple[int, str]:
    done = modelpipes("cleanup", "-d", room.path, *args)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_it_removes_the_room_and_once_more_is_content(room: Room) -> None:
    assert cleanup(room) == (0, "")
    assert not os.path.exists(room.path)
    assert cleanup(room) == (0, "")


def test_the_room_comes_from_the_environment_too(room: Room) -> None:
    assert modelpipes("cleanup", PIPE_DIR=room.path).returncode == 0
    assert not os.path.exists(room.path)


def test_it_keeps_a_directory_that_was_there_before_and_everything_that_is_not_ours(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir(0o755)
    (project / "poetry.lock").write_text("[[package]]")
    (project / "a_to_b.txt").write_text("notes")
    (project / "main.py").touch()
    assert modelpipes("setup", "poetry", "-d", str(project)).returncode == 0
    os.unlink(project / "a_to_b.txt")  # its name is that of a pipe to "b.txt"; another test is about such
    code, _ = cleanup(Room(str(project)), "-f")
    assert code == 0
    assert sorted(path.name for path in project.iterdir()) == ["main.py", "poetry.lock"]
    assert (project / "poetry.lock").read_text() == "[[package]]"


def test_a_seat_in_use_is_kept_and_named_with_its_process(room: Room) -> None:
    with peer("sitter", room, "bob") as bob:
        code, said = cleanup(room)
        assert code == 1
        assert said == (
            f"cleanup-pipes: bob (pid {bob.pid}, a peer of the tests) is in use and kept; end it, or use -f\n"
        )
        assert room.pipes() == [("bob", "hub"), ("hub", "bob")]
        assert cleanup(room, "-f") == (0, "")
        assert not os.path.exists(room.path)


def test_a_seat_that_is_being_asked_is_kept_and_named_with_the_asker(room: Room) -> None:
    with peer("asker", room, HUB, "bob") as asker:
        code, said = cleanup(room)
        assert code == 1
        assert said == f"cleanup-pipes: bob, asked by hub (pid {asker.pid}), is in use and kept; end it, or use -f\n"
    assert cleanup(room) == (0, "")
    assert not os.path.exists(room.path)


def test_a_prefix_takes_its_seats_and_no_others(room: Room) -> None:
    modelpipes("setup", "-n", "2", "-d", room.path)
    with peer("sitter", room, "bob"):
        assert cleanup(room, "-p", "model") == (0, "")
        assert room.seats() == ["alice", "bob", "hub"]
        assert cleanup(room, "-p", "b") == (0, "")
        assert room.seats() == ["alice", "bob", "hub"]


def test_each_pipe_that_goes_is_told_and_the_room_with_the_last(room: Room) -> None:
    modelpipes("setup", "--num", "1", "-d", room.path)
    said = [f"cleanup-pipes: removed {room.path}/{name}" for name in ("hub_to_model1", "model1_to_hub")]
    assert cleanup(room, "--prefix", "model", "-v") == (0, "".join(f"{line}\n" for line in said))
    code, told = cleanup(room, "--verbose")
    assert code == 0
    assert told.splitlines()[-1] == f"cleanup-pipes: removed {room.path}"
    assert len(told.splitlines()) == 5


@pytest.mark.parametrize("prefix", ["Model", "my_model", "-", "a" * 32, "*"])
def test_a_prefix_that_no_seat_begins_with_is_wrong_usage(room: Room, prefix: str) -> None:
    code, said = cleanup(room, f"--prefix={prefix}")
    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith(f"modelpipes cleanup: '{prefix}1' cannot be a seat: a seat's name is")
    assert len(os.listdir(room.path)) == 4


def test_what_was_killed_is_in_nobodys_way(room: Room) -> None:
    with peer("sitter", room, "bob") as bob, peer("asker", room, HUB, "alice") as asker:
        bob.kill()
        asker.kill()
    assert cleanup(room) == (0, "")
    assert not os.path.exists(room.path)


def test_a_file_where_a_pipe_should_be_is_kept_and_named(room: Room) -> None:
    path = Path(room.pipe(HUB, "bob"))
    path.unlink()
    path.write_text("somebody's words")
    assert cleanup(room) == (1, f"cleanup-pipes: {path}: not made by setup-pipes, kept\n")
    assert path.read_text() == "somebody's words"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_room_of_somebody_else_is_left_alone(room: Room) -> None:
    os.chown(room.path, 12345, 12345)
    assert cleanup(room, "-f") == (1, f"modelpipes cleanup: {room.path}: belongs to user 12345, not to us\n")
    assert len(os.listdir(room.path)) == 4


def test_wrong_usage_is_exit_2(room: Room) -> None:
    code, said = cleanup(room, "bob")
    assert code == 2
    assert len(said.splitlines()) == 1
    assert len(os.listdir(room.path)) == 4


def together(*commands: list[str]) -> list[tuple[int, str]]:
    """Run these at once; the exit code of each, and what it said on stderr."""
    started = [Peer(sys.executable, "-P", "-m", "modelpipes", *command, stderr=subprocess.PIPE) for command in commands]
    said = [process.process.communicate(timeout=LIMIT_S)[1].decode() for process in started]
    return [(process.process.returncode, words) for process, words in zip(started, said, strict=True)]


def test_two_at_once_are_both_content(tmp_path: Path) -> None:
    path = str(tmp_path / "room")
    for _ in range(5):
        modelpipes("setup", "-n", "50", "-d", path)
        assert together(["cleanup", "-d", path], ["cleanup", "-d", path]) == [(0, ""), (0, "")]
        modelpipes("cleanup", "-d", path)  # what one may have left behind for the other
        assert not os.path.exists(path)


def test_racing_a_setup_it_ends_and_the_next_setup_is_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "room")
    for _ in range(5):
        modelpipes("setup", "-n", "50", "-d", path)
        setup, clean = together(["setup", "-n", "60", "-d", path], ["cleanup", "-d", path])
        assert setup == (0, "") or re.fullmatch(rf"modelpipes setup: {path}.*run setup-pipes.*\n", setup[1]), setup
        assert clean == (0, "")
        again = modelpipes("setup", "-n", "60", "-d", path)
        assert again.returncode == 0
        assert len(Room(path).pipes()) == 120
        assert modelpipes("cleanup", "-d", path).returncode == 0
        assert not os.path.exists(path)
