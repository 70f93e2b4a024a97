"""One lock file: who holds it, who waits, and everything that may stand in its place."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpipes import lockfile
from modelpipes.errors import DeadlineError, LockError
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S, Peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NOBODY = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
LONG_BYTES = 3 * 65536  # more than a pipe or one read takes


@pytest.fixture
def lock_path(tmp_path: Path) -> str:
    return str(tmp_path / "bob.lock")


def test_a_lock_has_one_holder_and_says_what_the_holder_wrote(lock_path: str) -> None:
    with lockfile.Lock.try_take(lock_path) or pytest.fail("the lock is free") as lock:
        lock.write(b"a long line\n")
        assert lockfile.Lock.try_take(lock_path) is None
        assert lockfile.look(lock_path) == (True, b"a long line\n")
        lock.write(b"short\n")
        assert lockfile.look(lock_path)[1].split() == [b"short"]
    assert lockfile.look(lock_path)[0] is False
    assert stat.S_IMODE(os.stat(lock_path).st_mode) == 0o600


def test_a_holder_may_say_more_than_one_read_takes(lock_path: str) -> None:
    # A member whose command line held a long --system was shown as loading for ever.
    with lockfile.Lock.take(lock_path, Deadline.never()) as lock:
        lock.write(b"x" * LONG_BYTES)
        assert lockfile.look(lock_path) == (True, b"x" * LONG_BYTES)


def test_looking_at_a_lock_never_takes_it(lock_path: str) -> None:
    assert lockfile.look(lock_path) == (False, b"")
    assert not os.path.exists(lock_path)
    looker = Peer(
        sys.executable, "-c",
        "import sys\nfrom modelpipes import lockfile\nwhile True:\n lockfile.look(sys.argv[1])", lock_path,
    )  # fmt: skip
    try:
        for _ in range(2000):
            lock = lockfile.Lock.try_take(lock_path)
            assert lock, "a look held the lock"
            lock.release()
    finally:
        looker.close()


def test_a_lock_ends_with_its_process_and_no_child_inherits_it(lock_path: str) -> None:
    holder = Peer(
        sys.executable, "-c",
        "import subprocess, sys\nfrom modelpipes import lockfile\n"
        "lock = lockfile.Lock.try_take(sys.argv[1])\n"
        "child = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\nsys.stdin.read()", lock_path,
    )  # fmt: skip
    child = int(holder.line())
    try:
        assert lockfile.look(lock_path)[0]
        holder.kill()
        with lockfile.Lock.take(lock_path, Deadline.after(LIMIT_S)):
            pass
    finally:
        os.kill(child, 9)
        holder.close()


def test_who_waits_for_a_lock_gets_it_when_it_is_free_and_not_after_the_deadline(lock_path: str) -> None:
    holder = lockfile.Lock.take(lock_path, Deadline.never())
    with pytest.raises(DeadlineError, match=f"{lock_path}: held by another process until the deadline"):
        lockfile.Lock.take(lock_path, Deadline.after(0.02))
    waiter = Peer(
        sys.executable, "-c",
        "import sys\nfrom modelpipes import lockfile\nfrom modelpipes.values.deadline import Deadline\n"
        "print(lockfile.Lock.try_take(sys.argv[1]), flush=True)\n"
        "lockfile.Lock.take(sys.argv[1], Deadline.after(20))\nprint('mine', flush=True)", lock_path,
    )  # fmt: skip
    try:
        assert waiter.line() == "None"
        holder.release()
        assert waiter.line() == "mine"
    finally:
        waiter.close()


def test_a_lock_whose_file_was_removed_is_lost_and_taken_again_on_the_new_file(lock_path: str) -> None:
    old = lockfile.Lock.take(lock_path, Deadline.never())
    assert not old.is_lost()
    os.unlink(lock_path)
    assert old.is_lost()
    with lockfile.Lock.take(lock_path, Deadline.after(0)) as new:
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
        lock = lockfile.Lock.try_take(lock_path)
    assert lock
    assert not lock.is_lost()
    assert len(calls) == 2
    lock.release()


def test_a_lock_released_twice_closes_nothing_of_others(lock_path: str) -> None:
    lock = lockfile.Lock.take(lock_path, Deadline.never())
    lock.release()
    reader, writer = os.pipe()
    lock.release()
    os.fstat(reader), os.fstat(writer)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("act", [lockfile.Lock.try_take, lockfile.look])
def test_another_programs_lock_file_is_never_taken_for_ours(lock_path: str, act: Callable[[str], object]) -> None:
    # poetry.lock and yarn.lock have the names of seats' locks.
    Path(lock_path).write_text("[[package]]\n")
    os.chmod(lock_path, 0o644)
    with pytest.raises(LockError, match=f"{lock_path}: not a lock file; move it away$"):
        act(lock_path)
    assert Path(lock_path).read_text() == "[[package]]\n"


@pytest.mark.parametrize("act", [lockfile.Lock.try_take, lockfile.look])
def test_a_link_or_a_fifo_where_a_lock_file_should_be_is_refused(lock_path: str, act: Callable[[str], object]) -> None:
    os.symlink("/etc/passwd", lock_path)
    with pytest.raises(LockError, match=f"{lock_path}: a symbolic link"):
        act(lock_path)
    os.unlink(lock_path)
    os.mkfifo(lock_path, 0o600)
    with pytest.raises(LockError, match=f"{lock_path}: not a lock file"):
        act(lock_path)


@needs_root
def test_a_lock_file_of_somebody_else_is_refused(lock_path: str) -> None:
    Path(lock_path).touch(0o600)
    os.chown(lock_path, NOBODY, NOBODY)
    with pytest.raises(LockError, match=f"{lock_path}: belongs to user {NOBODY}"):
        lockfile.Lock.try_take(lock_path)


def test_many_locks_at_once_end_in_an_error_of_ours(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom modelpipes import errors, lockfile\n"
        "try: locks = [lockfile.Lock.try_take(f'{sys.argv[1]}/s{i}.lock') for i in range(99)]\n"
        "except errors.LockError as e: print(e)"
    )
    command = ["sh", "-c", 'ulimit -n 32; exec "$@"', "sh", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert "too many open files" in done.stdout


def test_a_folder_that_is_missing_is_told_without_a_word_of_rooms(tmp_path: Path) -> None:
    missing = str(tmp_path / "serve" / "1.json")
    with pytest.raises(LockError, match=f"^{missing}: not there$"):
        lockfile.Lock.try_take(missing)
    assert lockfile.look(missing) == (False, b"")
