"""Read the header of a model file: what it says of itself, and its tensors."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple, TypeAlias

from modelpipes.errors import ModelFileError
from modelpipes.gguf.types import TENSOR_TYPES, type_name

MAX_KEPT_ITEMS = 1024
MAX_KEPT_TEXT = 1024
MAX_HEADER_BYTES = 32 << 20

ByteOrder: TypeAlias = Literal["little", "big"]
Scalar: TypeAlias = int | float | bool | str


class ArrayInfo(NamedTuple):
    """An array too long to keep; `type` is that of its items as GGUF names it: "string", "i32"."""

    type: str
    length: int


class TextInfo(NamedTuple):
    """A string too long to keep."""

    length: int
    """In bytes."""


Value: TypeAlias = Scalar | list[int] | list[float] | list[bool] | list[str] | ArrayInfo | TextInfo


class Shard(NamedTuple):
    """Which part of a model a file is."""

    number: int
    """Counted from 0, as `split.no` does."""
    count: int
    n_tensors: int
    """Of all shards together."""


class Tensor(NamedTuple):
    """One tensor's place and form; `shape` is in ggml's order, the contiguous dimension first."""

    name: str
    shape: tuple[int, ...]
    type: int
    """The id of its ggml type."""
    offset: int
    """From the header's `data_offset`."""
    n_bytes: int | None
    """None where the type is unknown."""

    @property
    def type_name(self) -> str:
        return type_name(self.type)


@dataclass(frozen=True, slots=True)
class Header:
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
        """`general.architecture`: "llama"; None where the file does not say."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None


_ITEMS = {0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"),
          6: ("f32", "f"), 7: ("bool", "?"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d")}
_STRING = 8
_ARRAY = 9


def read_header(path: str | bytes | os.PathLike[str], strict: bool = False) -> Header:
    name = os.fsdecode(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise ModelFileError(name, f"cannot be opened: {error}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(name, "not a regular file")
        data = os.pread(fd, min(status.st_size, MAX_HEADER_BYTES), 0)
    except OSError as error:
        raise ModelFileError(name, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    try:
        return _parse(name, data, status.st_size)
    except struct.error:
        raise ModelFileError(name, "incomplete download: the file ends inside its header", len(data)) from None


def _parse(path: str, buf: bytes, size: int) -> Header:
    if buf[:4] != b"GGUF":
        raise ModelFileError(path, "not a GGUF file", 0)
    order = "<"
    version = struct.unpack_from("<I", buf, 4)[0]
    if version & 0xFFFF == 0 and version:
        order = ">"
        version = struct.unpack_from(">I", buf, 4)[0]
    if version not in (2, 3):
        raise ModelFileError(path, f"version {version} is not supported", 4)
    n_tensors, n_kv = struct.unpack_from(order + "QQ", buf, 8)
    if n_kv * 13 + n_tensors * 24 > len(buf):
        raise ModelFileError(path, "the header's counts are larger than the file", 8)
    pos = 24

    def text() -> bytes:
        nonlocal pos
        length = struct.unpack_from(order + "Q", buf, pos)[0]
        pos += 8
        if length > len(buf) - pos:
            raise struct.error
        pos += length
        return buf[pos - length : pos]

    metadata: dict[str, Value] = {}
    digest = blake2b(digest_size=16)
    for _ in range(n_kv):
        start = pos
        key = text().decode("utf-8", "replace")
        if not key or key in metadata:
            raise ModelFileError(path, "empty or duplicate key", start)
        (kind,) = struct.unpack_from(order + "I", buf, pos)
        pos += 4
        value: Value
        if kind in _ITEMS:
            value = struct.unpack_from(order + _ITEMS[kind][1], buf, pos)[0]
            pos += struct.calcsize(order + _ITEMS[kind][1])
        elif kind == _STRING:
            raw = text()
            value = raw.decode("utf-8", "replace") if len(raw) <= MAX_KEPT_TEXT else TextInfo(len(raw))
        elif kind == _ARRAY:
            item, n = struct.unpack_from(order + "IQ", buf, pos)
            pos += 12
            if item in _ITEMS:
                n_bytes = n * struct.calcsize(order + _ITEMS[item][1])
                if n_bytes > len(buf) - pos:
                    raise struct.error
                if n <= MAX_KEPT_ITEMS:
                    value = list(struct.unpack_from(f"{order}{n}{_ITEMS[item][1]}", buf, pos))
                else:
                    value = ArrayInfo(_ITEMS[item][0], n)
                pos += n_bytes
            elif item == _STRING:
                if n * 8 > len(buf) - pos:
                    raise struct.error
                if n <= MAX_KEPT_ITEMS:
                    value = [text().decode("utf-8", "replace") for _ in range(n)]
                else:
                    for _ in range(n):
                        text()
                    value = ArrayInfo("string", n)
            else:
                raise ModelFileError(path, "unknown type of array", pos - 12)
        else:
            raise ModelFileError(path, "unknown type of value", pos - 4)
        metadata[key] = value
        if not key.startswith(("tokenizer.", "general.")):
            digest.update(buf[start:pos])
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise ModelFileError(path, "alignment is no power of two")
    tensors = []
    expected = 0
    table = pos
    for _ in range(n_tensors):
        name = text().decode("utf-8", "replace")
        (n_dims,) = struct.unpack_from(order + "I", buf, pos)
        if n_dims > 4:
            raise ModelFileError(path, f"tensor {name} has {n_dims} dimensions", pos)
        *shape, kind, offset = struct.unpack_from(f"{order}{n_dims}QIQ", buf, pos + 4)
        pos += 16 + 8 * n_dims
        n_bytes = None
        known = TENSOR_TYPES.get(kind)
        if known:
            n_bytes = known.block_bytes
            for dimension in shape:
                n_bytes *= dimension
            n_bytes //= known.block_size
            expected = offset + n_bytes
        tensors.append(Tensor(name, tuple(shape), kind, offset, n_bytes))
    digest.update(buf[table:pos])
    data_offset = -(-pos // alignment) * alignment
    if tensors and data_offset + expected > size:
        raise ModelFileError(
            path, f"incomplete download: the file ends {data_offset + expected - size} bytes before the last tensor", size
        )
    shard = None
    count, number, total = (metadata.get(key) for key in ("split.count", "split.no", "split.tensors.count"))
    if isinstance(count, int) and isinstance(number, int) and isinstance(total, int) and count > 1:
        shard = Shard(number, count, total)
    return Header(path, metadata, tuple(tensors), shard, version, "little" if order == "<" else "big", alignment,
                  data_offset, size, digest.digest())
