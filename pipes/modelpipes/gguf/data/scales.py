"""Where the numbers stand by which all others of a block are multiplied, or to which they are added.

A block has NaN or infinity if one of these is that: they are multiplied by small whole numbers. Source: the structs of
ggml/src/ggml-common.h and `ggml_validate_row_data` of ggml/src/ggml-quants.c, llama.cpp b11434.
"""

from __future__ import annotations

from typing import NamedTuple


class Float(NamedTuple):
    """A number that is NaN or infinity where all bits of its exponent are set."""

    n_bytes: int
    exponent: int
    """Which bits these are."""
    fraction: int
    """Which bits are all 0 in infinity, and not in NaN."""


class Exponent(NamedTuple):
    """A byte that is an exponent (E8M0); it is NaN at 255, and below that finite itself.

    From `overflows` on it may make infinity of what it multiplies: llama.cpp halves it and doubles what it multiplies,
    up to 12 (`ggml_e8m0_to_fp32_half`, `kvalues_mxfp4`), and 12 * 2^(253 - 128) is more than a float holds.
    """

    n_bytes: int
    overflows: int
    nan: int


class Scattered(NamedTuple):
    """An f16 in the upper four bits of each of four words of 16 bits, its lowest four first."""

    n_bytes: int


F16 = Float(2, 0x7C00, 0x03FF)
BF16 = Float(2, 0x7F80, 0x007F)
F32 = Float(4, 0x7F80_0000, 0x007F_FFFF)
F64 = Float(8, 0x7FF0_0000_0000_0000, 0x000F_FFFF_FFFF_FFFF)
E8M0 = Exponent(1, overflows=253, nan=255)
F16_IN_NIBBLES = Scattered(8)


class Scales(NamedTuple):
    """The scales of a block: how they are stored, and at which bytes of the block."""

    stored: Float | Exponent | Scattered
    offsets: tuple[int, ...]


_AT_START = Scales(F16, (0,))
_TWO_AT_START = Scales(F16, (0, 2))
_NONE = Scales(F16, ())  # whatever their bits are, these are numbers

SCALES = {
    "f32": Scales(F32, (0,)),
    "f16": _AT_START,
    "q4_0": _AT_START,
    "q4_1": _TWO_AT_START,
    "q5_0": _AT_START,
    "q5_1": _TWO_AT_START,
    "q8_0": _AT_START,
    "q8_1": _TWO_AT_START,
    "q2_K": Scales(F16, (80, 82)),
    "q3_K": Scales(F16, (108,)),
    "q4_K": _TWO_AT_START,
    "q5_K": _TWO_AT_START,
    "q6_K": Scales(F16, (208,)),
    "q8_K": Scales(F32, (0,)),
    "iq2_xxs": _AT_START,
    "iq2_xs": _AT_START,
    "iq3_xxs": _AT_START,
    "iq1_s": _AT_START,
    "iq4_nl": _AT_START,
    "iq3_s": _AT_START,
    "iq2_s": _AT_START,
    "iq4_xs": _AT_START,
    "i8": _NONE,
    "i16": _NONE,
    "i32": _NONE,
    "i64": _NONE,
    "f64": Scales(F64, (0,)),
    "iq1_m": Scales(F16_IN_NIBBLES, (48,)),
    "bf16": Scales(BF16, (0,)),
    "tq1_0": Scales(F16, (52,)),
    "tq2_0": Scales(F16, (64,)),
    "mxfp4": Scales(E8M0, (0,)),
    "nvfp4": _NONE,  # what would be NaN in UE4M3 is 0 to llama.cpp (`ggml_ue4m3_to_fp32`)
    "q1_0": _AT_START,
    "q2_0": _AT_START,
}
"""By the name of the type, as `types.TENSOR_TYPES` has it."""
