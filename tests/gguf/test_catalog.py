from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import FileError, UsageError
from modelpipes.gguf.catalog import Catalog, resolve
from modelpipes.gguf.modelfile import ModelFile


def model(name: str, path: str = "", inode: int | None = None) -> ModelFile:
    return ModelFile(name, (path or f"/m/{name}.gguf",), (1, hash(name) if inode is None else inode, 1, 1, 1))


def put(path: Path, content: str = "GGUF") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


HUB = Catalog(
    (
        model("llama3.1:8b", "/ollama/blobs/sha256-8"),
        model("llama3.1:70b", "/ollama/blobs/sha256-70"),
        model("qwen3:latest", "/ollama/blobs/sha256-q", 7),
        model("qwen3:4b", "/ollama/blobs/sha256-4"),
        model("org/Some-GGUF:Q4_K_M", "/hub/some-Q4_K_M.gguf"),
        model("org/Other-GGUF", "/hub/other-Q8_0-00001-of-00002.gguf"),
        model("maker/Model-GGUF/Model-IQ3_S", "/lm/Model-IQ3_S.gguf"),
        model("plain", "/m/plain.gguf"),
    ),
    (),
)


def test_the_name_that_find_gguf_prints_means_the_file() -> None:
    for file in HUB.files:
        assert HUB.find(file.name) is file


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("qwen3", "qwen3:latest"),  # as in `ollama run qwen3`
        ("org/Some-GGUF", "org/Some-GGUF:Q4_K_M"),
        ("some-gguf", "org/Some-GGUF:Q4_K_M"),
        ("some-Q4_K_M", "org/Some-GGUF:Q4_K_M"),
        ("other-Q8_0", "org/Other-GGUF"),
        ("other-Q8_0-00001-of-00002.gguf", "org/Other-GGUF"),
        ("Model-IQ3_S.gguf", "maker/Model-GGUF/Model-IQ3_S"),
        ("PLAIN", "plain"),
        ("sha256-70", "llama3.1:70b"),
    ],
)
def test_a_part_that_suffices_means_the_file_too(part: str, name: str) -> None:
    assert HUB.find(part).name == name


def test_a_name_of_several_models_is_refused_with_all_their_paths() -> None:
    with pytest.raises(UsageError) as refused:
        HUB.find("llama3.1")
    assert refused.value.exit_code == 2
    assert str(refused.value) == (
        "'llama3.1' means several models: llama3.1:8b (/ollama/blobs/sha256-8), llama3.1:70b"
        " (/ollama/blobs/sha256-70): give the path of one"
    )


def test_one_name_in_two_folders_is_refused_with_both_paths() -> None:
    twice = Catalog((model("a", "/one/a.gguf", 1), model("a", "/two/a.gguf", 2)), ())
    with pytest.raises(UsageError, match=r"/one/a\.gguf.*/two/a\.gguf"):
        twice.find("a")


def test_two_names_of_one_file_are_no_two_models() -> None:
    tags = Catalog((model("llama:8b", "/blob", 1), model("llama:small", "/blob", 1)), ())
    assert tags.find("llama").path == "/blob"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwne3:4b", "did you mean qwen3:4b"),
        ("llama", "did you mean llama3.1:8b, llama3.1:70b?"),
        ("xyzzy", "run find-gguf to see what there is"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(FileError) as refused:
        HUB.find(name)
    assert hint in str(refused.value)


@given(st.text())
def test_any_text_finds_a_model_or_is_refused(name: str) -> None:
    try:
        assert HUB.find(name) in HUB.files
    except (FileError, UsageError):
        pass


def test_a_name_means_a_file_in_the_default_places(home: Path) -> None:
    path = put(home / "models/deep/a-model-Q4_K_M.gguf")
    assert resolve("a-model-Q4_K_M") == path
    assert resolve("A-Model-q4_k_m.gguf") == path


def test_a_file_wins_over_a_name_and_a_name_over_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_path = put(home / "models/org.gguf")
    monkeypatch.chdir(home)
    (home / "org").mkdir()
    assert resolve("org") == model_path
    (home / "org").rmdir()
    assert resolve("org") == model_path
    assert resolve(put(home / "org")) == resolve("org") == str(home / "org")


def test_a_folder_that_is_no_model_is_left_to_who_opens_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "folder").mkdir()
    assert resolve("folder") == str(home / "folder")


@pytest.mark.parametrize("path", ["/no/such.gguf", "./no-such.gguf", "../no-such.gguf", "~/no-such.gguf"])
def test_what_is_written_as_a_path_is_not_looked_up(home: Path, path: str) -> None:
    assert resolve(path) == os.path.abspath(os.path.expanduser(path))


@pytest.mark.parametrize("name", ["", "no-such-model", "nul\0"])
def test_a_name_that_means_nothing_says_where_was_looked(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home / "models/other.gguf")
    monkeypatch.setenv("SEARCH_PATH", str(home / "models"))
    with pytest.raises(FileError, match="nor a model of that name"):
        resolve(name)


def test_a_scan_tells_models_and_problems_apart(home: Path) -> None:
    path = put(home / "models/a.gguf")
    os.mkfifo(home / "models/b.gguf")
    catalog = Catalog.scan([str(home / "models")])
    assert [file.path for file in catalog.files] == [path]
    assert [problem.reason for problem in catalog.problems] == ["a pipe, not a file"]
