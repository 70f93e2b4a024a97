"""A directory of FIFOs: whose it is, what it holds, who sits where, what clean-up takes."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import DeadlineError, PeerGone, RoomError, UsageError
from modelpipes.pipe import room as rooms
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.room import (
    HUB,
    Loading,
    PipePair,
    Room,
    Sitting,
    check_seat,
    exports,
    is_seat,
    parse_pipe,
    resolve,
    seat_variable,
    star,
)
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S, peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NOBODY = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
seat_names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,31}", fullmatch=True).filter(lambda name: not name.endswith(".lock"))


def contents(room: Room) -> set[str]:
    return set(os.listdir(room.path))


# -- names


@given(seat_names, seat_names)
def test_a_pipe_and_a_lock_say_in_one_way_whose_they_are(a: str, b: str) -> None:
    assert check_seat(a) == a
    assert parse_pipe(f"{a}_to_{b}") == (a, b)
    for name in (a, f"{a}_to_{b}"):
        assert not is_seat(f"{name}.lock")
        assert not parse_pipe(f"{name}.lock")


@pytest.mark.parametrize(
    "name", ["", "A", "a_b", "-a", ".a", "a" * 33, "a b", "a/b", "a\n", "é", "..", "x.lock", "a_to_b", "$(reboot)"]
)
def test_what_is_no_name_for_a_seat_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a seat: a seat's name is 1 to 32 of"):
        check_seat(name)


def test_a_seat_in_a_shell_variable_is_upper_case_with_underscores() -> None:
    assert seat_variable("qwen3-0.6b") == "QWEN3_0_6B"


def test_a_star_has_two_pipes_a_seat_and_a_mesh_one_for_every_ordered_pair_once() -> None:
    assert star(HUB, ["a", "b", "a"]) == [("hub", "a"), ("a", "hub"), ("hub", "b"), ("b", "hub")]
    mesh = star(HUB, ["a", "b", "a"], mesh=True)
    assert mesh == [*star(HUB, ["a", "b"]), ("a", "b"), ("b", "a")]
    with pytest.raises(UsageError, match="'a' is the hub"):
        star("a", ["a"])


# -- whose it is


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_room_and_its_pipes_are_ours_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        room = Room.make(str(tmp_path / "parent" / "room"))
        [path] = room.make_pipes([("a", "b")])
    finally:
        os.umask(before)
    assert os.stat(room.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(room.path)).st_mode & 0o777 == 0o700
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


def test_in_a_directory_that_others_can_write_the_room_is_a_directory_of_our_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    room = Room.make(str(tmp_path))
    assert room.path == str(tmp_path / f"modelpipes-{os.geteuid()}" / "default")
    assert os.stat(room.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(room.path)).st_mode & 0o777 == 0o700
    assert Room.open(str(tmp_path)).path == room.path


@needs_root
def test_a_per_user_directory_that_somebody_else_made_first_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    theirs = tmp_path / f"modelpipes-{os.geteuid()}"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    with pytest.raises(RoomError, match=f"{theirs}: belongs to user {NOBODY}, not to us"):
        Room.make(str(tmp_path))
    assert list(theirs.iterdir()) == []
    (theirs / "default").mkdir(0o700)  # also where what is in it looks like ours
    for act in (Room.make, Room.open):
        with pytest.raises(RoomError, match=f"{theirs}: belongs to user {NOBODY}, not to us"):
            act(str(tmp_path))


def test_a_per_user_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / f"modelpipes-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RoomError, match="a symbolic link, which is never followed"):
        Room.make(str(shared))


@needs_root
def test_a_room_of_somebody_else_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "room"
    theirs.mkdir(0o755)
    os.chown(theirs, NOBODY, NOBODY)
    for act in (Room.make, Room.open):
        with pytest.raises(RoomError, match=f"{theirs}: belongs to user {NOBODY}, not to us"):
            act(str(theirs))


def test_no_room_a_file_a_link_and_a_parent_that_is_a_file_are_one_clear_line_each(tmp_path: Path) -> None:
    with pytest.raises(RoomError, match="no room there; run setup-pipes first, or name the room with -d"):
        Room.open(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    for act in (Room.make, Room.open):
        with pytest.raises(RoomError, match=f"{tmp_path}/file: not a directory"):
            act(str(tmp_path / "file"))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for act in (Room.make, Room.open):
        with pytest.raises(RoomError, match="a symbolic link, which is never followed"):
            act(str(tmp_path / "link"))
    # It said "no room there; run setup-pipes first", to setup-pipes.
    with pytest.raises(RoomError, match=f"{tmp_path}/file/room: cannot be made: file exists"):
        Room.make(str(tmp_path / "file" / "room"))


def test_the_default_room_is_in_the_runtime_folder_else_in_a_folder_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert resolve(None) == str(tmp_path / "modelpipes" / "default")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert resolve(None) == f"/var/tmp/modelpipes-{os.geteuid()}/default"
    monkeypatch.delenv("TMPDIR")
    assert resolve(None) == f"/tmp/modelpipes-{os.geteuid()}/default"
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve("~/room") == "/home/me/room"


def test_fresh_rooms_are_beside_the_default_one_and_never_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = [Room.make_fresh() for _ in range(5)]
    assert len({room.path for room in made}) == 5
    assert {os.path.dirname(room.path) for room in made} == {str(tmp_path / "modelpipes")}
    for room in made:
        assert clean_up(room) == []
        assert not os.path.exists(room.path)


def test_the_fresh_room_of_a_process_that_was_killed_is_an_orphan_and_ours_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert Room.orphans() == []
    ours = Room.make_fresh()
    gone = subprocess.Popen(["true"])
    gone.wait()
    theirs = Room.make(os.path.join(os.path.dirname(ours.path), f"chat-{gone.pid}-00c0ffee"))
    Room.make(os.path.join(os.path.dirname(ours.path), "chat-room"))
    assert [room.path for room in Room.orphans()] == [theirs.path]


def test_all_rooms_are_those_of_ours_that_lie_where_rooms_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert Room.all() == []
    default, fresh = Room.make(), Room.make_fresh()
    folder = Path(default.path).parent
    (folder / "link").symlink_to(default.path)
    (folder / "file").touch()
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    assert [room.path for room in Room.all()] == sorted([default.path, fresh.path])


def test_orphans_are_looked_for_in_a_directory_of_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In one that others can write, a link of theirs led clean-up to a room of ours.
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    rooms_of_ours = tmp_path / f"modelpipes-{os.geteuid()}"
    rooms_of_ours.mkdir(0o700)
    orphan = Room.make(str(rooms_of_ours / "chat-4194305-00"))
    (rooms_of_ours / "chat-4194306-00").symlink_to(orphan.path)
    (rooms_of_ours / "chat-4194307-00").touch()
    assert [room.path for room in Room.orphans()] == [orphan.path]
    rooms_of_ours.chmod(0o777)
    assert Room.orphans() == []


# -- what it holds


def test_a_room_lists_its_seats_and_who_speaks_to_them(room: Room) -> None:
    assert room.seats() == ["alice", "bob", "hub"]
    assert room.senders_to("hub") == ["alice", "bob"]
    assert room.pipes() == [("alice", "hub"), ("bob", "hub"), ("hub", "alice"), ("hub", "bob")]


def test_making_pipes_again_changes_nothing_and_adds_what_is_missing(room: Room) -> None:
    before = {name: os.lstat(os.path.join(room.path, name)).st_ino for name in contents(room)}
    os.unlink(room.pipe("alice", "hub"))
    made = room.make_pipes(star(HUB, ["alice", "bob", "carol"]))
    assert made == [room.pipe(*pair) for pair in star(HUB, ["alice", "bob", "carol"])]
    for name, inode in before.items():
        assert name == "alice_to_hub" or os.lstat(os.path.join(room.path, name)).st_ino == inode
    assert len(contents(room)) == 6


def test_a_seat_that_is_not_there_is_named_with_those_that_are(room: Room) -> None:
    with pytest.raises(RoomError, match="no seat 'carol'; its seats are alice, bob, hub; add it with setup-pipes"):
        room.require("carol")
    with pytest.raises(UsageError):
        room.require("Carol")


def test_a_room_that_is_gone_says_so(room: Room) -> None:
    clean_up(room)
    with pytest.raises(RoomError, match="the room is gone; run setup-pipes again"):
        room.seats()


# -- who sits where


def test_a_seat_is_free_then_loading_then_what_its_member_says_then_free_again(room: Room) -> None:
    assert room.sitting("bob") == Sitting("bob", "free")
    with room.take_seat("bob") as lock:
        assert room.sitting("bob") == Sitting("bob", "loading")
        who = Sitting("bob", "busy", 4711, "filter cat", 2, 7, "attach-model bob")
        lock.write(msgspec.json.encode(who))
        assert room.sitting("bob") == who
        lock.write(b"rubbish")
        assert room.sitting("bob").state == "loading"
        lock.clear()
    assert room.sitting("bob") == Sitting("bob", "free")


def test_a_member_that_was_killed_has_died_and_its_traces_do_not_pass_for_its_successors(room: Room) -> None:
    with peer("sitter", room) as bob:
        assert room.sitting("bob").state == "ready"
        bob.kill()
        who = room.sitting("bob")
        assert (who.state, who.pid, who.queue) == ("died", bob.pid, 0)
    with room.take_seat("bob"):  # it has said nothing yet: ready it is not
        assert room.sitting("bob") == Sitting("bob", "loading")


def test_a_second_member_is_told_who_sits_there(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_DYING_S", 0.05)
    with peer("sitter", room) as bob:
        says = rf"the seat is taken by bob \(pid {bob.pid}, a peer of the tests\); end it, or take another seat"
        with pytest.raises(RoomError, match=says):
            room.take_seat("bob")


def test_a_second_member_waits_for_the_first_to_be_gone(room: Room) -> None:
    with peer("sitter", room) as bob:
        bob.tell("leave")
        room.take_seat("bob").release()


def test_a_long_command_is_shortened_for_a_person() -> None:
    assert Sitting("bob", "ready", 7, command="attach-model bob").name() == "bob (pid 7, attach-model bob)"
    assert len(Sitting("bob", "ready", 7, command="x" * 5000).name()) < 120
    assert Sitting("bob", "loading").name() == "bob"


def test_who_waits_for_a_seat_returns_when_it_is_ready(room: Room) -> None:
    returned = threading.Event()

    def wait() -> None:
        room.wait_for(["bob"], Deadline.after(LIMIT_S))
        returned.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    with peer("sitter", room):
        assert returned.wait(LIMIT_S)
    waiter.join()


def test_who_waits_for_a_seat_that_nobody_takes_is_told_so_at_the_deadline(room: Room) -> None:
    with pytest.raises(DeadlineError, match="seat bob was not ready before the deadline: nobody took it"):
        room.wait_for(["bob"], Deadline.after(0.05))
    with room.take_seat("bob"), pytest.raises(DeadlineError, match="it is loading"):
        room.wait_for(["bob"], Deadline.after(0.05))


LOADS = Sitting("bob", "loading", 1, loading=Loading(3 << 29, 4 << 30))


def test_a_member_that_loads_shows_life_and_is_waited_for_beyond_the_silence(room: Room) -> None:
    # It was given up after --timeout, however far it was.
    returned = threading.Event()

    def wait() -> None:
        room.wait_for(["bob"], Deadline.after(LIMIT_S), silence_s=0.05)
        returned.set()

    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(LOADS) + b"\n")
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not returned.wait(0.2) and waiter.is_alive()  # longer than the silence
        lock.write(msgspec.json.encode(Sitting("bob", "ready", 1)) + b"\n")
        assert returned.wait(LIMIT_S)
    waiter.join()


def test_a_member_that_loads_for_ever_is_waited_for_until_the_deadline_which_tells_how_far_it_is(room: Room) -> None:
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(LOADS) + b"\n")
        with pytest.raises(DeadlineError, match=r"before the deadline: it is loading \(1.5 of 4.0 GiB\)$"):
            room.wait_for(["bob"], Deadline.after(0.05), silence_s=LIMIT_S)


def test_an_empty_seat_shows_no_life(room: Room) -> None:
    with pytest.raises(DeadlineError, match="nobody took it"):
        room.wait_for(["bob"], Deadline.never(), silence_s=0.05)


def test_each_seat_that_is_waited_for_has_a_silence_of_its_own(room: Room) -> None:
    with peer("sitter", room, "alice"), pytest.raises(DeadlineError, match="seat bob was not ready"):
        room.wait_for(["alice", "bob"], Deadline.never(), silence_s=0.05)


def test_who_waits_for_a_process_is_told_of_each_look_at_it(room: Room) -> None:
    seen: list[Sitting] = []
    with room.take_seat("bob") as lock:
        lock.write(msgspec.json.encode(LOADS) + b"\n")
        with pytest.raises(DeadlineError):
            room.wait_for_process("bob", 1, Deadline.after(0.05), check=lambda: None, tell=seen.append)
    assert set(seen) == {LOADS}


def test_who_waits_for_a_seat_whose_member_died_is_told_so_at_once(room: Room) -> None:
    with peer("sitter", room) as bob:
        bob.kill()
        says = rf"bob \(pid {bob.pid}, a peer of the tests\) died; seat it again with attach-model"
        with pytest.raises(PeerGone, match=says):
            room.wait_for(["bob"], Deadline.never(), grace_s=0)


def test_who_waits_for_a_process_returns_when_that_one_sits_there_and_no_other(room: Room) -> None:
    def fail() -> None:
        raise PeerGone("bob ended with 1")

    with peer("sitter", room) as bob:
        room.wait_for_process("bob", bob.pid, Deadline.after(LIMIT_S), check=fail)
        with pytest.raises(PeerGone, match="bob ended with 1"):
            room.wait_for_process("bob", bob.pid + 1, Deadline.never(), check=fail)
        with pytest.raises(DeadlineError, match="no member ready in seat bob before the deadline"):
            room.wait_for_process("bob", bob.pid + 1, Deadline.after(0.05), check=lambda: None)


def test_who_waits_for_a_member_to_leave_waits_for_that_one_alone_and_not_beyond_the_deadline(room: Room) -> None:
    with peer("sitter", room) as bob:
        room.wait_for_leaving("bob", bob.pid, Deadline.after(0.05))
        assert room.sitting("bob").pid == bob.pid
        room.wait_for_leaving("bob", bob.pid + 1, Deadline.never())  # somebody else sits there now
        bob.kill()
        room.wait_for_leaving("bob", bob.pid, Deadline.never())
    assert room.sitting("bob").state == "died"


def test_the_pipes_that_the_environment_names_are_those_that_setup_exports(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PipePair.exported("b.ob") is None
    for variable, pair in exports("hub", ["b.ob"]).items():
        assert PipePair.exported("b.ob") is None  # one of the two is no way to ask
        monkeypatch.setenv(variable, room.pipe(*pair))
    found = PipePair.exported("b.ob")
    assert found and (found.sender, found.receiver, found.path) == ("hub", "b.ob", room.path)


ROOM_GONE = (
    "the room is gone; run setup-pipes again",
    "no seat 'bob'; it has no seats; add it with setup-pipes",
)


def test_nobody_waits_for_a_seat_in_a_room_that_was_removed(room: Room) -> None:
    # With --timeout none it waited for ever.
    found: list[str] = []

    def wait() -> None:
        try:
            room.wait_for(["bob"], Deadline.after(LIMIT_S))
        except RoomError as e:
            found.append(str(e))

    waiter = threading.Thread(target=wait)
    waiter.start()
    clean_up(room)
    waiter.join()
    # Its pipes go before its folder does.
    assert found in ([f"{room.path}: {why}"] for why in ROOM_GONE)


# -- two FIFOs, named directly


def test_a_pair_with_the_names_of_a_room_is_locked_as_the_room_is(room: Room) -> None:
    pair = PipePair(room.pipe("alice", "bob"), room.pipe("bob", "alice"))
    assert (pair.sender, pair.receiver) == ("alice", "bob")
    assert pair.pipe("alice", "bob") == room.pipe("alice", "bob")
    assert pair.pipe("bob", "alice") == room.pipe("bob", "alice")
    assert pair.asker_lock("alice", "bob") == room.asker_lock("alice", "bob")
    assert pair.keeps_asker_locks


def test_a_pair_with_any_names_is_locked_beside_the_pipe_and_reads_no_strange_lock_file(tmp_path: Path) -> None:
    (tmp_path / "peer.lock").write_text("another program's")
    pair = PipePair(str(tmp_path / "in"), str(tmp_path / "out"))
    assert pair.pipe(pair.sender, pair.receiver) == str(tmp_path / "in")
    assert pair.pipe(pair.receiver, pair.sender) == str(tmp_path / "out")
    assert pair.asker_lock(pair.sender, pair.receiver) == str(tmp_path / "in.lock")
    assert not pair.keeps_asker_locks
    assert pair.sitting(pair.receiver) == Sitting(str(tmp_path / "in"), "free")


def test_a_lock_file_that_cannot_be_had_is_a_fault_of_the_room_with_what_mends_it(room: Room) -> None:
    lock = room.seat_lock("bob")
    os.symlink("/etc/passwd", lock)
    for act in (room.look, room.try_take, lambda lock: room.take(lock, Deadline.after(0))):
        with pytest.raises(RoomError, match=f"^{lock}: a symbolic link, .* remove it and run setup-pipes again$"):
            act(lock)
    gone = f"{room.path}/gone/bob.lock"
    with pytest.raises(RoomError, match=f"^{gone}: not there; run setup-pipes first, or name the room with -d$"):
        room.try_take(gone)
