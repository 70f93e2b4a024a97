"""Headers that lie: each of the hand-made files of llama.cpp's tests/test-gguf.cpp (b11434) by its name, and more."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import read_header
from tests.gguf.make import Entry, File, TensorSpec, llama_entries, llama_tensors, text, vocabulary

MOST_LINES = 2_000_000  # of Python that reading any header may run: some 60 ms
LARGEST_KB = 64 << 10

KV: list[Entry] = [("my_key_0", "u32", 7), ("my_key_1", "string", "x"), ("my_key_2", "[i16]", [1, 2])]
TENSORS = [TensorSpec("my_tensor_0", (4,)), TensorSpec("my_tensor_1", (64, 3), 8), TensorSpec("my_tensor_2", (5,), 24)]
BIG_ROW = 0x7FFFFFFFFFFFFFC0
COUNTS = "more entries than any real header has"
CUT = "incomplete download: the file ends inside its header"


def aligned(kind: str, alignment: int, **more: Any) -> File:
    return File([*KV, ("general.alignment", kind, alignment)], alignment=alignment, **more)


BAD = {
    "HEADER_BAD_MAGIC": (File(magic=b"FUGG"), "not a GGUF file", 0),
    "HEADER_BAD_VERSION_0": (File(version=0), "GGUF version 0, which is not known", 4),
    "HEADER_BAD_VERSION_1": (File(version=1), "GGUF version 1, which llama.cpp no longer loads", 4),
    "HEADER_BAD_VERSION_FUTURE": (File(version=4), "GGUF version 4, which is not known", 4),
    "HEADER_BAD_N_TENSORS": (File(n_tensors=-1), COUNTS, 8),
    "HEADER_BAD_N_KV": (File(n_kv=-1), COUNTS, 8),
    "KV_BAD_KEY_SIZE": (File(KV[:1], n_kv=2, extra=b"\xff" * 8 + b"my_key"), CUT, None),
    "KV_EMPTY_KEY": (File([("", "u32", 7)]), "a key that is no name", 24),
    "KV_BAD_TYPE": (
        File(n_kv=1, extra=text("my_key") + struct.pack("<IQ", 13, 0)),
        "my_key has a value of type 13",
        38,
    ),
    "KV_BAD_VALUE_SIZE": (
        File(n_kv=1, extra=text("k") + struct.pack("<IQ", 8, 1 << 40)),
        "a text of 1099511627776 bytes",
        37,
    ),
    "KV_DUPLICATE_KEY": (File([*KV, KV[0]]), "two values for my_key_0", None),
    "KV_BAD_ALIGN": (aligned("u32", 13), "an alignment of 13", None),
    "KV_WRONG_TYPE_ALIGN": (aligned("i32", 32), "general.alignment is not of type u32", None),
    "TENSORS_BAD_NAME_SIZE": (File(KV, [TensorSpec("x" * 64, (4,))]), "the name of a tensor has 64 bytes", None),
    "TENSORS_BAD_N_DIMS": (File(KV, [TensorSpec("t", (1, 1, 1, 1, 1))]), "tensor t has 5 dimensions", None),
    "TENSORS_BAD_SHAPE": (File(KV, [TensorSpec("t", (-1,))], has_data=False), "more elements than can be", None),
    "TENSORS_NE_TOO_BIG": (
        File(KV, [TensorSpec("t", (1 << 33, 1 << 33))], has_data=False),
        "more elements than can",
        None,
    ),
    "TENSORS_NBYTES_TOO_BIG": (
        File(KV, [TensorSpec("t", (1 << 31, 1 << 31), 27)], has_data=False),
        "the file ends",
        None,
    ),
    "TENSORS_NBYTES_PAD_WRAP": (
        File(KV, [TensorSpec("t", (4, 1073741823, 1073741825))], has_data=False),
        "incomplete download: the file ends 18446744073709551600 bytes before the last tensor",
        None,
    ),
    "TENSORS_BAD_TYPE": (
        File(KV, [TensorSpec("t", (33,), 8)]),
        "rows of 33 in tensor t are not whole blocks of q8_0",
        None,
    ),
    "TENSORS_BAD_OFFSET": (
        File(KV, [TensorSpec("t", (4,), offset=-1)]),
        "tensor t begins at 18446744073709551615",
        None,
    ),
    "TENSORS_DUPLICATE_NAME": (File(KV, [TENSORS[0], TENSORS[0]]), "two tensors of one name", None),
    "TENSORS_BAD_ALIGN": (aligned("u32", 13, tensors=TENSORS), "an alignment of 13", None),
    "TENSORS_INCONSISTENT_ALIGN": (
        File(KV, TENSORS, alignment=1),
        "tensor my_tensor_1 begins at 16 of the data, not 32",
        None,
    ),
    "DATA_NOT_ENOUGH_DATA": (File(KV, TENSORS), "the file ends 1 bytes before the last tensor", None),
    "DATA_BAD_ALIGN": (aligned("u32", 13, tensors=TENSORS), "an alignment of 13", None),
    "DATA_INCONSISTENT_ALIGN": (File(KV, TENSORS, alignment=1), "tensor my_tensor_1 begins at 16 of the data", None),
    "DATA_MEM_SIZE_OVERFLOW": (
        File(KV, [TensorSpec("a", (BIG_ROW,), 24), TensorSpec("b", (BIG_ROW,), 24)], has_data=False),
        "the file ends",
        None,
    ),
}
GOOD = {
    "HEADER_EMPTY": File(),
    "KV_SUCCESS": File(KV),
    "TENSORS_ZERO_DIM": File(KV, [TensorSpec("t", (4, 0)), TENSORS[0]]),
    "TENSORS_SUCCESS": File(KV, TENSORS),
    "TENSORS_CUSTOM_ALIGN": aligned("u32", 1, tensors=TENSORS),
    "DATA_SUCCESS": File(KV, TENSORS),
    "DATA_CUSTOM_ALIGN": aligned("u32", 1, tensors=TENSORS),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def refused(path: Path, data: bytes) -> ModelFileError:
    """The error of a file, the same for the search and the walk, and quick."""
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as strict:
        read_header(path, strict=True)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert str(caught.value) == str(strict.value)
    assert "\n" not in caught.value.reason
    return caught.value


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_of_llama_cpp_s_tests_is_refused_with_its_reason(path: Path, name: str) -> None:
    file, reason, offset = BAD[name]
    data = bytes(file)
    if name == "DATA_NOT_ENOUGH_DATA":
        data = data[: len(file.header) + -len(file.header) % 32 + 32 + 224 + 5 - 1]
    error = refused(path, data)
    assert reason in error.reason
    if offset is not None:
        assert error.offset == offset


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_of_llama_cpp_s_tests_is_read(path: Path, name: str) -> None:
    path.write_bytes(bytes(GOOD[name]))
    header = read_header(path)
    assert header == read_header(path, strict=True)
    assert len(header.tensors) == len(GOOD[name].tensors)


def test_the_other_byte_order_is_no_future_version(path: Path) -> None:
    assert "version 1," in refused(path, bytes(File(version=1, sign=">"))).reason
    assert "version 4," in refused(path, bytes(File(version=4, sign=">"))).reason


def test_a_file_cut_anywhere_is_an_incomplete_download(path: Path) -> None:
    whole = bytes(File([*llama_entries(), *vocabulary()], llama_tensors()))
    for size in [*range(4, 4000, 37), *range(4000, len(whole), 1009), len(whole) - 1]:
        assert refused(path, whole[:size]).reason.startswith("incomplete download: the file ends "), size
    assert refused(path, b"").reason == "an empty file"
    assert refused(path, b"GG").reason == "not a GGUF file"


def test_an_incomplete_download_says_how_much_is_missing(path: Path) -> None:
    whole = bytes(File(llama_entries(), llama_tensors()))
    error = refused(path, whole[:-1000])
    assert error.reason == "incomplete download: the file ends 1000 bytes before the last tensor"
    assert error.offset == len(whole) - 1000


@pytest.mark.parametrize("kind", [0, 8, 9, 12, 13])
@pytest.mark.parametrize("length", [1 << 29, 1 << 63, (1 << 64) - 1])
def test_a_small_file_with_a_huge_array_is_refused(path: Path, kind: int, length: int) -> None:
    # 49 bytes like these hang gguf.GGUFReader.
    data = bytes(File(n_kv=1, extra=text("a") + struct.pack("<IIQ", 9, kind, length)))
    assert refused(path, data).reason == f"damaged: a claims {length} items"


def test_an_array_of_arrays_is_refused(path: Path) -> None:
    data = bytes(File(n_kv=1, extra=text("a") + struct.pack("<IIQ", 9, 9, 1) * 50))
    assert refused(path, data).reason == "damaged: a is an array of arrays"


@pytest.mark.parametrize("key", ["", "a\nb", "a\x1b[31m", "käse", "x" * 256])
def test_a_key_that_is_no_name_is_refused(path: Path, key: str) -> None:
    assert refused(path, bytes(File([(key, "u8", 1)]))).reason == "damaged: a key that is no name"


def test_a_tensor_s_name_cannot_break_the_line(path: Path) -> None:
    data = bytes(File(KV, [TensorSpec("a\n\x1b[31mb", (33,), 8)]))
    assert refused(path, data).reason.startswith(r"damaged: rows of 33 in tensor 'a\n\x1b[31mb' are not")


@pytest.mark.parametrize("alignment", [0, 3, 1 << 21, 1 << 31])
def test_an_alignment_that_cannot_be_is_refused(path: Path, alignment: int) -> None:
    data = bytes(File([("general.alignment", "u32", alignment)]))
    assert refused(path, data).reason == f"damaged: an alignment of {alignment}"


def test_a_shard_that_does_not_say_which_is_refused(path: Path) -> None:
    for split in ([("split.count", "u16", 3)], [("split.count", "u16", 3), ("split.no", "u16", 3)]):
        assert "does not say which it is" in refused(path, bytes(File(split))).reason


def many_keys() -> bytes:
    return bytes(File([(f"k{index}", "u8", 1) for index in range(21_000)]))


def many_tensors() -> bytes:
    return bytes(File(KV, [TensorSpec(f"{index}", (1,)) for index in range(24_000)]))


def many_forms() -> bytes:
    return bytes(File(KV, [TensorSpec(f"{index}", (index + 1,)) for index in range(11_000)], has_data=False))


def many_kept_texts() -> bytes:
    return bytes(File([(f"k{index}", "[string]", [b"\xff" * 1024] * 30) for index in range(100)]))


def many_kept_numbers() -> bytes:
    return bytes(File([(f"k{index}", "[u64]", [1 << 62] * 1024) for index in range(770)]))


def empty_texts() -> bytes:
    head = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3_900_000)
    return bytes(File(n_kv=2, extra=head + bytes(8 * 3_900_000)))


def walked_texts() -> bytes:
    head = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 840_000)
    return bytes(File(n_kv=2, extra=head + text("abcdefgh") * 840_000))


def false_keys() -> bytes:
    count = 800_000
    head = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, count)
    return bytes(File(n_kv=2, extra=head + text("tokenizer.tokenizer.tokenizer.") * count))


def slow_to_search() -> bytes:
    count = 250_000
    head = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, count)
    return bytes(File(n_kv=2, extra=head + text(b"r" * 110) * count))


def many_searches() -> bytes:
    one = struct.pack("<IIQ", 9, 8, 1025) + text("abc") * 1025
    return bytes(File(n_kv=2800, extra=b"".join(text(f"tokenizer.{index}") + one for index in range(2800))))


def one_long_key() -> bytes:
    return bytes(File(n_kv=1, extra=struct.pack("<Q", 30 << 20) + b"x" * (33 << 20)))


@pytest.mark.parametrize(
    "make",
    [
        many_keys,
        many_tensors,
        many_forms,
        many_kept_texts,
        many_kept_numbers,
        empty_texts,
        walked_texts,
        false_keys,
        slow_to_search,
        many_searches,
        one_long_key,
    ],
)
def test_no_header_takes_much_work_or_memory(path: Path, make: Callable[[], bytes]) -> None:
    path.write_bytes(make())
    assert lines_of_reading(path) < MOST_LINES
    assert peak_of_reading(path) < LARGEST_KB


def lines_of_reading(path: Path) -> int:
    """How many lines of Python are run to read or to refuse it."""
    count = 0

    def note(frame: FrameType, event: str, what: object) -> Callable[[FrameType, str, object], Any]:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        read_header(path)
    except ModelFileError:
        pass
    finally:
        sys.settrace(before)
    return count


def peak_of_reading(path: Path) -> int:
    """By how many kB the resident memory of a fresh process grows at most."""
    program = """
import sys
from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import read_header
def peak():  # not ru_maxrss, which counts the parent's memory before the exec
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
try:
    read_header(sys.argv[1])
except ModelFileError:
    pass
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)
