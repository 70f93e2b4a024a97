from __future__ import annotations

import gguf
import pytest

from modelpipes.gguf.types import (
    FILE_TYPES,
    REMOVED_TYPES,
    TENSOR_TYPES,
    TYPE_IDS,
    file_type_name,
    row_bytes,
    type_name,
)

# The package counts q8_1's two scales as float; in ggml-common.h they are half (static_assert of block_q8_1). The
# type is of intermediate results, never of a file.
WRONG_IN_THE_PACKAGE = {"Q8_1"}


@pytest.mark.parametrize("known", list(gguf.GGMLQuantizationType), ids=lambda known: known.name)
def test_a_tensor_type_has_the_name_and_the_block_of_the_gguf_package(known: gguf.GGMLQuantizationType) -> None:
    ours = TENSOR_TYPES[known.value]
    assert ours.name.upper() == known.name
    if known.name not in WRONG_IN_THE_PACKAGE:
        assert (ours.block_size, ours.block_bytes) == gguf.GGML_QUANT_SIZES[known]


def test_the_table_has_every_id_up_to_the_last_known_or_removed() -> None:
    assert sorted([*TENSOR_TYPES, *REMOVED_TYPES]) == list(range(43))
    assert len(TYPE_IDS) == len(TENSOR_TYPES)


@pytest.mark.parametrize("known", list(gguf.LlamaFileType), ids=lambda known: known.name)
def test_a_file_type_has_the_name_of_the_gguf_package(known: gguf.LlamaFileType) -> None:
    if known.name != "GUESSED":
        assert FILE_TYPES[known.value] == known.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        assert file_type_name(known.value | gguf.LlamaFileType.GUESSED) == FILE_TYPES[known.value]


def test_types_that_llama_cpp_has_not_are_named_so() -> None:
    assert [type_name(number) for number in (12, 4, 31, 99)] == ["q4_K", "removed", "removed", "unknown"]
    assert [file_type_name(number) for number in (15, 5, 99)] == ["Q4_K_M", "unknown", "unknown"]


def test_a_row_has_the_bytes_of_its_blocks() -> None:
    assert row_bytes("q8_0", 4096) == row_bytes(8, 4096) == 4096 // 32 * 34
    assert row_bytes("f16", 5) == 10
    assert row_bytes("iq4_nl", 0) == 0


@pytest.mark.parametrize(("tensor_type", "n_elements"), [("q8_0", 33), ("q9_9", 32), (4, 32), (99, 32)])
def test_a_row_that_cannot_be_is_an_error(tensor_type: int | str, n_elements: int) -> None:
    with pytest.raises(ValueError):
        row_bytes(tensor_type, n_elements)
