"""What clean-up takes, and what it leaves."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import msgspec
import pytest

from modelpipes.errors import RoomError
from modelpipes.lockfile import Lock
from modelpipes.pipe import cleanup
from modelpipes.pipe.cleanup import clean_up, pipes_of_prefix
from modelpipes.pipe.room import HUB, Room, Sitting, star
from modelpipes.values.deadline import Deadline
from tests.peers import peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NOBODY = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def contents(room: Room) -> set[str]:
    return set(os.listdir(room.path))


def test_clean_up_leaves_nothing_of_a_room_that_we_made(room: Room) -> None:
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(Sitting("bob", "ready", 1)))
    with peer("asker", room, HUB, "alice") as killed:
        killed.kill()
    assert {"bob.lock", "hub_to_alice.lock"} < contents(room)
    assert clean_up(room) == []
    assert not os.path.exists(room.path)
    assert clean_up(room) == []


def test_a_directory_that_was_there_before_stays(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(0o700)
    room = Room.make(str(mine))
    room.make_pipes(star(HUB, ["a"]))
    assert clean_up(room) == []
    assert list(mine.iterdir()) == []


def test_clean_up_keeps_what_a_room_may_not_contain(room: Room) -> None:
    others = {
        "poetry.lock": "[[package]]", "yarn.lock": "# yarn", "Cargo.lock": "", "notes.txt": "x", "a_b_to_c": "x",
        "bob.lock.bak": "x", "private.lock": "mine",
    }  # fmt: skip
    for name, text in others.items():
        Path(room.path, name).write_text(text)
    os.chmod(os.path.join(room.path, "private.lock"), 0o600)
    os.mkfifo(os.path.join(room.path, "fifo"))
    os.mkdir(os.path.join(room.path, "alice-backup.lock"))
    assert clean_up(room) == []
    assert contents(room) == {*others, "fifo", "alice-backup.lock"}


def test_clean_up_names_what_has_a_pipes_name_and_is_none(room: Room) -> None:
    os.unlink(room.pipe("hub", "bob"))
    Path(room.pipe("hub", "bob")).write_text("echo hi > hub_to_bob")
    os.symlink("nowhere", room.pipe("bob", "carol"))
    os.mkdir(room.pipe("bob", "dave"))
    for force in (False, True):
        kept = clean_up(room, force=force)
        assert kept == [
            f"{room.pipe('bob', 'carol')}: not made by setup-pipes, kept",
            f"{room.pipe('bob', 'dave')}: not made by setup-pipes, kept",
            f"{room.pipe('hub', 'bob')}: not made by setup-pipes, kept",
        ]
    assert {"hub_to_bob", "bob_to_carol", "bob_to_dave"} <= contents(room)


@needs_root
def test_clean_up_keeps_the_pipe_of_somebody_else(room: Room) -> None:
    os.chown(room.pipe("hub", "bob"), NOBODY, NOBODY)
    assert clean_up(room) == [f"{room.pipe('hub', 'bob')}: not made by setup-pipes, kept"]
    assert os.path.exists(room.pipe("hub", "bob"))


def test_clean_up_keeps_a_seat_in_use_naming_its_process_and_removes_the_others(room: Room) -> None:
    with peer("sitter", room) as bob:
        kept = clean_up(room)
        assert kept == [f"bob (pid {bob.pid}, a peer of the tests) is in use and kept; end it, or use -f"]
        assert room.pipes() == [("bob", "hub"), ("hub", "bob")]
        assert room.sitting("bob").state == "ready"
        assert "alice.lock" not in contents(room)
        assert clean_up(room, force=True) == []
        assert not os.path.exists(room.path)


def test_clean_up_keeps_a_seat_that_is_being_asked_naming_the_asker(room: Room) -> None:
    with peer("asker", room, HUB, "alice") as asker:
        kept = clean_up(room)
        assert kept == [f"alice, asked by hub (pid {asker.pid}), is in use and kept; end it, or use -f"]
        assert room.pipes() == [("alice", "hub"), ("hub", "alice")]


def test_clean_up_of_a_prefix_touches_and_names_no_other_seat(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "NAMELESS_S", 0.05)
    room.make_pipes(star(HUB, ["model1", "model2", "model-x"]))
    with peer("sitter", room) as bob, room.take_seat("alice"):
        assert clean_up(room, pipes_of_prefix(room, "model")) == []
        assert bob.process.poll() is None
        assert room.seats() == ["alice", "bob", "hub", "model-x"]
        assert {"alice.lock", "bob.lock"} < contents(room)
        room.make_pipes(star(HUB, ["model1"]))
        with room.take_seat("model1"):
            assert clean_up(room, pipes_of_prefix(room, "model")) == ["model1 is in use and kept; end it, or use -f"]
    assert clean_up(room) == []


def test_a_room_of_a_thousand_seats_is_cleaned_with_few_descriptors(tmp_path: Path) -> None:
    # All locks were held at once: a thousand seats that had been asked ran out of descriptors.
    room = Room.make(str(tmp_path / "large"))
    room.make_pipes(star(HUB, [f"model{i}" for i in range(600)]))
    for i in range(600):
        Lock.take(room.asker_lock(HUB, f"model{i}"), Deadline.never()).release()
    assert clean_up(room) == []
    assert not os.path.exists(room.path)


def test_two_clean_ups_at_once_are_both_content(tmp_path: Path) -> None:
    # The second took the locks of the first for members: "hub (pid None, ) is in use".
    for _ in range(20):
        room = Room.make(str(tmp_path / "room"))
        room.make_pipes(star(HUB, ["a", "b", "c"], mesh=True))
        kept: list[list[str]] = []
        start = threading.Barrier(3)

        def clean(room: Room = room, kept: list[list[str]] = kept, start: threading.Barrier = start) -> None:
            start.wait()
            kept.append(clean_up(room))

        threads = [threading.Thread(target=clean) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kept == [[], [], []]
        clean_up(room)  # what one left behind for the other
        assert not os.path.exists(room.path)


def test_who_waits_for_a_seat_while_clean_up_holds_it_is_told_that_the_room_is_gone(room: Room) -> None:
    came: list[str] = []

    def come() -> None:
        try:
            room.take_seat("bob").release()
        except RoomError as e:
            came.append(str(e))

    comer = threading.Thread(target=come)
    with Lock.take(room.seat_lock("bob"), Deadline.never()):  # as clean-up holds it
        comer.start()
        os.rename(room.path, f"{room.path}.gone")  # all at once, so that there is one order of events
        comer.join()
    assert len(came) == 1
    assert re.search(r"run setup-pipes (first|again)", came[0])
