from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import Shard, read_header
from modelpipes.gguf.shards import parse_name, read_model, shard_names
from tests.gguf.make import Entry, File, llama_entries, llama_tensors

TENSORS = llama_tensors()


def split(number: int, count: int = 3, n_tensors: int = len(TENSORS)) -> list[Entry]:
    return [("split.no", "u16", number), ("split.count", "u16", count), ("split.tensors.count", "i32", n_tensors)]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A model in three files, as llama-gguf-split makes them: only the first has metadata."""
    files = [tmp_path / f"big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    parts = [TENSORS[:1], TENSORS[1:5], TENSORS[5:]]
    for number, (path, part) in enumerate(zip(files, parts, strict=True)):
        path.write_bytes(bytes(File([*(llama_entries() if number == 0 else []), *split(number)], part)))
    return files


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    return caught.value.reason


def test_any_shard_gives_the_whole_model(paths: list[Path]) -> None:
    whole = read_model(paths[0])
    assert [tensor.name for tensor in whole.tensors] == [tensor.name for tensor in TENSORS]
    assert whole.metadata == read_header(paths[0]).metadata
    assert whole.architecture == "llama"
    assert whole.shard is None
    assert whole.path == str(paths[0])
    assert whole.file_size == sum(path.stat().st_size for path in paths)
    assert read_model(paths[1]) == read_model(paths[2], strict=True) == whole


def test_a_lone_header_of_a_shard_says_which_it_is(paths: list[Path]) -> None:
    assert read_header(paths[1]).shard == Shard(1, 3, len(TENSORS))


def test_a_model_in_one_file_is_its_header(tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    path.write_bytes(bytes(File(llama_entries(), TENSORS)))
    assert read_model(path) == read_header(path)


def test_the_signature_is_that_of_all_shards(paths: list[Path]) -> None:
    before = read_model(paths[0]).signature
    changed = replace(TENSORS[-1], shape=(64, 256))
    paths[2].write_bytes(bytes(File(split(2), [*TENSORS[5:-1], changed])))
    assert read_model(paths[0]).signature != before


def test_shards_are_found_through_links(paths: list[Path], tmp_path: Path) -> None:
    # As in the cache of Hugging Face: names that link to files called by their digests.
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(paths):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert len(read_model(paths[1]).tensors) == len(TENSORS)
    assert "must be named like NAME-00002-of-00003.gguf" in refused(blobs / "1")


def test_missing_shards_are_named(paths: list[Path]) -> None:
    paths[1].unlink()
    assert refused(paths[0]) == "missing shards: big-00002-of-00003.gguf"
    paths[0].unlink()
    assert refused(paths[2]) == "missing shards: big-00001-of-00003.gguf, big-00002-of-00003.gguf"


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a-00001-of-00900.gguf"
    path.write_bytes(bytes(File(split(0, 900), TENSORS)))
    assert refused(path).endswith("a-00006-of-00900.gguf and 894 more")


def test_a_broken_shard_is_named(paths: list[Path]) -> None:
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:-100])
    with pytest.raises(ModelFileError, match=rf"{paths[1]}: incomplete download: the file ends 100 bytes before"):
        read_model(paths[0])


def test_a_name_that_says_another_number_is_refused(paths: list[Path]) -> None:
    paths[1].replace(paths[2])
    assert "shard 2 of 3 must be named like NAME-00002-of-00003.gguf" in refused(paths[2])


def test_a_stranger_among_the_shards_is_refused(paths: list[Path]) -> None:
    paths[1].write_bytes(bytes(File(llama_entries(), TENSORS[1:5])))
    assert refused(paths[0]) == "damaged: does not say that it is shard 2 of 3"


def test_too_few_or_doubled_tensors_are_refused(paths: list[Path]) -> None:
    paths[2].write_bytes(bytes(File(split(2), TENSORS[6:])))
    assert "7 tensors in all shards instead of 8" in refused(paths[0])
    paths[2].write_bytes(bytes(File(split(2), [TENSORS[0], *TENSORS[6:]])))
    assert "instead of 8 different ones" in refused(paths[0])


def test_the_names_of_a_model_s_files_follow_from_one() -> None:
    assert shard_names("dir/m-00002-of-00003.gguf") == tuple(
        f"dir/m-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    )
    assert shard_names(b"m.gguf") == ("m.gguf",)


@pytest.mark.parametrize(
    "path",
    [
        "m.gguf",
        "m-00001-of-00003.bin",
        "m-1-of-3.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-00001-of-00003-of-00003x.gguf",
        "m-0000\u0661-of-00003.gguf",
        "dir/-00001-of-00003.gguf",
        "-of-.gguf",
    ],
)
def test_other_names_are_not_those_of_shards(path: str) -> None:
    assert parse_name(path) is None
    assert shard_names(path) == (path,)
