"""Read the header of a model file: what it says of itself, and its tensors."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from modelpipes.errors import ModelFileError
from modelpipes.gguf.layout import (
    BIG,
    LEAST_ENTRY_BYTES,
    LEAST_TENSOR_BYTES,
    LITTLE,
    MAX_HEADER_BYTES,
    WORK_OF_ENTRY,
    WORK_OF_TENSOR,
    ByteOrder,
    Flaw,
    Layout,
    Reading,
    Short,
    Unsure,
)
from modelpipes.gguf.metadata import ALIGNMENT_KEY, ArrayInfo, TextInfo, Value, read_metadata
from modelpipes.gguf.tensors import Tensor, read_tensors

__all__ = ["ArrayInfo", "Header", "Shard", "Tensor", "TextInfo", "Value", "read_header"]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = 2, 3
_PREAMBLE_BYTES: Final = 24
# A header without a vocabulary fits in the first, nearly all others in the second.
_FIRST_READ_BYTES: Final = 64 << 10
_SECOND_READ_BYTES: Final = 8 << 20
_DEFAULT_ALIGNMENT: Final = 32
# More than a page of any machine; 32 is what all files have.
_MAX_ALIGNMENT: Final = 1 << 20
# As src/llama-hparams.h has it.
_MAX_LAYERS: Final = 512
# Every language model has this tensor.
_TOKEN_EMBEDDING: Final = b"token_embd.weight"


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a model a file holds."""

    number: int
    """Counted from 0, as `split.no` is; the names of files count from 1."""
    count: int
    n_tensors: int
    """Of all shards together."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a model file says of itself.

    `metadata` has every key; a text of more than 1,024 bytes is a `TextInfo`, an array of more than 1,024
    items (or with such a text) an `ArrayInfo`. `tensors` are in the file's order; their data begin at byte
    `data_offset`. `shard` is None for a model in one file. `signature` is a digest of all that a rating may
    rest on: the tensors and the metadata, without `tokenizer.` (but for the number of tokens) and without
    what only describes under `general.`; where it is equal, so is every rating.
    """

    path: str
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    shard: Shard | None
    version: int
    byte_order: ByteOrder
    alignment: int
    data_offset: int
    file_size: int
    signature: bytes

    @property
    def architecture(self) -> str | None:
        """As llama.cpp calls it: "llama", "qwen3moe"; None where the file does not say."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None


def read_header(path: str | bytes | os.PathLike[str], strict: bool = False) -> Header:
    """Read the header of one file; of a shard, what that shard alone says (see `shards.read_model`).

    Raises ModelFileError for whatever is no whole, readable model file, and nothing else. Never blocks on a
    FIFO. No header costs more than some 50 ms and 64 MB: one beyond 32 MiB or 900,000 entries is refused,
    twice what the largest of real life need.

    A vocabulary is searched past, not walked: 2 ms instead of 20. What was found is taken only if the whole
    header closes (every key, every tensor, contiguous, to the file's last byte), if the strings before each
    end found reach exactly to it (see `strings.end_of_strings`), and if nowhere in what was read another
    tensor table can lie; else it is walked. That excludes every accident and every imitation inside texts
    shorter than 256 bytes. It cannot exclude a file made for it by hand, with a longer text in its
    vocabulary that holds dozens of false texts and keys besides: `strict` always walks, and is what to use
    before anything rests on a file from nobody knows where.
    """
    name = os.fsdecode(path)
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(name, "not a regular file")
        return _read(name, fd, status.st_size, not strict)
    except Flaw as flaw:
        raise ModelFileError(name, flaw.reason, flaw.offset) from None
    except OSError as error:
        raise ModelFileError(name, f"cannot be read: {error.strerror}") from None
    except ValueError:  # a zero byte in the path
        raise ModelFileError(name, "not a path") from None
    finally:
        if fd >= 0:
            os.close(fd)


def _read(path: str, fd: int, size: int, searches: bool) -> Header:
    limit = min(size, MAX_HEADER_BYTES)
    wanted = min(_FIRST_READ_BYTES, limit)
    while True:
        buf = os.pread(fd, wanted, 0)
        is_all = len(buf) >= limit or len(buf) < wanted  # shorter: the file shrank meanwhile
        layout, version = _preamble(buf)
        reading = Reading(buf, layout, searches and layout is LITTLE)
        try:
            return _parse(path, reading, version, size)
        except Unsure:
            searches = False
        except Flaw:
            if not reading.searched_from:
                raise
            searches = False
        except (Short, struct.error, OverflowError):
            if not is_all:
                pass
            elif reading.searched_from:
                searches = False
            elif len(buf) < size:
                raise Flaw(f"damaged: a header of more than {MAX_HEADER_BYTES >> 20} MiB", len(buf)) from None
            else:
                raise Flaw("incomplete download: the file ends inside its header", len(buf)) from None
        # What is walked is not walked twice: all that can be needed at once.
        wanted = _SECOND_READ_BYTES if searches and wanted < _SECOND_READ_BYTES else limit
        wanted = min(wanted, limit)
        buf = b""
        del reading


def _preamble(buf: bytes) -> tuple[Layout, int]:
    if buf[:4] != _MAGIC:
        raise Flaw("not a GGUF file" if buf else "an empty file", 0)
    if len(buf) < _PREAMBLE_BYTES:
        raise Flaw("incomplete download: the file ends inside its header", len(buf))
    layout = LITTLE
    (version,) = layout.u32(buf, 4)
    if version and version & 0xFFFF == 0:
        layout = BIG
        (version,) = layout.u32(buf, 4)
    if version == 1:
        raise Flaw("GGUF version 1, which llama.cpp no longer loads: convert the model again", 4)
    if version not in _VERSIONS:
        raise Flaw(f"GGUF version {version}, which is not known", 4)
    return layout, version


def _parse(path: str, reading: Reading, version: int, size: int) -> Header:
    n_tensors, n_kv = reading.layout.two_u64(reading.buf, 8)
    reading.charge(WORK_OF_ENTRY * n_kv + WORK_OF_TENSOR * n_tensors, 8)
    if LEAST_ENTRY_BYTES * n_kv + LEAST_TENSOR_BYTES * n_tensors > size - _PREAMBLE_BYTES:
        raise Short
    metadata, rated_bytes, table = read_metadata(reading, _PREAMBLE_BYTES, n_kv)
    alignment = metadata.get(ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # read_metadata has seen to that
    if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise Flaw(f"damaged: an alignment of {alignment}", table)
    tensors, end, data_bytes = read_tensors(reading, table, n_tensors, alignment)
    if end > size:
        raise Short
    data_offset = -(-end // alignment) * alignment if tensors else end
    missing = data_offset + data_bytes - size
    if missing > 0 and data_bytes:
        raise Flaw(f"incomplete download: the file ends {missing} bytes before the last tensor", size)
    if reading.searched_from:
        _see_that_it_is_the_only_one(reading, table, end, size - data_offset - data_bytes < alignment)
    rated_bytes.append(reading.buf[table:end])
    return Header(
        path,
        metadata,
        tensors,
        _shard(metadata),
        version,
        reading.layout.byte_order,
        alignment,
        data_offset,
        size,
        blake2b(b"".join(rated_bytes), digest_size=16).digest(),
    )


def _see_that_it_is_the_only_one(reading: Reading, table: int, end: int, fills_the_file: bool) -> None:
    """Raise Unsure if what was searched past, or what follows the header, may hold the true tensors."""
    count = reading.buf.count
    if not fills_the_file or count(_TOKEN_EMBEDDING, reading.searched_from) != count(_TOKEN_EMBEDDING, table, end):
        raise Unsure


def _shard(metadata: Mapping[str, Value]) -> Shard | None:
    count = metadata.get("split.count", 0)
    if not isinstance(count, int) or count < 2:
        return None
    number, n_tensors = metadata.get("split.no"), metadata.get("split.tensors.count")
    if not isinstance(number, int) or not 0 <= number < count or not isinstance(n_tensors, int):
        raise Flaw(f"damaged: a shard of {count} that does not say which it is", None)
    return Shard(number, count, n_tensors)
