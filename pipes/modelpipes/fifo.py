"""One FIFO or lock file: make, check, open, lock and remove it.

Every rule of the kernel that forces a flag here is in fifo(7), open(2) and fcntl_locking(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
import termios
import time
from collections.abc import Callable

from modelpipes.deadline import Deadline
from modelpipes.errors import DeadlineError, RoomError

# The best of 64 KiB to 1 MiB for a message of 1 MiB; 256 such pipes are what a user may have (pipe(7)).
WIDE_BYTES = 256 << 10
RETRY_S = 0.005  # between looks at what the kernel has no event for: a missing reader, a lock
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FIRST_S = 0.0005  # the same for the first in line for a lock; doubled up to RETRY_S
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid
_HELD = 0  # the byte of a lock file that its holder has locked; who waits has one that is the hour it came, in ns


def make(path: str) -> bool:
    """Make a FIFO that only we may use; False where ours is there already.

    Raises RoomError where something else has the name.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        check(path)
        return False
    except OSError as e:
        raise _room_error(e, path) from None
    return True


def check(path: str) -> None:
    """Raise RoomError unless the path names a FIFO of ours."""
    try:
        found = os.lstat(path)
    except OSError as e:
        raise _room_error(e, path) from None
    _check(found, path, stat.S_ISFIFO, "a FIFO")


def open_read(path: str) -> tuple[int, int]:
    """Open a FIFO's read end; with it a write end of our own, which spares us false ends of file."""
    while True:
        reader, writer = _open_fifo(path, os.O_RDONLY), -1
        try:
            writer = _open_fifo(path, os.O_WRONLY)
            if writer >= 0 and is_same(reader, path):
                return reader, writer
        except BaseException:
            os.close(reader)
            raise
        for fd in (reader, writer):  # the pipe was replaced between the two: they are ends of different ones
            if fd >= 0:
                os.close(fd)


def open_write(path: str) -> int:
    """Open a FIFO's write end; -1 while it has no reader."""
    return _open_fifo(path, os.O_WRONLY)


def _open_fifo(path: str, mode: int) -> int:
    try:
        fd = os.open(path, mode | _SAFE)
    except OSError as e:
        if e.errno == errno.ENXIO and _is_fifo(path):
            return -1
        raise _room_error(e, path) from None
    try:
        _check(os.fstat(fd), path, stat.S_ISFIFO, "a FIFO")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)  # a socket gives ENXIO as well
    except OSError:
        return False


def _check(found: os.stat_result, path: str, is_kind: Callable[[int], bool], kind: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _room_error(OSError(errno.ELOOP, ""), path)
    if not is_kind(found.st_mode):
        raise RoomError(f"{path}: not {kind}; move it away and run setup-pipes again")
    if found.st_uid != os.geteuid():
        raise RoomError(f"{path}: belongs to user {found.st_uid}, not to us")


def _room_error(e: OSError, path: str) -> RoomError:
    if e.errno in (errno.ENOENT, errno.ENOTDIR):
        return RoomError(f"{path}: not there; run setup-pipes first, or name the room with -d")
    if e.errno == errno.ELOOP:
        return RoomError(f"{path}: a symbolic link, which is never followed; remove it and run setup-pipes again")
    if e.errno == errno.ENXIO:  # a socket
        return RoomError(f"{path}: not a FIFO; move it away and run setup-pipes again")
    return RoomError(f"{path}: {(e.strerror or 'cannot be opened').lower()}")


def is_same(fd: int, path: str) -> bool:
    """Is the open file still the one that the path names?"""
    try:
        there = os.lstat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def has_reader(fd: int) -> bool:
    """Does anybody have this pipe's read end open? Asked of a write end."""
    return not _poll_now(fd, 0) & select.POLLERR


def is_readable(fd: int) -> bool:
    return bool(_poll_now(fd, select.POLLIN) & select.POLLIN)


def _poll_now(fd: int, mask: int) -> int:
    poll = select.poll()
    poll.register(fd, mask)
    return next((found for _, found in poll.poll(0)), 0)


def widen(fd: int) -> None:
    """Make a pipe hold WIDE_BYTES, if the kernel lets us: pipe(7) bounds what all pipes of a user may hold."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, WIDE_BYTES)


def unread_bytes(fd: int) -> int:
    """What lies in a pipe unread; asked of either end."""
    found: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]
    return found


def try_lock(fd: int, byte: int = _HELD) -> bool:
    """Lock an open file for as long as its description is open; False where another one has locked it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, byte, 1, 0))
    except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_locked(fd: int, start: int, stop: int) -> bool:
    """Has another one locked any of these bytes?"""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, start, stop - start, 0)
    return bool(struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


class Lock:
    """A lock on a small file of ours, held until released or until we die.

    It is an open-file-description lock: nothing but our own descriptor holds it, no child inherits it,
    and looking at it never takes it.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def try_take(cls, path: str) -> Lock | None:
        """Take the lock if it is free, whoever waits; the file is made where it is missing."""
        while True:
            lock = cls(path, _open_lock(path, os.O_RDWR | os.O_CREAT))
            is_ours = lock._try(_HELD)
            if is_ours and not lock.is_lost():
                return lock
            lock.release()
            if not is_ours:
                return None
            # Clean-up removed it between our open and our lock.

    @classmethod
    def take(cls, path: str, deadline: Deadline) -> Lock:
        """Wait for the lock, who came first being served first; DeadlineError where the holder keeps it."""
        lock, came_ns, pause_s = cls(path, -1), 0, _FIRST_S
        try:
            while True:
                if lock._fd < 0 or lock.is_lost():
                    lock.release()
                    lock._fd, came_ns = _open_lock(path, os.O_RDWR | os.O_CREAT), 0
                while not came_ns:
                    came_ns = lock._try(now_ns := time.monotonic_ns()) and now_ns
                is_first = not _is_locked(lock._fd, _HELD + 1, came_ns)
                if is_first and lock._try(_HELD) and not lock.is_lost():
                    lock._leave_line(came_ns)
                    return lock
                if deadline.has_passed():
                    raise DeadlineError(f"{path}: held by another process until the deadline")
                time.sleep(pause_s if is_first else RETRY_S)
                pause_s = min(2 * pause_s, RETRY_S) if is_first else _FIRST_S
        except BaseException:
            lock.release()
            raise

    def _leave_line(self, came_ns: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, 0, came_ns, 1, 0))

    def _try(self, byte: int) -> bool:
        try:
            return try_lock(self._fd, byte)
        except OSError as e:
            self.release()
            raise _room_error(e, self.path) from None

    def is_lost(self) -> bool:
        """Was the file removed or replaced under us?"""
        return not is_same(self._fd, self.path)

    def write(self, line: bytes) -> None:
        """Replace what the file says; one write, so that a reader sees the old line or the new one."""
        size = os.fstat(self._fd).st_size
        try:
            os.pwrite(self._fd, line.ljust(size), 0)
        except OSError as e:
            raise _room_error(e, self.path) from None

    def clear(self) -> None:
        """Make the file empty: nobody is here, and nobody died here."""
        os.ftruncate(self._fd, 0)

    def remove(self) -> None:
        """Unlink the file while it is held: who waits for it sees that, and takes the next one."""
        with contextlib.suppress(OSError):  # gone already, or it stays
            if not self.is_lost():
                os.unlink(self.path)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open_lock(path: str, mode: int) -> int:
    try:
        fd = os.open(path, mode | _SAFE, 0o600)
    except FileNotFoundError as e:
        if mode & os.O_CREAT:
            raise _room_error(e, path) from None  # the room itself is missing
        return -1
    except OSError as e:
        raise _room_error(e, path) from None
    try:
        _check(os.fstat(fd), path, _is_lock_file, "a lock file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_lock_file(mode: int) -> bool:
    """Ours let nobody else read them: poetry.lock and its like are never taken for one."""
    return stat.S_ISREG(mode) and not mode & 0o077


def look(path: str) -> tuple[bool, bytes]:
    """Whether a lock file is locked, and what it says; (False, b"") where there is none."""
    fd = _open_lock(path, os.O_RDONLY)
    if fd < 0:
        return False, b""
    try:
        return _is_locked(fd, _HELD, _HELD + 1), os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
