"""Which bytes of a file are read together: pieces of bounded size, cut between blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modelpipes.gguf.data.rule import Laid
from modelpipes.gguf.header import Header
from modelpipes.gguf.types import TENSOR_TYPES

# What a core's second cache holds: 1 and 2 MiB were the fastest of 256 KiB to 16 MiB. Above any padding before a
# tensor, which is less than the largest alignment (1 MiB).
PIECE_BYTES = 2 << 20


class Part(NamedTuple):
    """Whole blocks of a tensor, as bytes of the file."""

    laid: Laid
    start: int
    end: int


class Piece(NamedTuple):
    """Bytes of the file from `start` on: the parts, and what lies between them and before the first."""

    start: int
    parts: list[Part]

    @property
    def end(self) -> int:
        return self.parts[-1].end


def lay_out(header: Header) -> tuple[list[Laid], list[Laid]]:
    """The tensors of a file that have data, in their order; and those of a type that is not known, without an end."""
    known: list[Laid] = []
    unknown: list[Laid] = []
    for tensor in header.tensors:
        start = header.data_offset + tensor.offset
        if tensor.n_bytes is None:
            unknown.append(Laid(tensor, start, start, 0))
        elif tensor.n_bytes:
            type_ = TENSOR_TYPES[tensor.type]
            row = tensor.shape[0] if tensor.shape else 1
            known.append(Laid(tensor, start, start + tensor.n_bytes, row // type_.block_size * type_.block_bytes))
    return known, unknown


def cut(tensors: Iterable[Laid], alignment: int) -> Iterator[Piece]:
    """Pieces of at most PIECE_BYTES that cover the tensors; each begins where the last ended.

    But for where a tensor that is none of these lies between: what is more than `alignment` apart is.
    """
    begin = end = 0
    parts: list[Part] = []
    for laid in tensors:
        block_bytes = TENSOR_TYPES[laid.tensor.type].block_bytes
        if laid.start - end >= alignment:
            if parts:
                yield Piece(begin, parts)
            begin, parts = laid.start, []
        pos = laid.start
        while pos < laid.end:
            room = (begin + PIECE_BYTES - pos) // block_bytes * block_bytes
            if room <= 0:
                yield Piece(begin, parts)
                begin, parts = end, []
                continue
            end = min(pos + room, laid.end)
            parts.append(Part(laid, pos, end))
            pos = end
    if parts:
        yield Piece(begin, parts)
