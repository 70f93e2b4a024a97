from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.gguf.modelfile import (
    MAX_NAMED_SHARDS,
    Candidate,
    ModelFile,
    Problem,
    group_shards,
    path_base64,
    printable,
    shard_paths,
    stem,
)
from modelpipes.gguf.walk import check_file

file_names = st.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & {0, ord("/")}).map(os.fsdecode)


def candidate(path: str, size_bytes: int = 1, modified_ns: int = 0, inode: int = 1) -> Candidate:
    seconds = modified_ns // 10**9
    status = os.stat_result(
        (0o100644, inode, 1, 1, 0, 0, size_bytes, seconds, seconds, seconds), {"st_mtime_ns": modified_ns}
    )
    return Candidate(path, status)


def shard(base: str, number: int, count: int, **status: int) -> Candidate:
    return candidate(f"/m/{base}-{number:05d}-of-{count:05d}.gguf", **status)


@given(st.integers(1, 12), st.data())
def test_shards_make_one_model_when_all_are_there_and_a_problem_that_names_the_rest_otherwise(
    count: int, data: st.DataObject
) -> None:
    present = data.draw(st.lists(st.integers(1, count), min_size=1, unique=True))
    (found,) = group_shards([shard("big", number, count, size_bytes=10**number, inode=number) for number in present])
    if len(present) == count:
        assert isinstance(found, ModelFile)
        assert found.name == "big"
        assert found.paths == tuple(f"/m/big-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
        assert found.size_bytes == sum(10**number for number in present)
    else:
        assert isinstance(found, Problem)
        assert found.reason.startswith(f"{count - len(present)} of {count} shards missing: ")
        absent = sorted(set(range(1, count + 1)) - set(present))
        for number in absent[:MAX_NAMED_SHARDS]:
            assert f"big-{number:05d}-of-{count:05d}.gguf" in found.reason
        assert found.reason.endswith(".gguf") == (len(absent) <= MAX_NAMED_SHARDS)


def test_a_name_that_claims_many_shards_gives_a_short_reason() -> None:
    (found,) = group_shards([shard("big", 7, 99_999)])
    assert isinstance(found, Problem)
    assert found.reason.startswith("99998 of 99999 shards missing: big-00001-of-99999.gguf, ")
    assert found.reason.endswith("big-00009-of-99999.gguf and 99990 more")


def test_sets_of_different_length_or_name_are_different_models() -> None:
    files = [shard("a", 1, 1), shard("a", 1, 2), shard("a", 2, 2), shard("b", 1, 1)]
    models = [found for found in group_shards(files) if isinstance(found, ModelFile)]
    assert sorted((model.name, len(model.paths)) for model in models) == [("a", 1), ("a", 2), ("b", 1)]


@pytest.mark.parametrize(
    "name", ["a-00000-of-00002", "a-00003-of-00002", "a-00000-of-00000", "a-1-of-2", "-00001-of-00001"]
)
def test_a_number_that_is_no_shards_is_part_of_the_name(name: str) -> None:
    (found,) = group_shards([candidate(f"/m/{name}.gguf")])
    assert isinstance(found, ModelFile)
    assert found.name == name


def test_a_model_is_as_new_as_its_newest_shard() -> None:
    (found,) = group_shards([shard("a", 1, 2, modified_ns=5), shard("a", 2, 2, modified_ns=3)])
    assert isinstance(found, ModelFile)
    assert found.modified_ns == 5


@given(st.lists(file_names.map(lambda name: f"/m/{name}.gguf"), unique=True))
def test_every_file_is_in_one_model_or_its_set_is_a_problem(paths: list[str]) -> None:
    found = list(group_shards(map(candidate, paths)))
    placed = [path for each in found if isinstance(each, ModelFile) for path in each.paths]
    assert len(placed) == len(set(placed))
    assert set(placed) <= set(paths)
    if not any(isinstance(each, Problem) for each in found):
        assert set(placed) == set(paths)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/Llama-3.1-8B-Q4_K_M.gguf", "Llama-3.1-8B-Q4_K_M"),
        ("/m/big-00001-of-00003.GGUF", "big"),
        ("/m/blobs/sha256-abc", "sha256-abc"),
        ("/m/two\nlines.gguf", "two lines"),
        ("/m/.gguf", ""),
    ],
)
def test_the_stem_is_what_people_call_a_file(path: str, name: str) -> None:
    assert stem(path) == name


def test_a_shard_knows_its_set_and_any_other_file_itself() -> None:
    assert shard_paths("/m/big-00002-of-00003.GGUF") == [
        "/m/big-00001-of-00003.GGUF",
        "/m/big-00002-of-00003.GGUF",
        "/m/big-00003-of-00003.GGUF",
    ]
    assert shard_paths("/m/model.gguf") == ["/m/model.gguf"]
    assert shard_paths("/m/odd-00004-of-00003.gguf") == ["/m/odd-00004-of-00003.gguf"]


@given(file_names)
def test_a_path_can_be_shown_in_one_line_of_json_and_its_bytes_are_kept(name: str) -> None:
    path = f"/m/{name}"
    shown = printable(path)
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
    assert not set(shown) & {"\n", "\x1b", "\x00", "\u202e"}
    encoded = path_base64(path)
    if encoded is None:
        assert shown == path
    else:
        assert base64.b64decode(encoded) == os.fsencode(path)


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    stamps = set()
    for content, modified_ns in ((b"a", 1), (b"ab", 1), (b"ab", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(modified_ns, modified_ns))
        found = check_file(str(path))
        assert isinstance(found, Candidate)
        (model,) = group_shards([found])
        assert isinstance(model, ModelFile)
        stamps.add(model.stamp)
    assert len(stamps) == 3
