"""Where a report goes: stdout, or a file that is appended to."""

from __future__ import annotations

import os
import select
import stat
from types import TracebackType

from modelpipes.errors import DeadlineError, FileError
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline


class Destination:
    """stdout, or a file that is appended to; a FIFO too, as long as it has a reader."""

    def __init__(self, path: str | None, timeout_s: float | None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._descriptor = output.STDOUT
        if path is None:
            return
        try:
            # Not blocking: a FIFO that nobody reads would hold us in open(2), a full one in write(2).
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(os.path.expanduser(path), flags, 0o666)
        except OSError as error:
            raise FileError(f"{path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None

    @property
    def is_screen(self) -> bool:
        """Can it be painted again and again?"""
        return self._path is None and os.isatty(self._descriptor) and os.environ.get("TERM") not in (None, "", "dumb")

    @property
    def width(self) -> int | None:
        return output.width() if self._path is None else None

    def needs_header(self, header: str) -> bool:
        """Is there no earlier record? FileError where that has another CSV header, which this one would not go by."""
        if self._path is None or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return True
        with open(os.path.expanduser(self._path), "rb") as file:
            there = file.read(len(header)).decode("utf-8", "replace")
        if there not in ("", header):
            raise FileError(
                f"{self._path}: it has other columns: name another file, or give the options that it began with"
            )
        return not there

    def write(self, text: str) -> None:
        """Raises BrokenPipeError when nobody reads it any more, FileError, DeadlineError for a reader that stalls."""
        if self._path is None:
            output.write_text(text)
            return
        limit = Deadline.after(self._timeout_s)
        rest = memoryview(text.encode("utf-8", "replace"))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                if not poll.poll(limit.poll_ms()):
                    raise DeadlineError(f"{self._path}: its reader takes nothing") from None
            except BrokenPipeError:
                raise
            except OSError as error:
                raise FileError(f"{self._path}: cannot be written: {error.strerror}") from None

    def wait(self, until: Deadline) -> None:
        """Return at the moment; BrokenPipeError as soon as the reader is gone."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        while not until.has_passed():
            for _, event in poll.poll(until.poll_ms()):
                if event & (select.POLLERR | select.POLLHUP):
                    raise BrokenPipeError
                poll.unregister(self._descriptor)  # closed by somebody: there is nothing to learn from it

    def __enter__(self) -> Destination:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            os.close(self._descriptor)
            self._descriptor = -1
