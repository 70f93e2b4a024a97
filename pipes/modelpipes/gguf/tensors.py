"""Read the table of a header's tensors."""

from __future__ import annotations

from typing import Final, NamedTuple

from modelpipes.gguf.layout import MAX_DIMS
from modelpipes.gguf.reading import OUTSIDE, Reading
from modelpipes.gguf.types import TENSOR_TYPES, type_name

# Of ggml.h's GGML_MAX_NAME, the last byte is the terminating zero.
MAX_NAME_BYTES: Final = 63
# In `Reading.charge`'s coin.
_WORK_OF_FORM: Final = 40
_MAX_ELEMENTS: Final = (1 << 63) - 1


class Tensor(NamedTuple):
    """One tensor: its form, and where it lies.

    `shape` is in ggml's order, the contiguous dimension first; `type` is the id of its ggml type; `offset`
    counts from its file's `data_offset`; `n_bytes` is None where the type is unknown.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int | None

    @property
    def type_name(self) -> str:
        """As llama.cpp says it: "q4_K"; "unknown" and "removed" are others."""
        return type_name(self.type)


def read_tensors(
    reading: Reading, pos: int, count: int, alignment: int
) -> tuple[tuple[Tensor, ...], list[bytes], int, int]:
    """Read `count` tensors from `pos`: these, the bytes of their table, its end, and the end of their data.

    The data's end counts from `data_offset`. As llama.cpp does, it demands that the data lie one after the
    other, aligned and without gaps. Raises Flaw.
    """
    buf = reading.buf
    u32, u64, tails = reading.layout.u32, reading.layout.u64, reading.layout.tensor_tail
    new = tuple.__new__  # a third of the time of Tensor(), which would do this
    tensors: list[Tensor] = []
    names: set[str] = set()
    forms: dict[tuple[int, ...], tuple[tuple[int, ...], int | None]] = {}  # most tensors look like others
    table: list[bytes] = []
    begin = pos
    end = padded_end = 0
    is_gapless = True
    while len(tensors) < count:
        start = pos
        try:
            (length,) = u64(buf, pos)
            if length > MAX_NAME_BYTES:
                raise reading.flaw(f"damaged: the name of a tensor has {length} bytes", pos)
            pos += 8 + length
            (dims,) = u32(buf, pos)
            name = str(buf[start + 8 : pos], "utf-8", "replace")
            if dims > MAX_DIMS:
                raise reading.flaw(f"damaged: tensor {_shown(name)} has {dims} dimensions", pos)
            fields = tails[dims](buf, pos)
        except OUTSIDE:
            table.append(buf[begin:start])
            reading.move(start)
            buf, pos, begin = reading.buf, 0, 0
            continue
        pos += 16 + 8 * dims
        form, offset = fields[:-1], fields[-1]
        known = forms.get(form)
        if known is None:
            known = forms[form] = form[:-1], _n_bytes(reading, form[:-1], form[-1], name, start)
        shape, n_bytes = known
        # What follows a tensor of unknown size may begin anywhere behind it.
        if offset != padded_end and (is_gapless or offset < padded_end or offset % alignment):
            raise reading.flaw(
                f"damaged: tensor {_shown(name)} begins at {offset} of the data, not {padded_end}", pos - 8
            )
        tensors.append(new(Tensor, (name, shape, form[-1], offset, n_bytes)))
        names.add(name)
        is_gapless = n_bytes is not None
        end = offset + (n_bytes or 0)
        padded_end = -(-end // alignment) * alignment
    if len(names) != count:
        raise reading.flaw("damaged: two tensors of one name", pos)
    table.append(buf[begin:pos])
    return tuple(tensors), table, reading.base + pos, end


def _n_bytes(reading: Reading, shape: tuple[int, ...], type_id: int, name: str, start: int) -> int | None:
    """The bytes of a tensor's data; None for a type that is not known. Raises Flaw for an impossible form."""
    reading.charge(_WORK_OF_FORM, start)
    n_elements = 1
    for dimension in shape:
        n_elements *= dimension
    if n_elements > _MAX_ELEMENTS or max(shape, default=1) > _MAX_ELEMENTS:
        raise reading.flaw(f"damaged: tensor {_shown(name)} has more elements than can be", start)
    known = TENSOR_TYPES.get(type_id)
    if known is None:
        return None
    row = shape[0] if shape else 1
    if row % known.block_size:
        raise reading.flaw(
            f"damaged: rows of {row} in tensor {_shown(name)} are not whole blocks of {known.name}", start
        )
    return n_elements // known.block_size * known.block_bytes


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
