"""Find NaN and infinity in the data of a tensor by its scales; the gguf package confirms what is found."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from modelpipes.gguf.data.scales import F16, SCALES, Exponent, Float, Scattered
from modelpipes.gguf.layout import ByteOrder
from modelpipes.gguf.types import TENSOR_TYPES

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[Any]  # of any width and byte order
Mask: TypeAlias = npt.NDArray[np.bool_]

# Blocks confirmed at a time: the package makes some 20 times their bytes of them, at 41 MB/s.
_AT_ONCE = 256


class NonFinite(NamedTuple):
    """A number that is none: in which block, at which byte of that, and of how many."""

    block: int
    offset: int
    n_bytes: int
    is_nan: bool


def find_nonfinite(type_id: int, data: Bytes, byte_order: ByteOrder) -> NonFinite | None:
    """The first NaN or infinity in whole blocks of a type that `TENSOR_TYPES` has."""
    suspects = find_suspects(type_id, data, byte_order)
    blocks = data.reshape(-1, TENSOR_TYPES[type_id].block_bytes)
    for start in range(0, len(suspects), _AT_ONCE):
        some = suspects[start : start + _AT_ONCE]
        confirmed = np.flatnonzero(_confirm(type_id, blocks[some], byte_order))
        if len(confirmed):
            return _describe(type_id, blocks, int(some[confirmed[0]]), byte_order)
    return None


def find_suspects(type_id: int, data: Bytes, byte_order: ByteOrder) -> npt.NDArray[np.intp]:
    """The blocks that, by their scales, hold NaN or infinity; of mxfp4 also some that come close."""
    known = TENSOR_TYPES[type_id]
    stored, offsets = SCALES[known.name]
    blocks = data.reshape(-1, known.block_bytes)
    masks = [_are_suspect(stored, blocks, offset, byte_order) for offset in offsets]
    if not any(mask.any() for mask in masks):
        return np.empty(0, np.intp)
    return np.flatnonzero(np.logical_or.reduce(masks))


def _are_suspect(stored: Float | Exponent | Scattered, blocks: Bytes, offset: int, byte_order: ByteOrder) -> Mask:
    """Which blocks have a scale at this offset that is not finite, or may make something infinite."""
    if isinstance(stored, Exponent):
        exponents = blocks[:, offset]
        may_overflow: Mask = exponents >= stored.overflows
        return may_overflow
    if isinstance(stored, Scattered):
        return _are_all_set(_gather(blocks, offset, byte_order), F16.exponent)
    return _are_all_set(_words(blocks, offset, stored.n_bytes, byte_order), stored.exponent)


def _confirm(type_id: int, blocks: Bytes, byte_order: ByteOrder) -> Mask:
    """Which of these blocks hold NaN or infinity, or a scale that says so where the package cannot tell."""
    stored, offsets = SCALES[TENSOR_TYPES[type_id].name]
    if isinstance(stored, Exponent):
        certain: Mask = (blocks[:, offsets] == stored.nan).any(axis=1)
    else:
        certain = np.ones(len(blocks), np.bool_)
    if byte_order == "big":
        blocks = _as_little(stored, offsets, blocks)
    values = _dequantise(type_id, blocks)
    if values is None:
        return certain
    bad: Mask = np.any(~np.isfinite(values), axis=1)
    # The package takes E8M0's NaN for 2^127, and llama.cpp refuses it (`validate_e_e8m0`).
    return bad | certain if isinstance(stored, Exponent) else bad


def _dequantise(type_id: int, blocks: Bytes) -> npt.NDArray[np.float32] | None:
    """The values of blocks, a row each; None where the package does not know how."""
    import gguf  # lazily: what is sound needs no second look
    from gguf import quants

    try:
        with np.errstate(all="ignore"):
            values: npt.NDArray[np.float32] = quants.dequantize(blocks, gguf.GGMLQuantizationType(type_id))
    except (ValueError, NotImplementedError):
        return None
    return values


def _as_little(stored: Float | Exponent | Scattered, offsets: tuple[int, ...], blocks: Bytes) -> Bytes:
    """Copies of big-endian blocks with their scales in the byte order that the package reads, whatever it is given."""
    blocks = blocks.copy()
    width = F16.n_bytes if isinstance(stored, Scattered) else stored.n_bytes
    for offset in offsets:
        for pos in range(offset, offset + stored.n_bytes, width):
            blocks[:, pos : pos + width] = blocks[:, pos : pos + width][:, ::-1].copy()
    return blocks


def _describe(type_id: int, blocks: Bytes, block: int, byte_order: ByteOrder) -> NonFinite:
    """Which scale of a block it is, and what."""
    stored, offsets = SCALES[TENSOR_TYPES[type_id].name]
    one = blocks[block : block + 1]
    offset = next(each for each in offsets if _are_suspect(stored, one, each, byte_order)[0])
    if isinstance(stored, Exponent):
        is_nan = int(one[0, offset]) == stored.nan
    elif isinstance(stored, Scattered):
        is_nan = bool(_gather(one, offset, byte_order)[0] & F16.fraction)
    else:
        is_nan = bool(_words(one, offset, stored.n_bytes, byte_order)[0] & stored.fraction)
    return NonFinite(block, offset, stored.n_bytes, is_nan)


def _words(blocks: Bytes, offset: int, n_bytes: int, byte_order: ByteOrder) -> Words:
    """The unsigned number at this offset of each block."""
    words: Words = blocks[:, offset : offset + n_bytes].view(f"{'<' if byte_order == 'little' else '>'}u{n_bytes}")
    return words[:, 0]


def _gather(blocks: Bytes, offset: int, byte_order: ByteOrder) -> Words:
    """The f16 that is scattered over four words of each block (iq1_m: `iq1m_scale_t`)."""
    first, second, third, fourth = (_words(blocks, offset + 2 * n, 2, byte_order) for n in range(4))
    return (first >> 12) | ((second >> 8) & 0x00F0) | ((third >> 4) & 0x0F00) | (fourth & 0xF000)


def _are_all_set(words: Words, bits: int) -> Mask:
    mask = words.dtype.type(bits)
    are_set: Mask = (words & mask) == mask
    return are_set
