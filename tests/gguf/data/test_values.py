"""NaN and infinity in blocks: what the scales say beside what the gguf package makes of the block."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from gguf import quants
from gguf.scripts import gguf_convert_endian
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.gguf.data.scales import SCALES, Scattered
from modelpipes.gguf.data.values import Bytes, NonFinite, find_nonfinite, find_suspects
from modelpipes.gguf.types import TENSOR_TYPES, TYPE_IDS

NONE = NonFinite(-1, -1, -1, False)
MXFP4 = TYPE_IDS["mxfp4"]
# Bytes of which the exponents of NaN and infinity are made, in every type: a random scale is one of them rarely.
TELLING = st.sampled_from([0x00, 0x7C, 0x7E, 0x7F, 0x80, 0xF0, 0xFC, 0xFD, 0xFE, 0xFF])
BLOCKS_OF_NAN = {
    "f32": struct.pack("<f", float("nan")),
    "f64": struct.pack("<d", float("nan")),
    "q8_K": struct.pack("<f", float("nan")) + bytes(288),
    "q8_1": bytes(2) + b"\x00\x7e" + bytes(32),
    "q2_0": b"\x01\xfc" + bytes(16),
    "q4_K": bytes(2) + b"\x00\x7e" + bytes(140),
    "iq1_m": bytes(48) + b"\x00\x10\x00\x00\x00\xc0\x00\x70",
}


def dequantised(type_id: int, blocks: Bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with np.errstate(all="ignore"):
        made: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = quants.dequantize(
            blocks, gguf.GGMLQuantizationType(type_id)
        )
    return made


def can_dequantise(type_id: int) -> bool:
    try:
        dequantised(type_id, np.zeros((1, TENSOR_TYPES[type_id].block_bytes), np.uint8))
    except (NotImplementedError, ValueError):
        return False
    return True


DEQUANTISED = [name for name, type_id in TYPE_IDS.items() if can_dequantise(type_id)]


@st.composite
def blocks_of(draw: st.DrawFn, name: str) -> Bytes:
    """Up to four random blocks, their scales made of bytes that tell as often as of others."""
    size = TENSOR_TYPES[TYPE_IDS[name]].block_bytes
    stored, offsets = SCALES[name]
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        block = bytearray(draw(st.binary(min_size=size, max_size=size)))
        for offset in offsets:
            for pos in range(offset, offset + stored.n_bytes):
                if draw(st.booleans()):
                    block[pos] = draw(TELLING)
        blocks.append(np.frombuffer(bytes(block), np.uint8))
    return np.stack(blocks)


def test_every_type_has_its_scales_within_its_block() -> None:
    assert list(SCALES) == [known.name for known in TENSOR_TYPES.values()]
    for known in TENSOR_TYPES.values():
        stored, offsets = SCALES[known.name]
        assert all(0 <= offset <= known.block_bytes - stored.n_bytes for offset in offsets)


def test_the_package_is_asked_about_all_but_a_few_types() -> None:
    assert set(TYPE_IDS) - set(DEQUANTISED) == {
        "q8_1", "q8_K", "i8", "i16", "i32", "i64", "f64", "q1_0", "q2_0",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in DEQUANTISED if name != "mxfp4"])
@given(data=st.data())
def test_a_block_is_suspect_exactly_where_the_package_makes_nan_or_infinity_of_it(
    name: str, data: st.DataObject
) -> None:
    blocks = data.draw(blocks_of(name))
    bad = np.flatnonzero(~np.isfinite(dequantised(TYPE_IDS[name], blocks)).all(axis=1))
    assert find_suspects(TYPE_IDS[name], blocks.reshape(-1), "little").tolist() == bad.tolist()
    found = find_nonfinite(TYPE_IDS[name], blocks.reshape(-1), "little")
    assert (found or NONE).block == (bad[0] if len(bad) else -1)


@given(blocks_of("mxfp4"))
def test_mxfp4_is_bad_where_the_package_overflows_and_where_the_exponent_is_nan(blocks: Bytes) -> None:
    bad = np.flatnonzero(~np.isfinite(dequantised(MXFP4, blocks)).all(axis=1) | (blocks[:, 0] == 255))
    found = find_nonfinite(MXFP4, blocks.reshape(-1), "little")
    assert (found or NONE).block == (bad[0] if len(bad) else -1)
    assert set(bad) <= set(find_suspects(MXFP4, blocks.reshape(-1), "little"))
    assert found is None or found.is_nan == (blocks[bad[0], 0] == 255)


@pytest.mark.parametrize("name", BLOCKS_OF_NAN)
def test_the_scale_is_named_also_where_the_package_cannot_tell(name: str) -> None:
    block = BLOCKS_OF_NAN[name]
    data = np.frombuffer(bytes(3 * len(block)) + block, np.uint8)
    stored, offsets = SCALES[name]
    assert find_nonfinite(TYPE_IDS[name], data, "little") == NonFinite(3, offsets[-1], stored.n_bytes, is_nan=True)


@pytest.mark.parametrize("name", [name for name in DEQUANTISED if name != "nvfp4"])
@given(data=st.data())
def test_big_endian_blocks_are_judged_as_little_endian_ones(name: str, data: st.DataObject) -> None:
    blocks = data.draw(blocks_of(name))
    little = find_nonfinite(TYPE_IDS[name], blocks.reshape(-1), "little")
    assert find_nonfinite(TYPE_IDS[name], swapped(name, blocks).reshape(-1), "big") == little


def swapped(name: str, blocks: Bytes) -> Bytes:
    """The blocks as a big-endian file has them: by the package's own converter, where that knows the type."""
    swaps: dict[int, Callable[[object, int], None]] = gguf_convert_endian.byteswap_tensors  # type: ignore[assignment]
    known = swaps.get(gguf.GGMLQuantizationType(TYPE_IDS[name]))
    made = blocks.copy()
    if known:
        for start in range(0, made.size, made.shape[1]):
            known(SimpleNamespace(data=made.reshape(-1)), start)
        return made
    stored, offsets = SCALES[name]
    width = 2 if isinstance(stored, Scattered) else stored.n_bytes
    for offset in offsets:
        for pos in range(offset, offset + stored.n_bytes, width):
            made[:, pos : pos + width] = blocks[:, pos : pos + width][:, ::-1]
    return made


def test_a_block_that_only_comes_close_is_no_finding() -> None:
    largest = np.frombuffer(b"\xff\x7b" * 2 + b"\xff" * 140, np.uint8)
    assert find_nonfinite(TYPE_IDS["q4_K"], largest, "little") is None
    ones = np.frombuffer(bytes([254]) + b"\x11" * 16, np.uint8)
    assert find_nonfinite(MXFP4, ones, "little") is None
    assert find_nonfinite(MXFP4, np.frombuffer(bytes([254]) + b"\x77" * 16, np.uint8), "little") == NonFinite(
        0, 0, 1, is_nan=False
    )


def test_the_first_of_many_is_found_behind_many_that_come_close() -> None:
    close = (bytes([253]) + b"\x11" * 16) * 1000
    assert find_nonfinite(MXFP4, np.frombuffer(close, np.uint8), "little") is None
    data = np.frombuffer(close + bytes([255]) + bytes(16), np.uint8)
    assert find_nonfinite(MXFP4, data, "little") == NonFinite(1000, 0, 1, is_nan=True)


@pytest.mark.parametrize("name", ["i8", "i16", "i32", "i64", "nvfp4"])
def test_a_type_that_has_no_nan_is_never_bad(name: str) -> None:
    ones = np.full(TENSOR_TYPES[TYPE_IDS[name]].block_bytes, 0xFF, np.uint8)
    assert find_nonfinite(TYPE_IDS[name], ones, "little") is None
