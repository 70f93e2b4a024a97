"""Events as a file of JSON Lines that rotates; a thread writes, so that no disk holds up what happens."""

from __future__ import annotations

import os
import queue
import stat
import threading
import time

import msgspec

from modelpipes.engine.logs import RotatedFile
from modelpipes.errors import FileError
from modelpipes.events import Missed
from modelpipes.gateway.wire import EventLine
from modelpipes.serving.ring import Entry, moment
from modelpipes.values.paths import make_private

WAITING_EVENTS = 8192  # for a disk that is slow: some seconds of the busiest daemon
CLOSE_S = 5.0  # for a disk to take what waits; what it does not take by then is lost


class EventFile:
    """Give `take` to a ring. What cannot be written is counted, and told in the file once it can be written again."""

    def __init__(self, path: str, size_bytes: int, older: int) -> None:
        """`PATH`, and `older` files before it, PATH.1 the youngest of them, each of at most so many bytes.

        FileError where nothing can be written there.
        """
        self._file = RotatedFile(path, size_bytes, older)
        self._waiting: queue.Queue[Entry | None] = queue.Queue(WAITING_EVENTS)
        self._lost = 0
        self._lost_lock = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="events", daemon=True)
        _make_ready(path)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why something was not written last."""
        return self._file.problem

    def take(self, entry: Entry) -> None:
        """Have it written; from any thread, at once."""
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._lose(1)

    def close(self) -> None:
        """Write what waits, and end."""
        try:
            self._waiting.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _lose(self, count: int) -> None:
        with self._lost_lock:
            self._lost += count

    def _write_all(self) -> None:
        last_id = 0
        while (entry := self._waiting.get()) is not None:
            # Where some are missing before this one is known by its id; the count is told all the same.
            self._tell_lost(last_id)
            if not self._write(entry.json()):
                self._lose(1)
            last_id = entry.id
        self._tell_lost(last_id)
        self._file.close()

    def _tell_lost(self, id_: int) -> None:
        with self._lost_lock:
            lost, self._lost = self._lost, 0
        if not lost:
            return
        why = self._file.problem or "the disk was slower than events came"
        told = EventLine(id_, moment(time.time()), Missed(lost, f"not written: {why}"))
        if not self._write(msgspec.json.encode(told)):
            self._lose(lost)

    def _write(self, line: bytes) -> bool:
        before = self._file.dropped_bytes
        self._file.write(line + b"\n")
        return self._file.dropped_bytes == before


def _make_ready(path: str) -> None:
    """See that it can be written, and end a line that a killed daemon left half written: the next would go with it.

    FileError.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if folder := os.path.dirname(path):
            make_private(folder)
        fd = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileError(f"events.file: {path} is no file: name another")
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise FileError(f"events.file: {path} cannot be written ({why}): name another") from None
