"""The types of tensors and of files that llama.cpp knows, as of b11434.

Sources: `type_traits` in ggml/src/ggml.c, the blocks of ggml/src/ggml-common.h, `enum llama_ftype` in
include/llama.h.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

# Those that a cache of keys and values can have: kv_cache_types in common/arg.cpp.
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
CACHE_TYPES: tuple[str, ...] = get_args(CacheType)

UNKNOWN = "unknown"
REMOVED = "removed"


class TensorType(NamedTuple):
    """How the numbers of a tensor are stored: in blocks along its contiguous dimension."""

    name: str
    """As llama.cpp's `ggml_type_name` says it."""
    block_size: int
    """Elements of one block."""
    block_bytes: int


TENSOR_TYPES = {
    0: TensorType("f32", 1, 4),
    1: TensorType("f16", 1, 2),
    2: TensorType("q4_0", 32, 18),
    3: TensorType("q4_1", 32, 20),
    6: TensorType("q5_0", 32, 22),
    7: TensorType("q5_1", 32, 24),
    8: TensorType("q8_0", 32, 34),
    9: TensorType("q8_1", 32, 36),
    10: TensorType("q2_K", 256, 84),
    11: TensorType("q3_K", 256, 110),
    12: TensorType("q4_K", 256, 144),
    13: TensorType("q5_K", 256, 176),
    14: TensorType("q6_K", 256, 210),
    15: TensorType("q8_K", 256, 292),
    16: TensorType("iq2_xxs", 256, 66),
    17: TensorType("iq2_xs", 256, 74),
    18: TensorType("iq3_xxs", 256, 98),
    19: TensorType("iq1_s", 256, 50),
    20: TensorType("iq4_nl", 32, 18),
    21: TensorType("iq3_s", 256, 110),
    22: TensorType("iq2_s", 256, 82),
    23: TensorType("iq4_xs", 256, 136),
    24: TensorType("i8", 1, 1),
    25: TensorType("i16", 1, 2),
    26: TensorType("i32", 1, 4),
    27: TensorType("i64", 1, 8),
    28: TensorType("f64", 1, 8),
    29: TensorType("iq1_m", 256, 56),
    30: TensorType("bf16", 1, 2),
    34: TensorType("tq1_0", 256, 54),
    35: TensorType("tq2_0", 256, 66),
    39: TensorType("mxfp4", 32, 17),
    40: TensorType("nvfp4", 64, 36),
    41: TensorType("q1_0", 128, 18),
    42: TensorType("q2_0", 64, 18),
}
REMOVED_TYPES = frozenset((4, 5, 31, 32, 33, 36, 37, 38))
"""Types that llama.cpp once had and no longer loads: q4_2, q4_3 and the interleaved q4_0 and iq4_nl."""

TYPE_IDS = {type_.name: type_id for type_id, type_ in TENSOR_TYPES.items()}

FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
_GUESSED = 1024  # llama.h's LLAMA_FTYPE_GUESSED, a flag beside the type


def type_name(type_id: int) -> str:
    """A tensor type's name: "q4_K"; "removed" for a type that llama.cpp dropped, else "unknown"."""
    known = TENSOR_TYPES.get(type_id)
    if known:
        return known.name
    return REMOVED if type_id in REMOVED_TYPES else UNKNOWN


def file_type_name(file_type: int) -> str:
    """What people call a `general.file_type`: "Q4_K_M"; "unknown" for one that llama.cpp has not."""
    return FILE_TYPES.get(file_type & ~_GUESSED, UNKNOWN)


def row_bytes(tensor_type: int | str, n_elements: int) -> int:
    """The bytes of `n_elements` stored as a type, given by id or name (`ggml_row_size`).

    Raises ValueError for a type that is not known and for a number that is not whole blocks.
    """
    type_id = TYPE_IDS.get(tensor_type) if isinstance(tensor_type, str) else tensor_type
    known = None if type_id is None else TENSOR_TYPES.get(type_id)
    if known is None:
        raise ValueError(f"{tensor_type} is no tensor type that llama.cpp knows")
    blocks, rest = divmod(n_elements, known.block_size)
    if rest:
        raise ValueError(f"{n_elements} elements are not whole blocks of {known.block_size}, as {known.name} needs")
    return blocks * known.block_bytes
