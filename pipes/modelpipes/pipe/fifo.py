"""One FIFO: make, check and open it, and ask the kernel about it.

Every rule of the kernel that forces a flag here is in fifo(7) and open(2).
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

from modelpipes.errors import RoomError
from modelpipes.lockfile import is_same

# The best of 64 KiB to 1 MiB for a message of 1 MiB; 256 such pipes are what a user may have (pipe(7)).
WIDE_BYTES = 256 << 10
RETRY_S = 0.005  # between looks at what the kernel has no event for, such as a missing reader
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


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
    _check(found, path)


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


def look_for_writers(reader: int, keep: int) -> tuple[bool, int]:
    """Has anybody but us the write end open? And the write end that we keep, which is opened anew to know it.

    While ours is closed the kernel tells of a pipe without writers (POLLHUP). Nobody notices: our read end stays open.
    """
    os.close(keep)
    try:
        has_writers = not _poll_now(reader, 0) & select.POLLHUP
    finally:
        # Through the read end, for the path may name another pipe by now: /proc/PID/fd opens the file itself.
        keep = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return has_writers, keep


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
        _check(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)  # a socket gives ENXIO as well
    except OSError:
        return False


def _check(found: os.stat_result, path: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _room_error(OSError(errno.ELOOP, ""), path)
    if not stat.S_ISFIFO(found.st_mode):
        raise RoomError(f"{path}: not a FIFO; move it away and run setup-pipes again")
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
