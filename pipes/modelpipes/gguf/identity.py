"""Whether a model's files are still the ones that something was learnt of.

What is known of a model (predictions, measured bytes, kept conversations, failures) is known of its files as they were,
not of their name. Two values say which files those are:

- a *stamp*: what the file system says of each file. It costs a stat and is what one asks with, also often.
- an *identity*: the stamp, and a digest of each file's header, the bytes before its tensors. It costs a reading of the
  header (of 30 kB 0.1 ms, of 19 MB 60 ms on one core); what other weights would make wrong, as a kept conversation,
  asks with it.

Both are taken before the file is used. What was learnt counts as learnt of it where they are the same afterwards:
a file that changed meanwhile leaves something unknown, which belongs to neither.

A change of either is taken for another model's. That errs on one side: a change of owner or mode and another hard link
are none, and cost no more than a cold cache. (Where more would be lost, as an engine in memory, `are_others` is asked,
which passes over these.) On the other side errs only what neither shows: weights written over in place under the same
header, on a file system that keeps no time of change; those of Linux keep it, to 4 ms or less.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from modelpipes.errors import ModelFileError

Stamp: TypeAlias = tuple[tuple[int, ...], ...]

N_NUMBERS, SIZE, MODIFIED = 5, 2, 3  # of `numbers_of`: how many, and the places of two of them
DIGEST_BYTES = 16
UNREADABLE_BYTES = 64 << 10  # of what is no model file, as an engine's template: its beginning


@dataclass(frozen=True, slots=True)
class Identity:
    """A model's files as they are: their stamp, and a digest of each one's header, b"" where it cannot be read."""

    stamp: Stamp
    headers: tuple[bytes, ...]


def numbers_of(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Device, inode, size in bytes, and when its bytes and when anything of it changed, in ns since 1970.

    The last is what nobody can put back: it tells of a file that was written over and given its old time again.
    """
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp_of(*paths: str) -> Stamp:
    """Of each model its shards, in order, as they are now; () for one that is missing. Nothing is opened."""
    return tuple(_numbers_at(shard) for shard in _shards(paths))


def identify(*paths: str) -> Identity:
    """Of each model its shards, in order, as they are now. Raises nothing: what cannot be read has no header."""
    found = [_look_into(shard) for shard in _shards(paths)]
    return Identity(tuple(numbers for numbers, _ in found), tuple(digest for _, digest in found))


def are_others(before: Stamp, now: Stamp) -> bool:
    """Whether other files lie there, or none, by all but the time of change, which a link or a mode changes too."""
    return [numbers[:-1] for numbers in before] != [numbers[:-1] for numbers in now]


def _shards(paths: Iterable[str]) -> list[str]:
    from modelpipes.gguf.shards import shard_names  # lazily, as below: who lists files by their stamps reads none

    return [shard for path in paths for shard in shard_names(path)]


def _numbers_at(path: str) -> tuple[int, ...]:
    try:
        return numbers_of(os.stat(path))
    except (OSError, ValueError):
        return ()


def _look_into(path: str) -> tuple[tuple[int, ...], bytes]:
    """The numbers are of the file whose bytes are read, whatever lies under its name a moment later."""
    try:
        # Non-blocking: a pipe in its place must not make us wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return (), b""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return numbers_of(status), b""
        return numbers_of(status), _digest(descriptor)
    except OSError:
        return (), b""
    finally:
        os.close(descriptor)


def _digest(descriptor: int) -> bytes:
    from hashlib import blake2b

    from modelpipes.gguf.header import read_header

    try:
        left = read_header(f"/proc/self/fd/{descriptor}").data_offset
    except ModelFileError:
        left = UNREADABLE_BYTES
    return blake2b(os.pread(descriptor, left, 0), digest_size=DIGEST_BYTES).digest()
