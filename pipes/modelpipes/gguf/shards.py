"""A model that is split over several files: which belong together, and their headers as one.

llama.cpp finds the others by name (`llama_split_path` in src/llama.cpp): PREFIX-00001-of-00003.gguf.
"""

from __future__ import annotations

import os
from dataclasses import replace
from hashlib import blake2b
from typing import Final, NamedTuple

from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import Header, Tensor, read_header

_SUFFIX: Final = ".gguf"
_DIGITS: Final = 5
_MIDDLE: Final = "-of-"
_MAX_NAMED: Final = 5


class ShardName(NamedTuple):
    """What a file's name says of its place; `number` counts from 1, as names do."""

    prefix: str
    number: int
    count_of_shards: int

    def path(self, number: int) -> str:
        """The path of another shard of the same model."""
        return f"{self.prefix}-{number:0{_DIGITS}}{_MIDDLE}{self.count_of_shards:0{_DIGITS}}{_SUFFIX}"


def parse_name(path: str) -> ShardName | None:
    """What a path says of its place among shards; None if it is not named as a shard."""
    if not path.endswith(_SUFFIX):
        return None
    rest, middle, count = path[: -len(_SUFFIX)].rpartition(_MIDDLE)
    prefix, dash, number = rest.rpartition("-")
    if not (middle and dash and os.path.basename(prefix)):
        return None
    if not all(len(digits) == _DIGITS and digits.isascii() and digits.isdigit() for digits in (number, count)):
        return None
    return ShardName(prefix, int(number), int(count)) if 1 <= int(number) <= int(count) else None


def shard_names(path: str | bytes | os.PathLike[str]) -> tuple[str, ...]:
    """The paths of a model's files, in order, by the name of one of them; nothing is opened.

    The path itself if it is not named as a shard.
    """
    text = os.fsdecode(path)
    name = parse_name(text)
    if name is None:
        return (text,)
    return tuple(name.path(number) for number in range(1, name.count_of_shards + 1))


def read_model(path: str | bytes | os.PathLike[str], strict: bool = False) -> Header:
    """Read the header of a model as a whole, by any one of its files.

    For a model in one file that is `read_header`. Shards are read each once and joined: the metadata,
    `data_offset` and alignment of the first, the tensors of all (a tensor's offset counts within its own
    shard), `file_size` in total, `shard` None. Raises ModelFileError, also for missing shards, by name.
    """
    header = read_header(path, strict)
    return header if header.shard is None else _join(header, strict)


def _join(given: Header, strict: bool) -> Header:
    shard = given.shard
    name = parse_name(given.path)
    assert shard is not None
    if name is None or (name.number, name.count_of_shards) != (shard.number + 1, shard.count):
        wanted = ShardName("NAME", 1, shard.count).path(shard.number + 1)
        raise ModelFileError(
            given.path,
            f"shard {shard.number + 1} of {shard.count} must be named like {wanted} for the others to be found",
        )
    paths = [name.path(number) for number in range(1, shard.count + 1)]
    missing = [os.path.basename(path) for path in paths if not os.path.exists(path)]
    if missing:
        rest = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise ModelFileError(given.path, f"missing shards: {', '.join(missing[:_MAX_NAMED])}{rest}")
    headers = [given if path == given.path else read_header(path, strict) for path in paths]
    tensors: list[Tensor] = []
    for number, header in enumerate(headers):
        if header.shard is None or (header.shard.number, header.shard.count) != (number, shard.count):
            raise ModelFileError(header.path, f"damaged: does not say that it is shard {number + 1} of {shard.count}")
        tensors += header.tensors
    first = headers[0]
    assert first.shard is not None
    if not len({tensor.name for tensor in tensors}) == len(tensors) == first.shard.n_tensors:
        raise ModelFileError(
            first.path,
            f"damaged: {len(tensors)} tensors in all shards instead of {first.shard.n_tensors} different ones",
        )
    return replace(
        first,
        tensors=tuple(tensors),
        shard=None,
        file_size=sum(header.file_size for header in headers),
        signature=blake2b(b"".join(header.signature for header in headers), digest_size=16).digest(),
    )
