"""What a person typed, kept for the next time: a file of their own, bounded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable

from modelpipes.values.paths import make_private, state_dir

KEPT_ENTRIES = 1000
KEPT_BYTES = 1024 * 1024
ENTRY_BYTES = 16 * 1024  # a larger one was pasted, and lies somewhere already


def typed_file() -> str:
    """Where it is kept."""
    return os.path.join(state_dir(), "typed.jsonl")


class Typed:
    """The newest entries of the file, a JSON string a line; what cannot be kept is told once, and typing goes on."""

    def __init__(self, path: str, report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report

    def load(self) -> list[str]:
        """The entries, oldest first; a file that has grown beyond its bound is made small."""
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as e:
            self._complain("read", e)
            return []
        entries = []
        for line in data.splitlines():
            with contextlib.suppress(ValueError):  # cut off by a full disk, or a hand's
                if isinstance(entry := json.loads(line), str):
                    entries.append(entry)
        kept = _newest(entries)
        if len(kept) < len(entries):
            self._write(b"".join(map(_line, kept)), is_whole=True)
        return kept

    def add(self, entry: str) -> None:
        """Keep an entry, unless it is a large one."""
        line = _line(entry)
        if len(line) <= ENTRY_BYTES:
            self._write(line)

    def _write(self, data: bytes, *, is_whole: bool = False) -> None:
        path = f"{self._path}.{os.getpid()}" if is_whole else self._path
        try:
            make_private(os.path.dirname(path))
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                os.write(descriptor, data)  # in one: another terminal's line does not come between
            finally:
                os.close(descriptor)
            if is_whole:
                os.replace(path, self._path)
        except OSError as e:
            self._complain("written", e)

    def _complain(self, what: str, error: OSError) -> None:
        self._report(f"{self._path}: what you type cannot be {what}: {(error.strerror or str(error)).lower()}")
        self._report = lambda line: None


def _newest(entries: list[str]) -> list[str]:
    """As many of the newest as may be kept: half of the bound where there are too many, so that it lasts a while."""
    if len(entries) <= KEPT_ENTRIES and sum(map(len, map(_line, entries))) <= KEPT_BYTES:
        return entries
    size_bytes, kept = 0, 0
    for entry in reversed(entries[-KEPT_ENTRIES // 2 :]):
        size_bytes += len(_line(entry))
        if size_bytes > KEPT_BYTES // 2:
            break
        kept += 1
    return entries[len(entries) - kept :]


def _line(entry: str) -> bytes:
    return json.dumps(entry).encode() + b"\n"  # ASCII: half a surrogate pair is no UTF-8
