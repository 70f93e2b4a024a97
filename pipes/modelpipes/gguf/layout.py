"""How GGUF writes numbers, in both byte orders, and which types of values it has.

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
# The specification allows 65,535; real ones have less than 80.
MAX_KEY_BYTES = 255
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


def is_key(raw: bytes) -> bool:
    """Whether these bytes can be a key: ASCII, as the specification has it, and printable."""
    return 0 < len(raw) <= MAX_KEY_BYTES and raw.isascii() and raw.decode("ascii").isprintable()
