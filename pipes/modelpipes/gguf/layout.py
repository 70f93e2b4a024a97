"""The bytes of a GGUF header: its numbers in both byte orders, what bounds a reading, how one ends early.

Source: ggml/docs/gguf.md and ggml/src/gguf.cpp of llama.cpp b11434.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

ByteOrder: TypeAlias = Literal["little", "big"]
Unpack: TypeAlias = Callable[[bytes, int], tuple[Any, ...]]

U32 = 4
STRING = 8
ARRAY = 9
# GGUF's types of fixed width: the name, and struct's letter.
NUMBERS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
MAX_DIMS = 4

# The largest header of real life has 16 MB (gemma 4: 262,144 tokens, 514,906 merges).
MAX_HEADER_BYTES = 32 << 20
# In strings walked past, of about 45 ns each; the largest real header has 780,000 strings. What else costs
# time is charged in the same coin, so that no header takes more than some 50 ms.
MAX_WORK = 900_000
WORK_OF_ENTRY = 20
WORK_OF_TENSOR = 25
# The least bytes of one: a key of one letter and a byte; an empty name without dimensions.
LEAST_ENTRY_BYTES = 8 + 1 + 4 + 1
LEAST_TENSOR_BYTES = 8 + 0 + 4 + 4 + 8


class Layout:
    """How numbers are read in one byte order."""

    def __init__(self, byte_order: ByteOrder) -> None:
        self.byte_order: ByteOrder = byte_order
        self.sign = "<" if byte_order == "little" else ">"
        self.u32: Unpack = struct.Struct(self.sign + "I").unpack_from
        self.u64: Unpack = struct.Struct(self.sign + "Q").unpack_from
        self.two_u64: Unpack = struct.Struct(self.sign + "QQ").unpack_from
        self.array_head: Unpack = struct.Struct(self.sign + "IQ").unpack_from
        self.numbers: dict[int, tuple[Unpack, int]] = {}
        for kind, (_, letter) in NUMBERS.items():
            number = struct.Struct(self.sign + letter)
            self.numbers[kind] = number.unpack_from, number.size
        # By the number of dimensions: the dimensions, the type, the offset.
        self.tensor_tail: list[Unpack] = [
            struct.Struct(f"{self.sign}4x{dims}QIQ").unpack_from for dims in range(MAX_DIMS + 1)
        ]


LITTLE = Layout("little")
BIG = Layout("big")


class Flaw(Exception):
    """What is wrong with a header, and at which byte."""

    def __init__(self, reason: str, offset: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


class Short(Exception):
    """More of the file is needed than was read. `struct.error` and OverflowError say the same."""


class Unsure(Exception):
    """Where an array of strings ends was not proven: it has to be walked."""


class Reading:
    """One attempt at a header: the bytes read so far, and what the attempt may still cost."""

    __slots__ = ("buf", "layout", "searched_from", "searches", "work")

    def __init__(self, buf: bytes, layout: Layout, searches: bool) -> None:
        self.buf = buf
        self.layout = layout
        self.searches = searches
        """Whether long arrays of strings are searched past, instead of walked."""
        self.searched_from = 0
        """Where the first array that was searched past ends; 0 if none was."""
        self.work = MAX_WORK

    def charge(self, work: int, offset: int) -> None:
        """Raise Flaw once a header costs more to read than any real one."""
        self.work -= work
        if self.work < 0:
            raise Flaw("damaged: more entries than any real header has", offset)
