"""list-seats, as it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from modelpipes.pipe.room import Loading, Room, Sitting
from tests.peers import Peer, modelpipes, peer


@pytest.fixture
def room(tmp_path: Path) -> Room:
    assert modelpipes("setup", "alice", "bob", "-d", str(tmp_path / "room")).returncode == 0
    return Room(str(tmp_path / "room"))


KEYS = ["seat", "state", "pid", "voice", "queue", "answers", "command", "about", "loading"]


def test_it_lists_who_sits_where_and_makes_nothing(room: Room) -> None:
    before = sorted(os.listdir(room.path))
    done = modelpipes("seats", "-d", room.path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["seat", "state", "pid", "queue", "answers", "voice"]
    assert [row[:2] for row in rows[1:] if row[0] in ("alice", "bob", "hub")] == [
        ["alice", "free"], ["bob", "free"], ["hub", "free"],
    ]  # fmt: skip
    assert sorted(os.listdir(room.path)) == before


def test_as_json_every_key_is_there_for_every_seat(room: Room) -> None:
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(Sitting("bob", "busy", 4711, "filter cat", 2, 7, "attach-model bob")))
        alice, bob, hub = json.loads(modelpipes("seats", "--json", PIPE_DIR=room.path).stdout)
    assert list(alice) == list(bob) == list(hub) == KEYS
    assert list(bob.values()) == ["bob", "busy", 4711, "filter cat", 2, 7, "attach-model bob", None, None]
    assert list(alice.values()) == ["alice", "free", None, "", 0, 0, "", None, None]


LOADS = Sitting("bob", "loading", 4711, "model x.gguf", loading=Loading(3_328_600_000, 5_046_586_573))


def test_how_far_a_member_has_loaded_stands_beside_its_state(room: Room) -> None:
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(LOADS))
        table = modelpipes("seats", "bob", PIPE_DIR=room.path).stdout
        [bob] = json.loads(modelpipes("seats", "bob", "--json", PIPE_DIR=room.path).stdout)
    assert "bob   loading 3.1 of 4.7 GiB  4711" in table
    assert (bob["state"], bob["loading"]) == ("loading", {"done_bytes": 3_328_600_000, "total_bytes": 5_046_586_573})


def test_wait_does_not_count_loading_as_silence(room: Room) -> None:
    # A model that took 40 s to load was given up after the 30 s of --timeout.
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(LOADS))
        command = ["seats", "--wait", "bob", "--timeout", "50ms", "-d", room.path]
        waiter = Peer(sys.executable, "-P", "-m", "modelpipes", *command, stderr=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):  # long after its start, and its silence
            waiter.process.wait(2.0)
        lock.write(msgspec.json.encode(Sitting("bob", "ready", 4711)))
        assert waiter.process.communicate(timeout=20) == (b"", b"")
    assert waiter.process.returncode == 0


def test_wait_for_one_that_loads_ends_at_max_seconds(room: Room) -> None:
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(LOADS))
        done = modelpipes("seats", "--wait", "bob", "--max-seconds", "200ms", "-d", room.path)
    assert done.returncode == 124
    assert done.stderr.endswith("seat bob was not ready before the deadline: it is loading (3.1 of 4.7 GiB)\n")


def test_only_the_seats_that_are_named(room: Room) -> None:
    [alice] = json.loads(modelpipes("seats", "alice", "--json", "-d", room.path).stdout)
    assert alice["seat"] == "alice"


def test_a_member_that_was_killed_is_shown_as_died(room: Room) -> None:
    with peer("sitter", room) as bob:
        [before] = json.loads(modelpipes("seats", "bob", "--json", "-d", room.path).stdout)
        bob.kill()
    [after] = json.loads(modelpipes("seats", "bob", "--json", "-d", room.path).stdout)
    assert (before["state"], after["state"]) == ("ready", "died")
    assert before["pid"] == after["pid"] == bob.pid


def test_wait_returns_when_the_seats_are_ready_saying_nothing(room: Room) -> None:
    waiter = Peer(sys.executable, "-P", "-m", "modelpipes", "seats", "--wait", "bob", "alice", "-d", room.path)
    with peer("sitter", room, "alice"), peer("sitter", room, "bob"):
        said, _ = waiter.process.communicate(timeout=20)
    assert (waiter.process.returncode, said) == (0, b"")


def test_wait_ends_at_its_deadline_with_124_and_says_which_seat(room: Room) -> None:
    with peer("sitter", room, "alice"):
        began_s = time.monotonic()
        done = modelpipes("seats", "--wait", "alice", "bob", "--timeout", "300ms", "-d", room.path)
        assert time.monotonic() - began_s >= 0.3
    assert done.returncode == 124
    assert done.stderr == (
        f"modelpipes seats: {room.path}: seat bob was not ready before the deadline: nobody took it\n"
    )


def test_wait_does_not_wait_for_a_member_that_died(room: Room) -> None:
    with peer("sitter", room) as bob:
        bob.kill()
    done = modelpipes("seats", "--wait", "bob", "--timeout", "none", "-d", room.path)
    assert done.returncode == 1
    assert f"bob (pid {bob.pid}, a peer of the tests) died; seat it again with attach-model" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["carol"], 1, "no seat 'carol'; its seats are alice, bob, hub; add it with setup-pipes"),
        (["--wait", "carol"], 1, "no seat 'carol'"),
        (["--wait"], 2, "--wait needs the seats to wait for"),
        (["Carol"], 2, "'Carol' cannot be a seat"),
        (["--wait", "bob", "--timeout", "0"], 2, "leaves no time at all"),
        (["--wait", "bob", "--max-seconds", "0"], 2, "leaves no time at all"),
        (["-d", "/nowhere/room"], 1, "/nowhere/room: no room there; run setup-pipes first, or name the room with -d"),
    ],
)
def test_what_is_wrong_is_one_line_and_its_exit_code(room: Room, args: list[str], code: int, says: str) -> None:
    done = modelpipes("seats", *args, PIPE_DIR=room.path)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
