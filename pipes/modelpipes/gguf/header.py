"""Read the header of a model file: what it says of itself, and its tensors."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from modelpipes.errors import ModelFileError
from modelpipes.gguf.layout import BIG, LEAST_ENTRY_BYTES, LEAST_TENSOR_BYTES, ByteOrder
from modelpipes.gguf.metadata import ALIGNMENT_KEY, ArrayInfo, TextInfo, Value, read_metadata
from modelpipes.gguf.reading import Flaw, Reading
from modelpipes.gguf.strings import Unsure
from modelpipes.gguf.tensors import Tensor, read_tensors

__all__ = ["ArrayInfo", "Header", "Shard", "Tensor", "TextInfo", "Value", "read_header"]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = 2, 3
_PREAMBLE_BYTES: Final = 24
# The tensor that all language models have: the mark of a header.
_TOKEN_EMBEDDING: Final = b"token_embd.weight"
# In `Reading.charge`'s coin.
_WORK_OF_ENTRY: Final = 40
_WORK_OF_TENSOR: Final = 35
_DEFAULT_ALIGNMENT: Final = 32
# More than a page of any machine; 32 is what all files have.
_MAX_ALIGNMENT: Final = 1 << 20


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
    FIFO. Whatever the file says, a reading ends within some 50 ms and 64 MB: a header beyond 32 MiB or
    850,000 entries is refused; the largest of real life has half the bytes and 780,000.

    The end of a vocabulary is searched for, not walked to: 2 ms instead of 20. An end is taken only if the
    texts before it reach exactly to it and nothing in a text shorter than 256 bytes can imitate it (see
    `strings.end_of_texts`), and if then the whole header closes: every key, every tensor, contiguous, to the
    last byte of the file. Else all is walked. `strict` always walks. Only that notices damage inside a
    vocabulary, and only that sees through a file made for it by hand: with a longer text in its vocabulary,
    in which dozens of false texts and then a false header lie, and the true one far behind. No reading that
    does not look at each text's length can.
    """
    name = os.fsdecode(path)
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(name, "not a regular file")
        if not strict:
            reading = Reading(fd, status.st_size, searches=True)
            try:
                return _parse(name, reading)
            except Unsure:
                pass
            except Flaw:
                if not reading.has_searched:
                    raise
        return _parse(name, Reading(fd, status.st_size, searches=False))
    except Flaw as flaw:
        raise ModelFileError(name, flaw.reason, flaw.offset) from None
    except OSError as error:
        raise ModelFileError(name, f"cannot be read: {error.strerror}") from None
    except ValueError:  # a zero byte in the path
        raise ModelFileError(name, "not a path") from None
    finally:
        if fd >= 0:
            os.close(fd)


def _parse(path: str, reading: Reading) -> Header:
    version = _read_version(reading)
    n_tensors, n_kv = reading.layout.two_u64(reading.buf, 8)
    reading.charge(_WORK_OF_ENTRY * n_kv + _WORK_OF_TENSOR * n_tensors, 8)
    if LEAST_ENTRY_BYTES * n_kv + LEAST_TENSOR_BYTES * n_tensors > reading.size - _PREAMBLE_BYTES:
        raise Flaw("incomplete download: the file ends inside its header", reading.size)
    metadata, rated_bytes, pos = read_metadata(reading, _PREAMBLE_BYTES, n_kv)
    alignment = metadata.get(ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # read_metadata has seen to that
    if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise Flaw(f"damaged: an alignment of {alignment}", None)
    tensors, table, end, data_bytes = read_tensors(reading, pos, n_tensors, alignment)
    data_offset = -(-end // alignment) * alignment if tensors else end
    unused_bytes = reading.size - data_offset - data_bytes
    if unused_bytes < 0 and (data_bytes or end > reading.size):
        raise Flaw(f"incomplete download: the file ends {-unused_bytes} bytes before the last tensor", reading.size)
    if reading.has_searched and (
        unused_bytes >= alignment or reading.buf.find(_TOKEN_EMBEDDING, end - reading.base) >= 0
    ):
        raise Unsure  # this header does not account for the whole file, or a second one follows it
    return Header(
        path,
        metadata,
        tensors,
        _shard(metadata),
        version,
        reading.layout.byte_order,
        alignment,
        data_offset,
        reading.size,
        blake2b(b"".join(rated_bytes + table), digest_size=16).digest(),
    )


def _read_version(reading: Reading) -> int:
    """The file's version of GGUF; the reading goes on in the file's byte order."""
    buf = reading.buf
    if buf[:4] != _MAGIC:
        raise Flaw("not a GGUF file" if buf else "an empty file", 0)
    if len(buf) < _PREAMBLE_BYTES:
        raise Flaw("incomplete download: the file ends inside its header", len(buf))
    (version,) = reading.layout.u32(buf, 4)
    if version and version & 0xFFFF == 0:
        reading.layout, reading.searches = BIG, False
        (version,) = BIG.u32(buf, 4)
    if version == 1:
        raise Flaw("GGUF version 1, which llama.cpp no longer loads: convert the model again", 4)
    if version not in _VERSIONS:
        raise Flaw(f"GGUF version {version}, which is not known", 4)
    assert isinstance(version, int)
    return version


def _shard(metadata: Mapping[str, Value]) -> Shard | None:
    count = metadata.get("split.count", 0)
    if not isinstance(count, int) or count < 2:
        return None
    number, n_tensors = metadata.get("split.no"), metadata.get("split.tensors.count")
    if not isinstance(number, int) or not 0 <= number < count or not isinstance(n_tensors, int):
        raise Flaw(f"damaged: a shard of {count} that does not say which it is", None)
    return Shard(number, count, n_tensors)
