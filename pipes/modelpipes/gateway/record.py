"""Which daemons of ours run, and where: one small file each, locked as long as its daemon lives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from modelpipes.errors import FileError, PipesError, UsageError
from modelpipes.lockfile import Lock, look
from modelpipes.values.formats import DAEMON, format_of
from modelpipes.values.paths import cache_dir, make_private, runtime_dir


class Daemon(msgspec.Struct, frozen=True):
    """A daemon: its process, where it listens, the configuration it was given, and the key it demands.

    One that `is_private` belongs to a leader of a conversation, and ends with it.
    """

    pid: int
    listen: str
    config: str = ""
    key: str = ""
    is_private: bool = False
    format: int = DAEMON.version


def folder() -> str:
    """Where the files are; nobody else may read them."""
    return os.path.join(runtime_dir() or cache_dir(), "serve")


@contextlib.contextmanager
def recorded(daemon: Daemon) -> Iterator[None]:
    """Have it found by `running` until the end; UsageError where one listens there already, FileError."""
    try:
        make_private(folder())
    except OSError as error:
        raise FileError(f"{folder()}: cannot be made: {error.strerror}") from None
    lock = Lock.try_take(_path(daemon.listen))
    if lock is None:
        raise taken(daemon.listen)
    with lock:
        lock.clear()  # of one that was killed
        lock.write(msgspec.json.encode(daemon))
        yield
        lock.remove()


def taken(listen: str) -> UsageError:
    """What is said to the second daemon of one address."""
    return UsageError(f"another serve-models listens on {listen} already: see serve-models status, or choose --listen")


def running() -> list[Daemon]:
    """Those that run now; the file of one that was killed is passed over, and removed where it was private.

    So is that of one whose record is of a version to come: see `refusals`.
    """
    found = []
    for path in _paths():
        with contextlib.suppress(PipesError, msgspec.DecodeError):
            is_alive, text = look(path)
            if DAEMON.refusal(format_of(text)):
                continue
            daemon = msgspec.json.decode(text, type=Daemon)
            if is_alive:
                found.append(daemon)
            elif daemon.is_private and (lock := Lock.try_take(path)):  # nobody else will listen on its port
                with lock:
                    lock.remove()
    return found


def refusals(listen: str | None) -> list[str]:
    """Of those that run, there or anywhere, and whose record is of a version to come: why it is not read, in a line."""
    found = []
    for path in _paths() if listen is None else [_path(listen)]:
        with contextlib.suppress(PipesError):
            is_alive, text = look(path)
            if is_alive and (refusal := DAEMON.refusal(format_of(text))):
                found.append(f"{path}: {refusal}")
    return found


def is_running(listen: str) -> bool:
    """Whether a daemon of ours listens there, of whatever version."""
    with contextlib.suppress(PipesError):
        return look(_path(listen))[0]
    return False


def _paths() -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir(folder()) if entry.name.endswith(".json"))
    except OSError:
        return []


def _path(listen: str) -> str:
    return os.path.join(folder(), f"{listen.replace('/', '%')}.json")
