"""What an engine says: its last lines, followers of those to come, and a file that stays small."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from modelpipes.values.deadline import Deadline

KEPT_LINES = 1000  # some hundred requests of llama-server's chatter, also from before a restart
KEPT_LINE_BYTES = 2000  # a line that never ends must not fill our memory
FOLLOWED_LINES = 1000  # a follower that is slower than this loses the oldest ones
FILE_LIMIT_BYTES = 4 * 1024 * 1024  # of each of the two files; a day of an engine with a request every 10 s


class RotatedFile:
    """Files of at most `limit_bytes` each, `PATH` and before it `PATH.1` to the oldest; safe to use from any thread.

    Whatever is wrong with the disk, writing neither fails nor blocks for it: what cannot be written is
    dropped and counted, and writing goes on once it can.
    """

    def __init__(self, path: str, limit_bytes: int = FILE_LIMIT_BYTES, older: int = 1) -> None:
        """Nothing is opened before the first write. `older`: how many files there are beside PATH, at least 1."""
        self.path = path
        self.older = older
        self.limit_bytes = limit_bytes
        self.dropped_bytes = 0
        self.problem = ""  # why bytes were dropped last
        self._fd = -1
        self._size = 0
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append; lines are kept whole where they fit a file."""
        with self._lock:
            while data:
                part = self._part(data)
                if not self._append(part):
                    self.dropped_bytes += len(data)
                    return
                data = data[len(part) :]

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        with self._lock:
            self._close()

    def _part(self, data: bytes) -> bytes:
        """What of `data` goes into one file: all, or as many whole lines as there is room for."""
        self._open()
        room = self.limit_bytes - self._size
        if len(data) > room and self._size:
            end = data.rfind(b"\n", 0, max(room, 0)) + 1
            if end:
                return data[:end]
            self._rotate()
            room = self.limit_bytes - self._size
        if len(data) <= room:
            return data
        return data[: data.rfind(b"\n", 0, room) + 1 or room]

    def _append(self, part: bytes) -> bool:
        if self._fd < 0:
            return False
        begun = self._size
        try:
            while part:
                written = os.write(self._fd, part)
                self._size += written
                part = part[written:]
        except OSError as error:
            self.problem = error.strerror or str(error)
            # Half a chunk would count as dropped and yet be there.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, begun)
                self._size = begun
            # A folder removed and made again, a disk mounted anew: opened by its name next time.
            self._close()
            return False
        return True

    def _open(self) -> None:
        if self._fd >= 0:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(self.path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            self.problem = error.strerror or str(error)
            self._close()

    def _rotate(self) -> None:
        self._close()
        try:
            for number in range(self._first_free() - 1, 0, -1):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            os.replace(self.path, self.path + ".1")
        except OSError as error:
            self.problem = error.strerror or str(error)
            return  # full, and cannot be moved away: it ends here, for what it may grow to is promised
        self._open()

    def _first_free(self) -> int:
        """The first number without a file; the last one, whose file goes, where all have one."""
        return next((n for n in range(1, self.older) if not os.path.lexists(f"{self.path}.{n}")), self.older)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._size = 0


class Log:
    """The lines of one engine, over all its starts; safe to use from any thread."""

    def __init__(self, file: RotatedFile | None = None) -> None:
        self.file = file
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._partial = bytearray()
        self._followers: list[Follower] = []
        self._lock = threading.Lock()

    def take(self, data: bytes) -> None:
        """Take in what the engine has written, in pieces of any size. Never fails, never waits for a reader."""
        if self.file is not None:
            self.file.write(data)
        with self._lock:
            *whole, rest = data.split(b"\n")
            lines = []
            for line in whole:
                self._partial += line[: max(0, KEPT_LINE_BYTES - len(self._partial))]
                lines.append(_as_text(self._partial))
                self._partial.clear()
            self._partial += rest[: max(0, KEPT_LINE_BYTES - len(self._partial))]
            followers = self._keep(lines)
        for follower in followers:
            follower.tell()

    def note(self, text: str) -> None:
        """Add a line of our own, between what the engine says."""
        with self._lock:
            begun = bool(self._partial)
            lines = [_as_text(self._partial)] if begun else []
            self._partial.clear()
            followers = self._keep([*lines, text])
        if self.file is not None:
            self.file.write((b"\n" if begun else b"") + text.encode("utf-8", "replace") + b"\n")
        for follower in followers:
            follower.tell()

    def last(self, count: int = 20) -> list[str]:
        """The newest lines, up to `count`."""
        with self._lock:
            return list(self._lines)[-count:] if count > 0 else []

    def follow(self, backlog: int = 0, notify: Callable[[], object] | None = None) -> Follower:
        """A reader of the lines to come, and of the last `backlog`.

        `notify` is called from another thread whenever there are new ones; it must neither wait nor fail.
        """
        with self._lock:
            before = list(self._lines)[-backlog:] if backlog > 0 else []
            follower = Follower(self, before, notify)
            self._followers.append(follower)
            return follower

    def leave(self, follower: Follower) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._followers.remove(follower)

    def close(self) -> None:
        """Close the file; what follows opens it again."""
        if self.file is not None:
            self.file.close()

    def _keep(self, lines: list[str]) -> list[Follower]:
        """Add whole lines; who is to be told of them, once the lock is free."""
        if not lines:
            return []
        self._lines.extend(lines)
        for follower in self._followers:
            follower.add(lines)
        return list(self._followers)


class Follower:
    """One reader of a log; its lines wait here, the newest 1000 of them."""

    def __init__(self, log: Log, before: list[str], notify: Callable[[], object] | None) -> None:
        self.dropped = 0  # lines that were not read in time
        self._log = log
        self._lines = deque(before, maxlen=FOLLOWED_LINES)
        self._notify = notify
        self._closed = False
        self._came = threading.Condition()

    def read(self, deadline: Deadline) -> list[str]:
        """The lines that have come, as soon as there are any; none once closed, or at the deadline."""
        with self._came:
            while not self._lines and not self._closed and not deadline.has_passed():
                remaining_s = deadline.remaining_s()
                self._came.wait(None if remaining_s == float("inf") else remaining_s)
            lines = list(self._lines)
            self._lines.clear()
            return lines

    def close(self) -> None:
        """Follow no longer; who waits in `read` returns."""
        self._log.leave(self)
        with self._came:
            self._closed = True
            self._came.notify_all()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for Log

    def add(self, lines: list[str]) -> None:
        with self._came:
            self.dropped += max(0, len(self._lines) + len(lines) - FOLLOWED_LINES)
            self._lines.extend(lines)

    def tell(self) -> None:
        with self._came:
            self._came.notify_all()
        if self._notify is not None:
            self._notify()


def _as_text(line: bytes | bytearray) -> str:
    return bytes(line).decode("utf-8", "replace").rstrip("\r")
