"""A model as it lies on the disk: one file or a set of shards, its name, and what is wrong with one that is none."""

from __future__ import annotations

import binascii
import itertools
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from modelpipes.gguf.identity import MODIFIED, N_NUMBERS, SIZE, numbers_of
from modelpipes.terminal.safetext import make_line

SUFFIX = ".gguf"
# llama.cpp's llama_split_path (src/llama.cpp): five digits, counted from 1.
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})", re.DOTALL)
# A file name may claim 99,999 shards: the rest is a number.
MAX_NAMED_SHARDS = 8


class ModelFile(msgspec.Struct, frozen=True):
    """A model on the disk, its header unread.

    `name` is what a person types; the paths are as the system knows them, shards in order, and may hold
    surrogates for what is no UTF-8: see `printable`. `stamp` has the numbers of each path in a row (see
    `identity.numbers_of`); while it stays, the content is taken to be the same.
    """

    name: str
    paths: tuple[str, ...]
    stamp: tuple[int, ...]

    @property
    def path(self) -> str:
        """The file to give to an engine: the first shard."""
        return self.paths[0]

    @property
    def size_bytes(self) -> int:
        """Of all shards together."""
        return sum(self.stamp[SIZE::N_NUMBERS])

    @property
    def modified_ns(self) -> int:
        """When its newest part last changed, in nanoseconds since 1970."""
        return max(self.stamp[MODIFIED::N_NUMBERS])


class Problem(msgspec.Struct, frozen=True):
    """What could not be read, and why; `offset` is where in the file, if it came to that."""

    path: str
    reason: str
    offset: int | None = None


class Candidate(NamedTuple):
    """A file that may hold a model, or a shard of one, with its status."""

    path: str
    status: os.stat_result


def printable(path: str) -> str:
    """A path as it may be shown: one line, no control characters, valid Unicode."""
    return path if path.isprintable() else make_line(path)


def path_base64(path: str) -> str | None:
    """The exact bytes of a path in base64, where `printable` had to change it; else None."""
    return None if printable(path) == path else binascii.b2a_base64(os.fsencode(path), newline=False).decode("ascii")


def stem(path: str) -> str:
    """The file's name as people say it: printable, without folder, suffix and shard number."""
    return printable(_parse(path).base)


def shard_paths(path: str) -> list[str]:
    """Every path of the set that `path` is a shard of, in order; `path` alone if it is none."""
    base, _, count, suffix = _parse(path)
    if count == 0:
        return [path]
    folder = os.path.dirname(path)
    return [os.path.join(folder, f"{base}-{number:05d}-of-{count:05d}{suffix}") for number in range(1, count + 1)]


def model_of(name: str, files: Sequence[Candidate]) -> ModelFile:
    """The model that these files, the shards in order, make."""
    stamp = tuple(number for _, status in files for number in numbers_of(status))
    return ModelFile(name, tuple(file.path for file in files), stamp)


def group_shards(files: Iterable[Candidate], prefix: str = "") -> Iterator[ModelFile | Problem]:
    """The models that the files of one folder make; a set with missing shards is a problem that names them.

    `prefix` goes before each name.
    """
    sets: dict[tuple[str, int], dict[int, Candidate]] = {}
    for file in files:
        base, number, count, _ = _parse(file.path)
        if count == 0:
            yield model_of(prefix + printable(base), [file])
        else:
            sets.setdefault((base, count), {}).setdefault(number, file)
    for (base, count), shards in sets.items():
        ordered = [shards[number] for number in sorted(shards)]
        if len(ordered) == count:
            yield model_of(prefix + printable(base), ordered)
        else:
            yield Problem(ordered[0].path, _what_is_missing(base, count, shards))


class _Name(NamedTuple):
    base: str
    number: int  # of the shard, from 1
    n_shards: int  # 0 for a file that is none
    suffix: str


def _parse(path: str) -> _Name:
    name = os.path.basename(path)
    bare = name[: -len(SUFFIX)] if name[-len(SUFFIX) :].lower() == SUFFIX else name
    suffix = name[len(bare) :]
    shard = _SHARD.fullmatch(bare)
    if shard is None or not 1 <= int(shard[2]) <= int(shard[3]):
        return _Name(bare, 0, 0, suffix)
    return _Name(shard[1], int(shard[2]), int(shard[3]), suffix)


def _what_is_missing(base: str, count: int, present: Container[int]) -> str:
    absent = (number for number in range(1, count + 1) if number not in present)
    named = [f"{printable(base)}-{n:05d}-of-{count:05d}{SUFFIX}" for n in itertools.islice(absent, MAX_NAMED_SHARDS)]
    n_more = sum(1 for _ in absent)
    more = f" and {n_more} more" if n_more else ""
    return f"{len(named) + n_more} of {count} shards missing: {', '.join(named)}{more}"
