from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpipes.errors import FileError, ModelFileError
from modelpipes.gguf.header import ArrayInfo, Header, Shard, Tensor, TextInfo, read_header
from modelpipes.gguf.types import TENSOR_TYPES
from tests.gguf.make import KINDS, Entry, File, TensorSpec, llama_entries, llama_tensors, vocabulary

LLAMA = [*llama_entries(), *vocabulary(merges=1100)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def written(path: Path, file: File) -> Path:
    path.write_bytes(bytes(file))
    return path


def assert_equal_to_the_gguf_package(path: Path, header: Header) -> None:
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, field in fields.items():
        ours, theirs = header.metadata[key], field.contents()
        if isinstance(ours, ArrayInfo):
            assert ours.length == len(theirs)
        elif isinstance(ours, TextInfo):
            assert ours.length == len(theirs.encode())
        else:
            np.testing.assert_equal(ours, theirs)  # as NaN is no NaN's equal
    assert [tensor[:4] for tensor in header.tensors] == [
        (each.name, tuple(each.shape.tolist()), int(each.tensor_type), each.data_offset - reader.data_offset)
        for each in reader.tensors
    ]
    assert [tensor.n_bytes for tensor in header.tensors] == [int(each.n_bytes) for each in reader.tensors]
    assert header.version == reader.fields["GGUF.version"].contents()
    assert header.alignment == reader.alignment
    assert (header.byte_order == "little") == (reader.endianess == gguf.GGUFEndian.LITTLE)
    if header.tensors:
        assert header.data_offset == reader.data_offset


ranges = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "i8": 8, "i16": 16, "i32": 32, "i64": 64}
values: dict[str, st.SearchStrategy[Any]] = {
    **{
        kind: st.integers(0, (1 << bits) - 1) if kind[0] == "u" else st.integers(-1 << bits - 1, (1 << bits - 1) - 1)
        for kind, bits in ranges.items()
    },
    "f32": st.floats(width=32),
    "f64": st.floats(),
    "bool": st.booleans(),
    "string": st.text(max_size=20) | st.text(min_size=600, max_size=1100),
}
keys = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40).filter(
    lambda key: key != "general.alignment"
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(list(KINDS)))
    if draw(st.booleans()):
        return draw(keys), kind, draw(values[kind])
    sizes = st.lists(values[kind], max_size=6)
    if kind != "string":
        sizes |= st.integers(1020, 1030).flatmap(lambda size: values[kind].map(lambda value: [value] * size))
    return draw(keys), f"[{kind}]", draw(sizes)


@st.composite
def specs(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    known = draw(
        st.sampled_from([number for number, each in TENSOR_TYPES.items() if each.name not in ("q8_1", "q2_0")])
    )
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return (shape[0] * TENSOR_TYPES[known].block_size, *shape[1:]), known


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(entries(), max_size=8, unique_by=lambda each: each[0]),
    forms=st.lists(specs(), max_size=5),
    names=st.lists(st.text(max_size=15), min_size=5, max_size=5, unique=True),
    sign=st.sampled_from("<>"),
    version=st.sampled_from([2, 3]),
    alignment=st.sampled_from([1, 8, 32, 64]),
)
def test_every_key_and_tensor_is_that_of_the_gguf_package(
    tmp_path: Path,
    entries: list[Entry],
    forms: list[tuple[tuple[int, ...], int]],
    names: list[str],
    sign: str,
    version: int,
    alignment: int,
) -> None:
    tensors = [TensorSpec(name, *form) for name, form in zip(names, forms, strict=False)]
    all_entries = [*entries, ("general.alignment", "u32", alignment)]
    path = written(tmp_path / "any.gguf", File(all_entries, tensors, sign, version=version, alignment=alignment))
    header = read_header(path)
    assert_equal_to_the_gguf_package(path, header)
    np.testing.assert_equal(header.metadata, read_header(path, strict=True).metadata)


@pytest.mark.parametrize("sign", "<>")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "tail", [[], [("general.quantization_version", "u32", 2)], [("tokenizer.ggml.add_bos_token", "bool", False)]]
)
def test_a_file_with_a_vocabulary_is_read_alike_by_search_walk_and_the_gguf_package(
    path: Path, sign: str, version: int, tail: list[Entry]
) -> None:
    written(path, File([*LLAMA, *tail], llama_tensors(), sign, version=version))
    header = read_header(path)
    assert header == read_header(path, strict=True)
    assert header.metadata["tokenizer.ggml.merges"] == ArrayInfo("string", 1100)
    assert_equal_to_the_gguf_package(path, header)


@pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
def test_a_file_of_the_package_s_own_writer_is_read(path: Path, endianess: gguf.GGUFEndian) -> None:
    writer = gguf.GGUFWriter(str(path), "llama", endianess=endianess)
    writer.add_block_count(3)
    writer.add_token_list([f"token {index}" for index in range(2000)])
    writer.add_token_scores([0.5] * 2000)
    writer.add_bos_token_id(0)
    writer.add_tensor("a.weight", np.ones((4, 8), np.float32))
    writer.add_tensor("b.weight", np.ones((3, 5, 7), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert_equal_to_the_gguf_package(path, header)
    assert header.architecture == "llama"
    assert header.tensors[1] == Tensor("b.weight", (7, 5, 3), 1, 128, 210)
    assert header.tensors[1].type_name == "f16"


def test_what_is_long_is_counted_not_kept(path: Path) -> None:
    long = "ö" * 513
    written(
        path,
        File(
            [
                ("a.text", "string", "ö" * 512),
                ("a.long_text", "string", long),
                ("a.array", "[f32]", [1.0] * 1024),
                ("a.long_array", "[u16]", [1] * 1025),
                ("a.texts", "[string]", ["x"] * 1024),
                ("a.long_texts", "[string]", ["x", long]),
                ("a.many_texts", "[string]", ["x"] * 1025),
            ]
        ),
    )
    assert list(read_header(path).metadata.values()) == [
        "ö" * 512,
        TextInfo(1026),
        [1.0] * 1024,
        ArrayInfo("u16", 1025),
        ["x"] * 1024,
        ArrayInfo("string", 2),
        ArrayInfo("string", 1025),
    ]


def test_bytes_that_are_no_utf8_are_replaced(path: Path) -> None:
    tensors = [TensorSpec(b"t\xff", (1,))]
    header = read_header(
        written(path, File([("a", "string", b"x\xff\xc3"), ("b", "[string]", [b"\xed\xa0\x80"])], tensors))
    )
    assert header.metadata == {"a": "x��", "b": ["���"]}
    assert header.tensors[0].name == "t�"


def test_a_tensor_of_an_unknown_type_has_no_size_and_the_next_may_begin_anywhere(path: Path) -> None:
    tensors = [
        TensorSpec("new", (64,), 99),
        TensorSpec("old", (64,), 4, offset=96),
        TensorSpec("known", (8,), 0, offset=128),
    ]
    path.write_bytes(bytes(File((), [*tensors, TensorSpec("last", (8,), 0, offset=160)])) + bytes(128))
    header = read_header(path)
    assert [(each.type_name, each.n_bytes) for each in header.tensors] == [
        ("unknown", None),
        ("removed", None),
        ("f32", 32),
        ("f32", 32),
    ]


def test_a_header_larger_than_every_window_is_read(path: Path) -> None:
    # Keys, kept arrays and tensors that lie across the windows' edges.
    entries = [
        *LLAMA,
        *(("x." + "k" * (index % 200) + str(index), "[u64]", [index] * (index % 300)) for index in range(800)),
    ]
    tensors = [TensorSpec(f"blk.{index}." + "w" * (index % 50), (index % 7 + 1, 3)) for index in range(6000)]
    written(path, File(entries, tensors, has_data=True))
    header = read_header(path)
    assert header == read_header(path, strict=True)
    assert [header.metadata[str(key)] for key, kind, _ in entries if kind == "[u64]"] == [
        v for _, k, v in entries if k == "[u64]"
    ]
    assert [tensor.name for tensor in header.tensors] == [tensor.name for tensor in tensors]


def test_an_entry_larger_than_a_window_is_read(path: Path) -> None:
    value = ["x" * 1000] * 1000
    header = read_header(written(path, File([("a", "[string]", value), ("b", "u8", 3)])))
    assert header.metadata == {"a": value, "b": 3}


def test_a_shard_says_which_it_is(path: Path) -> None:
    split: list[Entry] = [("split.no", "u16", 1), ("split.count", "u16", 3), ("split.tensors.count", "i32", 9)]
    assert read_header(written(path, File(split))).shard == Shard(1, 3, 9)
    assert read_header(written(path, File([("split.count", "u16", 1)]))).shard is None


def test_the_signature_rests_on_what_ratings_rest_on(path: Path) -> None:
    def signature(entries: list[Entry], tensors: list[TensorSpec] | None = None) -> bytes:
        return read_header(written(path, File(entries, llama_tensors() if tensors is None else tensors))).signature

    base = signature(LLAMA)
    other_name = [(key, kind, "Other" if key == "general.name" else value) for key, kind, value in LLAMA]
    other_merges = [(key, kind, ["x y"] * 1200 if "merges" in key else value) for key, kind, value in LLAMA]
    assert signature(other_name) == signature(other_merges) == base
    for changed in (
        [(key, kind, 3 if key == "llama.block_count" else value) for key, kind, value in LLAMA],
        [(key, kind, [1, 1] if key == "llama.attention.head_count_kv" else value) for key, kind, value in LLAMA],
        [(key, kind, "gemma" if key == "general.architecture" else value) for key, kind, value in LLAMA],
        [(key, kind, value * 2 if key == "tokenizer.ggml.tokens" else value) for key, kind, value in LLAMA],
        [*LLAMA, ("llama.vocab_size", "u32", 8)],
    ):
        assert signature(changed) != base
    assert signature(LLAMA, llama_tensors(vocabulary=33)) != base


def test_the_path_may_be_text_bytes_or_a_path(path: Path) -> None:
    written(path, File(LLAMA, llama_tensors()))
    assert read_header(str(path)) == read_header(os.fsencode(path)) == read_header(path)
    assert read_header(path).path == str(path)


def test_a_link_is_followed(path: Path) -> None:
    written(path, File(LLAMA, llama_tensors()))
    link = path.with_name("link.gguf")
    link.symlink_to(path)
    assert read_header(link).path == str(link)


def refused(path: Path | str) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert isinstance(caught.value, FileError)
    assert caught.value.exit_code == 1
    assert caught.value.reason in str(caught.value)
    return caught.value


def test_a_fifo_is_refused_at_once(path: Path) -> None:
    os.mkfifo(path)
    assert refused(path).reason == "not a regular file"


def test_what_cannot_be_opened_says_why(path: Path) -> None:
    assert refused(path).reason == "cannot be read: No such file or directory"
    path.symlink_to("nowhere")
    assert refused(path).reason == "cannot be read: No such file or directory"
    assert refused(path.parent).reason == "not a regular file"
    assert refused("/dev/null").reason == "not a regular file"
    assert refused("a\0b").reason == "not a path"
    path.unlink()
    path.symlink_to(path)
    assert refused(path).reason == "cannot be read: Too many levels of symbolic links"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(path: Path) -> None:
    written(path, File()).chmod(0)
    assert refused(path).reason == "cannot be read: Permission denied"


@pytest.mark.parametrize("strict", [False, True])
def test_no_descriptor_is_left_open(path: Path, strict: bool) -> None:
    before = os.listdir("/proc/self/fd")
    written(path, File(LLAMA, llama_tensors()))
    read_header(path, strict)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(16))
    refused(path)
    assert os.listdir("/proc/self/fd") == before
