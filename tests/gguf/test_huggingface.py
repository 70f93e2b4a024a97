from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from modelpipes.gguf.huggingface import quantisation_of
from modelpipes.gguf.modelfile import ModelFile, Problem
from modelpipes.gguf.scan import find_model_files

OLD, NEW = "0" * 40, "f" * 40


def download(repository: Path, revision: str, name: str, content: str = "") -> Path:
    """As huggingface_hub does: a blob named by its content, a link in the snapshot, refs/main."""
    content = content or name
    blob = repository / "blobs" / hashlib.sha256(content.encode()).hexdigest()
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_text(content)
    link = repository / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    reference = repository / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(revision)
    return link


def find(place: Path) -> tuple[dict[str, str], list[str]]:
    found = list(find_model_files([str(place)]))
    models = [each for each in found if isinstance(each, ModelFile)]
    names = {model.name: os.path.basename(model.path) for model in models}
    assert len(names) == len(models)
    return names, [each.reason for each in found if isinstance(each, Problem)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "models--org--Some-Model-GGUF"


def test_the_only_model_of_a_repository_has_its_name_and_the_blob_is_not_listed_again(repository: Path) -> None:
    download(repository, NEW, "some-model-Q4_K_M.gguf")
    download(repository, NEW, "README.md")
    assert find(repository.parent) == ({"org/Some-Model-GGUF": "some-model-Q4_K_M.gguf"}, [])
    assert find(repository) == find(repository.parent)


def test_several_models_of_a_repository_are_told_apart_by_their_quantisation(repository: Path) -> None:
    for name in ("some-model-Q4_K_M.gguf", "some-model-UD-Q4_K_XL.gguf", "some-model.f16.gguf"):
        download(repository, NEW, name)
    assert sorted(find(repository.parent)[0]) == [
        "org/Some-Model-GGUF:F16",
        "org/Some-Model-GGUF:Q4_K_M",
        "org/Some-Model-GGUF:UD-Q4_K_XL",
    ]


def test_where_the_quantisation_says_nothing_the_file_does(repository: Path) -> None:
    for name in ("a-Q4_0.gguf", "b-Q4_0.gguf", "c.gguf", "sub/c.gguf"):
        download(repository, NEW, name)
    assert sorted(find(repository.parent)[0]) == [
        f"org/Some-Model-GGUF:{each}" for each in ("a-Q4_0", "b-Q4_0", "c", "sub/c")
    ]


def test_a_projector_is_no_second_model(repository: Path) -> None:
    download(repository, NEW, "some-model-Q4_K_M.gguf")
    download(repository, NEW, "mmproj-F16.gguf")
    assert find(repository.parent)[0] == {
        "org/Some-Model-GGUF": "some-model-Q4_K_M.gguf",
        "org/Some-Model-GGUF:mmproj-F16": "mmproj-F16.gguf",
    }


def test_shards_of_a_repository_are_one_model(repository: Path) -> None:
    for number in (1, 2):
        download(repository, NEW, f"Q8_0/some-model-Q8_0-0000{number}-of-00002.gguf")
    assert find(repository.parent)[0] == {"org/Some-Model-GGUF": "some-model-Q8_0-00001-of-00002.gguf"}


def test_missing_shards_and_lost_blobs_are_problems(repository: Path) -> None:
    download(repository, NEW, "some-model-00002-of-00002.gguf")
    link = download(repository, NEW, "lost.gguf")
    link.resolve().unlink()
    assert find(repository.parent) == (
        {},
        ["a link that leads nowhere", "1 of 2 shards missing: some-model-00001-of-00002.gguf"],
    )


def test_a_file_that_two_revisions_share_is_listed_once(repository: Path) -> None:
    download(repository, OLD, "some-model-Q4_K_M.gguf")
    download(repository, NEW, "some-model-Q4_K_M.gguf")
    assert list(find(repository.parent)[0]) == ["org/Some-Model-GGUF"]


def test_an_older_revisions_file_is_told_apart_by_the_revision(repository: Path) -> None:
    download(repository, NEW, "some-model-Q4_K_M.gguf", "first")
    download(repository, OLD, "some-model-Q4_K_M.gguf", "second, and current in spite of its name")
    models = [each for each in find_model_files([str(repository)]) if isinstance(each, ModelFile)]
    assert {model.name: OLD in model.path for model in models} == {
        "org/Some-Model-GGUF": True,
        "org/Some-Model-GGUF@fffffff": False,
    }


def test_a_repository_without_an_organisation_or_a_reference_has_a_name(tmp_path: Path) -> None:
    download(tmp_path / "models--gpt2", NEW, "gpt2.gguf")
    (tmp_path / "models--gpt2/refs/main").unlink()
    assert list(find(tmp_path)[0]) == ["gpt2"]


def test_a_repository_whose_snapshots_are_no_folder_of_folders_is_no_crash(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots/file").write_text("")
    os.mkfifo(repository / "refs")
    assert find(tmp_path) == ({}, ["the folder cannot be read: Not a directory"])


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("gemma-3-4b-it-Q4_K_M", "Q4_K_M"),
        ("Qwen3-8B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("model.iq3_xxs", "IQ3_XXS"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("x_Q8_0", "Q8_0"),
        ("llama-bf16", "BF16"),
        ("gemma-q4_0", "Q4_0"),
        ("Llama-3.1-8B", None),
        ("Q4_K_M", None),
        ("faq4_0", None),
    ],
)
def test_the_quantisation_is_read_from_the_end_of_the_name(name: str, quantisation: str | None) -> None:
    assert quantisation_of(name) == quantisation
