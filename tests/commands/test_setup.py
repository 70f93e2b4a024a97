"""setup-pipes, as it is run."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpipes.pipe.room import Room
from tests.peers import LIMIT_S, Peer, modelpipes, peer


@pytest.fixture
def room(tmp_path: Path) -> Path:
    return tmp_path / "a room"


@pytest.fixture
def setup(room: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *args, **variables: modelpipes("setup", *args, "-d", str(room), **variables)


Setup = Callable[..., "subprocess.CompletedProcess[str]"]


def names(room: Path) -> list[str]:
    return sorted(path.name for path in room.iterdir())


def test_it_makes_two_pipes_a_seat_and_prints_one_path_a_line(room: Path, setup: Setup) -> None:
    done = setup("alice", "bob")
    assert (done.returncode, done.stderr) == (0, "")
    expected = ["hub_to_alice", "alice_to_hub", "hub_to_bob", "bob_to_hub"]
    assert done.stdout.splitlines() == [str(room / name) for name in expected]
    assert names(room) == sorted(expected)
    for path in done.stdout.splitlines():
        found = os.lstat(path)
        assert stat.S_ISFIFO(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(room.stat().st_mode) & 0o777 == 0o700


def test_without_names_it_makes_two_models_or_as_many_as_are_asked_for(room: Path, setup: Setup) -> None:
    setup()
    assert names(room) == ["hub_to_model1", "hub_to_model2", "model1_to_hub", "model2_to_hub"]
    setup("-n", "3", "-p", "m")
    assert {"hub_to_m1", "hub_to_m2", "hub_to_m3", "m3_to_hub"} < set(names(room))
    setup("-n", "1", PIPE_PREFIX="env")
    assert "hub_to_env1" in names(room)
    setup("-n", "1", "-p", "flag", PIPE_PREFIX="lost")
    assert "hub_to_flag1" in names(room)
    assert "hub_to_lost1" not in names(room)


def test_the_ancestors_options_mean_the_same(room: Path, setup: Setup) -> None:
    done = setup("--num", "3", "--prefix", "llm")
    assert (done.returncode, done.stderr) == (0, "")
    assert {name.split("_to_")[1] for name in names(room)} == {"hub", "llm1", "llm2", "llm3"}
    assert setup("-n", "3", "-p", "llm").stdout == done.stdout


def test_each_pipe_is_told_that_is_made_was_there_or_is_removed(room: Path, setup: Setup) -> None:
    assert setup("alice").stderr == ""
    done = setup("alice", "bob", "-v")
    assert done.stderr.splitlines() == [
        f"setup-pipes: was there: {room}/hub_to_alice",
        f"setup-pipes: was there: {room}/alice_to_hub",
        f"setup-pipes: made {room}/hub_to_bob",
        f"setup-pipes: made {room}/bob_to_hub",
    ]
    assert len(done.stdout.splitlines()) == 4
    anew = setup("bob", "--clean", "--verbose").stderr.splitlines()
    removed = [line.rpartition("/")[2] for line in anew if " removed " in line]
    assert sorted(removed) == ["a room", "alice_to_hub", "bob_to_hub", "hub_to_alice", "hub_to_bob"]
    assert anew[-2:] == [f"setup-pipes: made {room}/hub_to_bob", f"setup-pipes: made {room}/bob_to_hub"]


def test_seats_and_their_number_are_one_line_that_names_both(setup: Setup) -> None:
    assert setup("alice", "--num", "2").stderr == (
        "modelpipes setup: name the seats, or give their number with --num, not both\n"
    )


def test_a_prefix_that_no_seat_begins_with_names_the_rule(setup: Setup) -> None:
    assert setup("--prefix", "My_Model").stderr.startswith(
        "modelpipes setup: 'My_Model1' cannot be a seat: a seat's name"
    )


def test_the_room_comes_from_the_flag_then_the_environment_then_the_default(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(0o700)
    modelpipes("setup", "a", PIPE_DIR=str(tmp_path / "env"), XDG_RUNTIME_DIR=str(runtime))
    assert names(tmp_path / "env") == ["a_to_hub", "hub_to_a"]
    modelpipes("setup", "b", "-d", str(tmp_path / "flag"), PIPE_DIR=str(tmp_path / "env"))
    assert names(tmp_path / "flag") == ["b_to_hub", "hub_to_b"]
    modelpipes("setup", "c", XDG_RUNTIME_DIR=str(runtime), PIPE_DIR="")
    assert names(runtime / "modelpipes" / "default") == ["c_to_hub", "hub_to_c"]


def test_another_hub_and_a_mesh(room: Path, setup: Setup) -> None:
    done = setup("a", "b", "b", "--hub", "me", "--mesh")
    assert [os.path.basename(line) for line in done.stdout.splitlines()] == [
        "me_to_a", "a_to_me", "me_to_b", "b_to_me", "a_to_b", "b_to_a",
    ]  # fmt: skip


def test_running_it_again_changes_nothing_and_adds_what_is_missing(room: Path, setup: Setup) -> None:
    setup("alice", "bob")
    before = {path.name: path.lstat().st_ino for path in room.iterdir()}
    (room / "alice_to_hub").unlink()
    again = setup("alice", "bob", "carol")
    assert again.returncode == 0
    assert len(again.stdout.splitlines()) == 6
    for name, inode in before.items():
        assert name == "alice_to_hub" or (room / name).lstat().st_ino == inode


def test_clean_makes_the_room_anew_but_not_under_a_member(room: Path, setup: Setup) -> None:
    setup("alice", "old")
    assert setup("alice", "-c").returncode == 0
    assert names(room) == ["alice_to_hub", "hub_to_alice"]
    with peer("sitter", Room(str(room)), "alice") as alice:
        done = setup("bob", "--clean")
        assert done.returncode == 1
        assert f"--clean: alice (pid {alice.pid}," in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert setup("bob", "--clean").returncode == 0
    assert names(room) == ["bob_to_hub", "hub_to_bob"]


def test_print_env_is_for_eval_whatever_the_rooms_name(tmp_path: Path) -> None:
    room = tmp_path / 'it\'s $(a) room;\nwith "quotes"'
    done = modelpipes("setup", "alice", "qwen3-0.6b", "--print-env", "-d", str(room))
    assert done.returncode == 0
    variables = ["PIPE_DIR", "PIPE_TO_ALICE", "PIPE_FROM_ALICE", "PIPE_TO_QWEN3_0_6B", "PIPE_FROM_QWEN3_0_6B"]
    script = done.stdout + "".join(f'printf "%s\\0" "${name}"\n' for name in variables)
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout
    assert shown.split("\0")[:-1] == [
        str(room), f"{room}/hub_to_alice", f"{room}/alice_to_hub",
        f"{room}/hub_to_qwen3-0.6b", f"{room}/qwen3-0.6b_to_hub",
    ]  # fmt: skip
    assert done.stdout.startswith("export PIPE_DIR=")


def test_seats_that_would_share_a_variable_are_wrong_usage_and_nothing_is_made(room: Path, setup: Setup) -> None:
    done = setup("a.b", "a-b", "--print-env")
    assert done.returncode == 2
    assert "a.b and a-b would both be PIPE_TO_A_B; rename one" in done.stderr
    assert not room.exists()
    assert setup("a.b", "a-b").returncode == 0


@pytest.mark.parametrize(
    "args",
    [["Alice"], ["a_b"], ["hub"], ["a", "-n", "2"], ["a", "--num", "2"], ["-n", "0"], ["-n", "x"], ["-p", "Model"],
     ["-p", "a" * 32], ["--hub", "X", "a"], ["--no-such"], ["x.lock"], [""]],
)  # fmt: skip
def test_wrong_usage_is_exit_2_one_line_and_nothing_made(room: Path, setup: Setup, args: list[str]) -> None:
    done = setup(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("modelpipes setup: ")
    assert not room.exists()


def test_what_stands_in_the_way_is_exit_1_and_one_line(room: Path, setup: Setup, tmp_path: Path) -> None:
    room.touch()
    done = setup("a")
    assert (done.returncode, done.stderr) == (1, f"modelpipes setup: {room}: not a directory\n")
    room.unlink()
    room.mkdir(0o700)
    (room / "hub_to_a").touch()
    done = setup("a")
    assert done.returncode == 1
    assert done.stderr == (f"modelpipes setup: {room}/hub_to_a: not a FIFO; move it away and run setup-pipes again\n")
    assert "Traceback" not in modelpipes("setup", "a", "-d", "/proc/no/room").stderr


def test_a_closed_stdout_ends_quietly(room: Path) -> None:
    command = shlex.join([sys.executable, "-P", "-m", "modelpipes", "setup", "-n", "999", "-d", str(room)])
    script = f"({command}; echo $? >&2) | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert done.stderr == "0\n"


def test_two_at_once_make_one_room(room: Path) -> None:
    for _ in range(5):
        command = [sys.executable, "-P", "-m", "modelpipes", "setup", "-n", "50", "-d", str(room)]
        both = [Peer(*command) for _ in range(2)]
        said = [process.process.communicate(timeout=LIMIT_S)[0] for process in both]
        assert [process.process.returncode for process in both] == [0, 0]
        assert said[0] == said[1]
        assert len(names(room)) == 100
        assert modelpipes("cleanup", "-d", str(room)).returncode == 0
        assert not room.exists()
