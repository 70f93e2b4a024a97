"""Write GGUF files byte by byte: in both byte orders, versions that no tool writes any more, and lies."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelpipes.gguf.types import TENSOR_TYPES

KINDS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "string": (8, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
Entry = tuple[str | bytes, str, Any]
"""Key, kind (`u32`; `[u32]` for an array of them), value."""


@dataclass(frozen=True)
class TensorSpec:
    name: str | bytes
    shape: tuple[int, ...]
    type: int = 0
    offset: int | None = None
    """None: where the tensor before it ends."""

    @property
    def n_bytes(self) -> int:
        known = TENSOR_TYPES.get(self.type)
        return math.prod(self.shape) // known.block_size * known.block_bytes if known else 0


@dataclass(frozen=True)
class File:
    """A GGUF file to be written; what is None is as it should be."""

    entries: Sequence[Entry] = ()
    tensors: Sequence[TensorSpec] = ()
    sign: str = "<"
    magic: bytes = b"GGUF"
    version: int = 3
    n_kv: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    has_data: bool = True
    extra: bytes = field(default=b"", repr=False)
    """Entries, or parts of them, already in bytes, after the others."""

    @property
    def metadata(self) -> bytes:
        return b"".join(entry(*each, sign=self.sign) for each in self.entries) + self.extra

    @property
    def table(self) -> bytes:
        return tensor_table(self.tensors, self.sign, self.alignment)[0]

    @property
    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.entries) if self.n_kv is None else self.n_kv
        preamble = struct.pack(self.sign + "IQQ", self.version, n_tensors & (1 << 64) - 1, n_kv & (1 << 64) - 1)
        return self.magic + preamble + self.metadata + self.table

    def __bytes__(self) -> bytes:
        data = tensor_table(self.tensors, self.sign, self.alignment)[1] if self.has_data else 0
        return padded(self.header, self.alignment) + bytes(data)


def text(value: str | bytes, sign: str = "<") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(sign + "Q", len(raw)) + raw


def texts(values: Iterable[str | bytes], sign: str = "<") -> bytes:
    return b"".join(text(value, sign) for value in values)


def entry(key: str | bytes, kind: str, value: Any, sign: str = "<") -> bytes:
    """One key with its value."""
    head = text(key, sign)
    if not kind.startswith("["):
        number, letter = KINDS[kind]
        return (
            head
            + struct.pack(sign + "I", number)
            + (struct.pack(sign + letter, value) if letter else text(value, sign))
        )
    number, letter = KINDS[kind[1:-1]]
    head += struct.pack(sign + "IIQ", 9, number, len(value))
    return head + (struct.pack(f"{sign}{len(value)}{letter}", *value) if letter else texts(value, sign))


def tensor_table(tensors: Iterable[TensorSpec], sign: str = "<", alignment: int = 32) -> tuple[bytes, int]:
    """The table of tensors, and how many bytes their data have."""
    table = b""
    end = 0
    for each in tensors:
        dims = len(each.shape)
        table += text(each.name, sign)
        table += struct.pack(
            f"{sign}I{dims}QIQ",
            dims,
            *(size & (1 << 64) - 1 for size in each.shape),
            each.type,
            end if each.offset is None else each.offset & (1 << 64) - 1,
        )
        end += -(-each.n_bytes // alignment) * alignment
    return table, end


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def llama_entries(layers: int = 2, **more: Any) -> list[Entry]:
    """What a small llama says of itself."""
    entries: list[Entry] = [
        ("general.architecture", "string", "llama"),
        ("general.name", "string", "Tiny"),
        ("llama.block_count", "u32", layers),
        ("llama.context_length", "u32", 4096),
        ("llama.embedding_length", "u32", 64),
        ("llama.feed_forward_length", "u32", 128),
        ("llama.attention.head_count", "u32", 4),
        ("llama.attention.head_count_kv", "[u32]", [2] * layers),
        ("llama.rope.freq_base", "f32", 500000.0),
        ("general.file_type", "u32", 1),
    ]
    return entries + [(key, "u32", value) for key, value in more.items()]


def llama_tensors(layers: int = 2, vocabulary: int = 32) -> list[TensorSpec]:
    tensors = [TensorSpec("token_embd.weight", (64, vocabulary), 8), TensorSpec("output_norm.weight", (64,))]
    for layer in range(layers):
        tensors += [
            TensorSpec(f"blk.{layer}.attn_norm.weight", (64,)),
            TensorSpec(f"blk.{layer}.attn_q.weight", (64, 64), 8),
            TensorSpec(f"blk.{layer}.ffn_up.weight", (64, 128), 1),
        ]
    return tensors


def vocabulary(count: int = 1500, merges: int = 0) -> list[Entry]:
    """Tokens, their types and merges as converters order them, with what comes after."""
    entries: list[Entry] = [
        ("tokenizer.ggml.model", "string", "gpt2"),
        ("tokenizer.ggml.tokens", "[string]", [f"tok{index % 977}" * (1 + index % 3) for index in range(count)]),
        ("tokenizer.ggml.token_type", "[i32]", [1] * count),
    ]
    if merges:
        entries.append(("tokenizer.ggml.merges", "[string]", [f"a{index} b" for index in range(merges)]))
    return [*entries, ("tokenizer.ggml.bos_token_id", "u32", 1), ("tokenizer.chat_template", "string", "{{ x }}" * 300)]
