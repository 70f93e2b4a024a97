"""What was computed from files, kept for as long as the files stay the same.

One file in the user's cache folder, read whole, its values decoded when asked for. It is never needed: one
that is damaged, of another version, or cannot be read or written counts as empty. Several processes may use
it at once: each replaces it whole, and the last one wins; but one in a format to come is left as it is.

    modelpipes cache 1 0.1.0 1796087815434911052    the format, and what the values rest on; 0.1.0 named no format
    (checksum, values)
"""

from __future__ import annotations

import os
import re
import zlib
from typing import Generic, TypeVar

import msgspec

from modelpipes.gguf.smallfile import read_file, replace_file
from modelpipes.values.formats import MODEL_CACHE

T = TypeVar("T")

# A value has about 1 kB; more than people have model files, and read in some 50 ms.
MAX_ENTRIES = 20_000
MAX_FILE_BYTES = 64 << 20  # nothing that we wrote is larger
_CHECKSUM_BYTES = 4
_FORMAT = re.compile(rb"modelpipes cache (\d{1,9})[ \n]")


class _Entry(msgspec.Struct, array_like=True):
    stamp: tuple[int, ...]
    value: msgspec.Raw


class Cache(Generic[T]):
    """Values of one type, each for a file's path and its stamp (`ModelFile.stamp`, say)."""

    def __init__(self, path: str, type_: type[T], version: str) -> None:
        """The cache in the file `path`, or an empty one; `version` names the meaning of the values."""
        self._path = path
        self.refusal = ""  # why what is there is neither read nor replaced, in a line
        self._head = f"modelpipes cache {MODEL_CACHE.version} {version}\n".encode()
        self._decoder = msgspec.msgpack.Decoder(type_)
        self._encoder = msgspec.msgpack.Encoder()
        self._entries = self._load()
        self._used: set[bytes] = set()
        self._is_changed = False

    def get(self, path: str, stamp: tuple[int, ...]) -> T | None:
        """The value put for this path, if the file still has this stamp."""
        key = os.fsencode(path)
        entry = self._entries.get(key)
        if entry is None or entry.stamp != stamp:
            return None
        self._used.add(key)
        try:
            return self._decoder.decode(entry.value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def put(self, path: str, stamp: tuple[int, ...], value: T) -> None:
        """Keep a value for this path and stamp, in place of any other for this path."""
        key = os.fsencode(path)
        self._entries[key] = _Entry(stamp, msgspec.Raw(self._encoder.encode(value)))
        self._used.add(key)
        self._is_changed = True

    def save(self) -> bool:
        """Write what has changed since; whether it stands on the disk now.

        Entries of files that have vanished from the folders now used are dropped, and, above MAX_ENTRIES,
        those that were not used for longest.
        """
        if not self._is_changed:
            return True
        if self.refusal:
            return False
        self._drop_vanished()
        # What was used moves to the end: the front is what was not used for longest.
        for key in self._used & self._entries.keys():
            self._entries[key] = self._entries.pop(key)
        for key in list(self._entries)[: max(0, len(self._entries) - MAX_ENTRIES)]:
            del self._entries[key]
        body = self._encoder.encode(self._entries)
        data = self._head + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") + body
        self._is_changed = len(data) > MAX_FILE_BYTES or not replace_file(self._path, data)
        return not self._is_changed

    def _load(self) -> dict[bytes, _Entry]:
        data = read_file(self._path, MAX_FILE_BYTES)
        if found := _FORMAT.match(data):
            refusal = MODEL_CACHE.refusal(int(found[1]))
            self.refusal = refusal and f"{self._path}: {refusal}"
        start = len(self._head) + _CHECKSUM_BYTES
        body = memoryview(data)[start:]
        checksum = zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big")
        if data[:start] != self._head + checksum:
            return {}
        try:
            return msgspec.msgpack.decode(body, type=dict[bytes, _Entry])
        except msgspec.DecodeError:
            return {}

    def _drop_vanished(self) -> None:
        folders = {os.path.dirname(key) for key in self._used}
        # Only folders that have just answered are asked: another may lie on a disk that is away.
        gone = [
            key
            for key in self._entries
            if key not in self._used and os.path.dirname(key) in folders and not os.path.lexists(key)
        ]
        for key in gone:
            del self._entries[key]
