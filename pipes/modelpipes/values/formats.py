"""The formats of what is kept, and their versions: what 0.1.0 wrote is read, what a later program writes is refused.

Whatever names no version is of version 1. A version grows when a program that reads the one before would misread what
is written now; what it may pass over, as a further field, is no new version. For a new one:

1. The version here grows by one. The writer states it where older programs look: `version`, `format`, the first words.
2. The reader goes on to take each version before, and sees to `refusal` before it decodes, or overwrites, anything.
3. Files that a program of the last version wrote go to `tests/kept/VERSION/`; `tests/commands/test_kept.py` opens them.
4. The table in `docs/reference.md`, "What is kept", has what is said of it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from modelpipes.values.version import __version__


class Format(NamedTuple):
    """What something kept is, in words, and the newest version of it that this program reads, and writes."""

    name: str
    version: int

    def refusal(self, version: int) -> str:
        """Why something of a version is not read, in a line that names both versions; empty where it is."""
        if 1 <= version <= self.version:
            return ""
        known = "version 1" if self.version == 1 else f"versions 1 to {self.version}"
        advice = ": use a newer modelpipes" if version > self.version else ""
        return f"{self.name} of version {version}; this modelpipes ({__version__}) reads {known}{advice}"


TRANSCRIPT = Format("a transcript", 1)
CONFIGURATION = Format("a configuration", 1)
MODEL_CACHE = Format("a cache of model files", 1)
FOLDERS = Format("a list of folders", 1)
DAEMON = Format("a record of a daemon", 1)
SEAT = Format("a record of a seat", 1)
BUILD = Format("a record of a build", 1)
BUILD_TREE = Format("a record of a build under way", 1)

FORMATS = (TRANSCRIPT, CONFIGURATION, MODEL_CACHE, FOLDERS, DAEMON, SEAT, BUILD, BUILD_TREE)


class _Stamp(msgspec.Struct):
    format: int = 1


_stamp = msgspec.json.Decoder(_Stamp)


def format_of(record: bytes) -> int:
    """The version that a JSON record states in `format`; 1 where it states none, or is no record."""
    try:
        return _stamp.decode(record).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
