"""One lock file: a small file of ours, locked by an open file description for as long as its holder lives.

Nothing but our own descriptor holds such a lock, no child inherits it, and looking at it never takes it:
fcntl_locking(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time

from modelpipes.errors import DeadlineError, LockError
from modelpipes.values.deadline import Deadline

RETRY_S = 0.005  # between two looks at a lock that another has: the kernel has no event for it
_FIRST_S = 0.0005  # the same for the first in line; doubled up to RETRY_S
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid
_HELD = 0  # the byte that the holder has locked; who waits has one that is the hour it came, in ns


def is_same(fd: int, path: str) -> bool:
    """Is the open file still the one that the path names?"""
    try:
        there = os.lstat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), there)


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
    """A lock on a small file of ours, held until released or until we die; LockError where it cannot be had."""

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
            raise _lock_error(e, self.path) from None

    def is_lost(self) -> bool:
        """Was the file removed or replaced under us?"""
        return not is_same(self._fd, self.path)

    def write(self, line: bytes) -> None:
        """Replace what the file says; one write, so that a reader sees the old line or the new one."""
        size = os.fstat(self._fd).st_size
        try:
            os.pwrite(self._fd, line.ljust(size), 0)
        except OSError as e:
            raise _lock_error(e, self.path) from None

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
            raise _lock_error(e, path) from None  # the folder itself is missing
        return -1
    except OSError as e:
        raise _lock_error(e, path) from None
    try:
        found = os.fstat(fd)
        if not _is_lock_file(found.st_mode):
            raise LockError(f"{path}: not a lock file; move it away", "strange")
        if found.st_uid != os.geteuid():
            raise LockError(f"{path}: belongs to user {found.st_uid}, not to us", "refused")
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


def _lock_error(error: OSError, path: str) -> LockError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return LockError(f"{path}: not there", "missing")
    if error.errno == errno.ELOOP:
        return LockError(f"{path}: a symbolic link, which is never followed; remove it", "strange")
    if error.errno == errno.ENXIO:  # a socket
        return LockError(f"{path}: not a lock file; move it away", "strange")
    return LockError(f"{path}: {(error.strerror or 'cannot be opened').lower()}", "refused")
