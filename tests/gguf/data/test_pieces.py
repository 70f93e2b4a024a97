"""What is read together."""

from __future__ import annotations

import pytest

from modelpipes.gguf.data.pieces import PIECE_BYTES, cut, lay_out
from modelpipes.gguf.data.rule import Laid
from modelpipes.gguf.header import Header
from modelpipes.gguf.tensors import Tensor
from modelpipes.gguf.types import TENSOR_TYPES, row_bytes

ALIGNMENTS = (8, 32, 1 << 20)


def header_of(shapes: list[tuple[int, tuple[int, ...]]], alignment: int) -> Header:
    """A header with tensors of these types and shapes, one after the other."""
    tensors: list[Tensor] = []
    end = 0
    for number, (type_id, shape) in enumerate(shapes):
        n_bytes = None
        if type_id in TENSOR_TYPES:
            n_bytes = row_bytes(type_id, shape[0]) * (shape[1] if len(shape) > 1 else 1)
        tensors.append(Tensor(f"t{number}", shape, type_id, end, n_bytes))
        end = -(-(end + (n_bytes or 100)) // alignment) * alignment
    return Header("m.gguf", {}, tuple(tensors), None, 3, "little", alignment, alignment, alignment + end, b"")


def laid(shapes: list[tuple[int, tuple[int, ...]]], alignment: int) -> list[Laid]:
    return lay_out(header_of(shapes, alignment))[0]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_pieces_follow_each_other_and_cover_every_block_once(alignment: int) -> None:
    shapes = [(12, (4096, 2000)), (0, (7,)), (14, (256, 1)), (2, (32, 400_000)), (39, (96, 100_003)), (0, ())]
    tensors = laid([(type_id, shape or (1,)) for type_id, shape in shapes], alignment)
    pieces = list(cut(tensors, alignment))
    assert pieces[0].start == tensors[0].start
    assert pieces[-1].end == tensors[-1].end
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert max(piece.end - piece.start for piece in pieces) <= PIECE_BYTES
    parts = [part for piece in pieces for part in piece.parts]
    for each in tensors:
        bounds = [(part.start, part.end) for part in parts if part.laid is each]
        assert (bounds[0][0], bounds[-1][1]) == (each.start, each.end)
        assert [start for start, _ in bounds[1:]] == [end for _, end in bounds[:-1]]
        block_bytes = TENSOR_TYPES[each.tensor.type].block_bytes
        assert all((end - start) % block_bytes == 0 < end - start for start, end in bounds)


def test_what_is_between_is_left_out_where_a_type_is_not_known() -> None:
    header = header_of([(0, (100,)), (99, (100,)), (0, (100,)), (0, (100,))], 32)
    known, unknown = lay_out(header)
    assert [each.tensor.name for each in unknown] == ["t1"]
    first, second = cut(known, 32)
    assert (first.start, first.end) == (32, 432)
    assert [part.laid.tensor.name for part in second.parts] == ["t2", "t3"]
    assert second.start == known[1].start


def test_rows_are_counted_in_bytes() -> None:
    one, many = laid([(12, (512,)), (12, (512, 3))], 32)
    assert (one.row_bytes, one.has_one_row) == (288, True)
    assert (many.row_bytes, many.has_one_row) == (288, False)


def test_a_file_without_data_has_no_pieces() -> None:
    assert list(cut([], 32)) == []
