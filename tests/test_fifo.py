"""One FIFO or lock file, and everything that may stand in its place."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpipes import fifo
from modelpipes.deadline import Deadline
from modelpipes.errors import DeadlineError, RoomError
from tests.peers import LIMIT_S, Peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NOBODY = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")

PIPE_BYTES = 65536


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a_to_b")


def make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def make_foreign(path: str) -> None:
    os.mkfifo(path, 0o666)
    os.chown(path, NOBODY, NOBODY)


def make_link(path: str) -> None:
    os.mkfifo(f"{path}.real", 0o600)
    os.symlink(f"{path}.real", path)


STRANGERS: list[tuple[Callable[[str], object], str]] = [
    (lambda path: Path(path).write_text("echo hi > missing"), "not a FIFO; move it away and run setup-pipes again"),
    (os.mkdir, "not a FIFO|is a directory"),
    (make_socket, "not a FIFO; move it away and run setup-pipes again"),
    (make_link, "a symbolic link, which is never followed; remove it and run setup-pipes again"),
    (lambda path: os.symlink("nowhere", path), "a symbolic link, which is never followed"),
]
NAMES = ["file", "directory", "socket", "link", "dangling link"]


@pytest.mark.parametrize("act", [fifo.make, fifo.check, fifo.open_read, fifo.open_write])
@pytest.mark.parametrize(("stranger", "says"), STRANGERS, ids=NAMES)
def test_what_is_no_fifo_is_one_clear_line(
    path: str, stranger: Callable[[str], object], says: str, act: Callable[[str], object]
) -> None:
    stranger(path)
    with pytest.raises(RoomError) as e:
        act(path)
    assert re.fullmatch(f"{re.escape(path)}: ({says}).*", str(e.value))


@needs_root
@pytest.mark.parametrize("act", [fifo.make, fifo.check, fifo.open_read])
def test_a_fifo_of_somebody_else_is_refused(path: str, act: Callable[[str], object]) -> None:
    make_foreign(path)
    with pytest.raises(RoomError, match=f"{path}: belongs to user {NOBODY}, not to us"):
        act(path)


@needs_root
def test_a_fifo_of_somebody_else_is_not_written_to_even_where_it_is_read(path: str) -> None:
    make_foreign(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(RoomError, match=f"belongs to user {NOBODY}"):
            fifo.open_write(path)
    finally:
        os.close(reader)


@pytest.mark.parametrize("act", [fifo.check, fifo.open_read, fifo.open_write, fifo.Lock.try_take])
def test_a_room_that_is_missing_is_one_clear_line(tmp_path: Path, act: Callable[[str], object]) -> None:
    missing = str(tmp_path / "room" / "a_to_b")
    with pytest.raises(RoomError, match=f"{missing}: not there; run setup-pipes first, or name the room with -d"):
        act(missing)
    (tmp_path / "room").write_text("a file")
    with pytest.raises(RoomError, match=f"{missing}: not there"):
        act(missing)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_fifo_is_ours_alone_whatever_the_umask(path: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert fifo.make(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


def test_making_a_fifo_again_changes_nothing(path: str) -> None:
    assert fifo.make(path)
    inode = os.lstat(path).st_ino
    assert not fifo.make(path)
    assert os.lstat(path).st_ino == inode


def test_a_writer_sees_whether_somebody_reads(path: str) -> None:
    fifo.make(path)
    assert fifo.open_write(path) == -1
    ends = fifo.open_read(path)
    writer = fifo.open_write(path)
    assert writer >= 0
    for fd in (*ends, writer):
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_reader_sees_no_end_when_writers_come_and_go(path: str) -> None:
    fifo.make(path)
    reader, keep = fifo.open_read(path)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    for text in (b"one\n", b"two\n"):
        writer = fifo.open_write(path)
        os.write(writer, text)
        os.close(writer)
        assert poll.poll(LIMIT_S * 1000) == [(reader, select.POLLIN)]
        assert os.read(reader, PIPE_BYTES) == text
        assert poll.poll(0) == []
    os.close(reader)
    os.close(keep)


def test_both_ends_are_of_one_pipe_also_where_it_is_replaced_between_them(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by reading: the second open met a new FIFO without a reader and raised a bare OSError, or gave
    # an end of another pipe, so that the reader saw an end of file for ever.
    fifo.make(path)
    real_open, opened = os.open, []

    def open_and_replace(path: str, flags: int, mode: int = 0o777) -> int:
        fd = real_open(path, flags, mode)
        opened.append(fd)
        if len(opened) == 1:
            os.unlink(path)
            fifo.make(path)
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_replace)
        reader, keep = fifo.open_read(path)
    assert os.path.samestat(os.fstat(reader), os.fstat(keep))
    assert fifo.is_same(reader, path)
    os.close(reader)
    os.close(keep)


def test_an_open_end_knows_when_its_path_names_another_pipe(path: str) -> None:
    fifo.make(path)
    reader, keep = fifo.open_read(path)
    assert fifo.is_same(reader, path)
    os.unlink(path)
    assert not fifo.is_same(reader, path)
    fifo.make(path)
    assert not fifo.is_same(reader, path)
    os.close(reader)
    os.close(keep)


# -- locks


@pytest.fixture
def lock_path(tmp_path: Path) -> str:
    return str(tmp_path / "bob.lock")


def test_a_lock_has_one_holder_and_says_what_the_holder_wrote(lock_path: str) -> None:
    with fifo.Lock.try_take(lock_path) or pytest.fail("the lock is free") as lock:
        lock.write(b"a long line\n")
        assert fifo.Lock.try_take(lock_path) is None
        assert fifo.look(lock_path) == (True, b"a long line\n")
        lock.write(b"short\n")
        assert fifo.look(lock_path)[1].split() == [b"short"]
    assert fifo.look(lock_path)[0] is False
    assert stat.S_IMODE(os.stat(lock_path).st_mode) == 0o600


def test_a_holder_may_say_more_than_one_read_takes(lock_path: str) -> None:
    # A member whose command line held a long --system was shown as loading for ever.
    with fifo.Lock.take(lock_path, Deadline.never()) as lock:
        lock.write(b"x" * (3 * PIPE_BYTES))
        assert fifo.look(lock_path) == (True, b"x" * (3 * PIPE_BYTES))


def test_looking_at_a_lock_never_takes_it(lock_path: str) -> None:
    assert fifo.look(lock_path) == (False, b"")
    assert not os.path.exists(lock_path)
    looker = Peer(
        sys.executable, "-c",
        "import sys\nfrom modelpipes import fifo\nwhile True:\n fifo.look(sys.argv[1])", lock_path,
    )  # fmt: skip
    try:
        for _ in range(2000):
            lock = fifo.Lock.try_take(lock_path)
            assert lock, "a look held the lock"
            lock.release()
    finally:
        looker.close()


def test_a_lock_ends_with_its_process_and_no_child_inherits_it(lock_path: str) -> None:
    holder = Peer(
        sys.executable, "-c",
        "import subprocess, sys\nfrom modelpipes import fifo\n"
        "lock = fifo.Lock.try_take(sys.argv[1])\n"
        "child = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\nsys.stdin.read()", lock_path,
    )  # fmt: skip
    child = int(holder.line())
    try:
        assert fifo.look(lock_path)[0]
        holder.kill()
        with fifo.Lock.take(lock_path, Deadline.after(LIMIT_S)):
            pass
    finally:
        os.kill(child, 9)
        holder.close()


def test_who_waits_for_a_lock_gets_it_when_it_is_free_and_not_after_the_deadline(lock_path: str) -> None:
    holder = fifo.Lock.take(lock_path, Deadline.never())
    with pytest.raises(DeadlineError, match=f"{lock_path}: held by another process until the deadline"):
        fifo.Lock.take(lock_path, Deadline.after(0.02))
    waiter = Peer(
        sys.executable, "-c",
        "import sys\nfrom modelpipes import fifo\nfrom modelpipes.deadline import Deadline\n"
        "print(fifo.Lock.try_take(sys.argv[1]), flush=True)\n"
        "fifo.Lock.take(sys.argv[1], Deadline.after(20))\nprint('mine', flush=True)", lock_path,
    )  # fmt: skip
    try:
        assert waiter.line() == "None"
        holder.release()
        assert waiter.line() == "mine"
    finally:
        waiter.close()


def test_a_lock_whose_file_was_removed_is_lost_and_taken_again_on_the_new_file(lock_path: str) -> None:
    old = fifo.Lock.take(lock_path, Deadline.never())
    assert not old.is_lost()
    os.unlink(lock_path)
    assert old.is_lost()
    with fifo.Lock.take(lock_path, Deadline.after(0)) as new:
        assert not new.is_lost()
        assert old.is_lost()
        old.remove()  # must not remove what is not its own any more
        assert not new.is_lost()
    old.release()


def test_a_lock_file_removed_between_open_and_lock_is_not_taken_for_the_lock(
    lock_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.fcntl, []

    def lock_and_remove(fd: int, command: int, argument: bytes) -> object:
        calls.append(fd)
        if len(calls) == 1:
            os.unlink(lock_path)
        return real(fd, command, argument)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", lock_and_remove)
        lock = fifo.Lock.try_take(lock_path)
    assert lock
    assert not lock.is_lost()
    assert len(calls) == 2
    lock.release()


def test_a_lock_released_twice_closes_nothing_of_others(lock_path: str) -> None:
    lock = fifo.Lock.take(lock_path, Deadline.never())
    lock.release()
    reader, writer = os.pipe()
    lock.release()
    os.fstat(reader), os.fstat(writer)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("act", [fifo.Lock.try_take, fifo.look])
def test_another_programs_lock_file_is_never_taken_for_ours(lock_path: str, act: Callable[[str], object]) -> None:
    # poetry.lock and yarn.lock have the names of seats' locks.
    Path(lock_path).write_text("[[package]]\n")
    os.chmod(lock_path, 0o644)
    with pytest.raises(RoomError, match=f"{lock_path}: not a lock file; move it away"):
        act(lock_path)
    assert Path(lock_path).read_text() == "[[package]]\n"


@pytest.mark.parametrize("act", [fifo.Lock.try_take, fifo.look])
def test_a_link_or_a_fifo_where_a_lock_file_should_be_is_refused(lock_path: str, act: Callable[[str], object]) -> None:
    os.symlink("/etc/passwd", lock_path)
    with pytest.raises(RoomError, match=f"{lock_path}: a symbolic link"):
        act(lock_path)
    os.unlink(lock_path)
    os.mkfifo(lock_path, 0o600)
    with pytest.raises(RoomError, match=f"{lock_path}: not a lock file"):
        act(lock_path)


@needs_root
def test_a_lock_file_of_somebody_else_is_refused(lock_path: str) -> None:
    Path(lock_path).touch(0o600)
    os.chown(lock_path, NOBODY, NOBODY)
    with pytest.raises(RoomError, match=f"{lock_path}: belongs to user {NOBODY}"):
        fifo.Lock.try_take(lock_path)


def test_many_locks_at_once_end_in_an_error_of_ours(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom modelpipes import errors, fifo\n"
        "try: locks = [fifo.Lock.try_take(f'{sys.argv[1]}/s{i}.lock') for i in range(99)]\n"
        "except errors.RoomError as e: print(e)"
    )
    command = ["sh", "-c", 'ulimit -n 32; exec "$@"', "sh", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert "too many open files" in done.stdout
