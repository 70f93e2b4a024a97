"""Which daemons of ours run, and where: one small file each, locked as long as its daemon lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

import msgspec

from modelpipes.errors import UsageError
from modelpipes.paths import cache_dir, runtime_dir


class Daemon(msgspec.Struct, frozen=True):
    """A daemon: its process, where it listens, the configuration it was given, and the key it demands."""

    pid: int
    listen: str
    config: str = ""
    key: str = ""


def folder() -> str:
    """Where the files are; nobody else may read them."""
    return os.path.join(runtime_dir() or cache_dir(), "serve")


@contextlib.contextmanager
def recorded(daemon: Daemon) -> Iterator[None]:
    """Have it found by `running` until the end; UsageError where one listens there already."""
    os.makedirs(folder(), mode=0o700, exist_ok=True)
    path = os.path.join(folder(), f"{daemon.listen.replace('/', '%')}.json")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"serve-models listens on {daemon.listen} already: serve-models status") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(daemon), 0)
        yield
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    finally:
        os.close(descriptor)


def running() -> list[Daemon]:
    """Those that run now; the files of those that were killed are passed over."""
    found = []
    try:
        paths = sorted(entry.path for entry in os.scandir(folder()) if entry.name.endswith(".json"))
    except OSError:
        return []
    for path in paths:
        with contextlib.suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(msgspec.json.decode(file.read(), type=Daemon))
    return found
