from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.gguf.modelfile import ModelFile, Problem, path_base64, printable
from modelpipes.gguf.places import default_places, known_places
from modelpipes.gguf.scan import find_model_files
from tests.gguf.conftest import Unprivileged


def put(path: Path, content: str = "GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def find(*places: Path | str) -> tuple[dict[str, ModelFile], dict[str, str]]:
    """Models by name, and the reasons of problems by path; a name that comes twice fails the test."""
    models: dict[str, ModelFile] = {}
    problems: dict[str, str] = {}
    for found in find_model_files([str(place) for place in places]):
        if isinstance(found, Problem):
            problems[found.path] = found.reason
        else:
            assert found.name not in models
            models[found.name] = found
    return models, problems


# What is found


def test_models_are_found_at_any_depth_and_with_a_suffix_in_any_case(tmp_path: Path) -> None:
    put(tmp_path / "a.gguf")
    put(tmp_path / "deep/er/b.GGUF")
    put(tmp_path / "notes.txt")
    put(tmp_path / "gguf")
    models, problems = find(tmp_path)
    assert {name: model.path for name, model in models.items()} == {
        "a": str(tmp_path / "a.gguf"),
        "b": str(tmp_path / "deep/er/b.GGUF"),
    }
    assert problems == {}


def test_a_file_in_place_of_a_folder_is_found_whatever_its_name(tmp_path: Path) -> None:
    models, _ = find(put(tmp_path / "a.gguf"), put(tmp_path / "blob"))
    assert sorted(models) == ["a", "blob"]


def test_one_shard_in_place_of_a_folder_stands_for_its_set(tmp_path: Path) -> None:
    put(tmp_path / "other.gguf")
    put(tmp_path / "big-00001-of-00002.gguf", "12345")
    models, _ = find(put(tmp_path / "big-00002-of-00002.gguf", "123"))
    assert [(name, model.size_bytes) for name, model in models.items()] == [("big", 8)]


def test_a_shard_without_the_others_is_a_problem(tmp_path: Path) -> None:
    shard = put(tmp_path / "big-00002-of-00003.gguf")
    reason = "2 of 3 shards missing: big-00001-of-00003.gguf, big-00003-of-00003.gguf"
    assert find(tmp_path) == find(shard) == ({}, {str(shard): reason})


def test_a_place_that_is_not_there_is_a_problem_and_the_scan_goes_on(tmp_path: Path) -> None:
    put(tmp_path / "here/a.gguf")
    models, problems = find(tmp_path / "gone", "", tmp_path / "here")
    assert list(models) == ["a"]
    assert problems == {str(tmp_path / "gone"): "No such file or directory", "": "No such file or directory"}


def test_paths_are_absolute_also_where_the_place_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "sub/a.gguf")
    monkeypatch.chdir(tmp_path)
    models, _ = find("sub/../sub/")
    assert models["a"].path == str(tmp_path / "sub/a.gguf")


# Links


def test_a_file_reached_twice_under_one_name_is_one_model(tmp_path: Path) -> None:
    real = put(tmp_path / "a/model.gguf")
    (tmp_path / "b").mkdir()
    os.link(real, tmp_path / "b/model.gguf")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/model.gguf").symlink_to(real)
    models, problems = find(tmp_path, tmp_path / "b", real)
    assert (list(models), problems) == (["model"], {})


def test_a_file_under_two_names_is_listed_by_each(tmp_path: Path) -> None:
    (tmp_path / "short.gguf").symlink_to(put(tmp_path / "a-long-name-Q4_K_M.gguf"))
    models, _ = find(tmp_path)
    assert sorted(models) == ["a-long-name-Q4_K_M", "short"]


def test_a_linked_folder_is_entered_once_and_a_circle_ends(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere/a.gguf").parent
    scanned = put(tmp_path / "scanned/b.gguf").parent
    (scanned / "link").symlink_to(elsewhere)
    (scanned / "again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(scanned)
    (scanned / "self").symlink_to("self")
    models, problems = find(scanned)
    assert sorted(models) == ["a", "b"]
    assert models["a"].path.startswith(str(scanned))
    assert problems == {}


def test_a_folder_is_found_in_its_place_rather_than_by_a_link(tmp_path: Path) -> None:
    put(tmp_path / "zoo/a.gguf")
    (tmp_path / "ark").symlink_to(tmp_path / "zoo")
    models, _ = find(tmp_path)
    assert models["a"].path == str(tmp_path / "zoo/a.gguf")


# What is no model


def test_whatever_else_is_called_like_a_model_is_a_problem_and_nothing_waits(tmp_path: Path) -> None:
    put(tmp_path / "folder.gguf/inside.gguf")
    (tmp_path / "dangling.gguf").symlink_to("nowhere")
    (tmp_path / "circle.gguf").symlink_to("circle.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(tmp_path, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/socket.gguf")  # the path of a socket must be short
        os.close(folder)
    models, problems = find(tmp_path)
    assert list(models) == ["inside"]
    assert {Path(path).name: reason for path, reason in problems.items()} == {
        "folder.gguf": "a folder, not a file",
        "dangling.gguf": "a link that leads nowhere",
        "circle.gguf": "Too many levels of symbolic links",
        "pipe.gguf": "a pipe, not a file",
        "device.gguf": "a device, not a file",
        "socket.gguf": "a socket, not a file",
    }


def test_a_pipe_in_place_of_a_folder_is_a_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert find(tmp_path / "pipe") == ({}, {str(tmp_path / "pipe"): "a pipe, not a file"})


@pytest.mark.parametrize("suffix", [".part", ".downloadInProgress", ".incomplete", ".aria2"])
def test_a_download_that_has_not_ended_is_a_problem(tmp_path: Path, suffix: str) -> None:
    unfinished = put(tmp_path / f"a.gguf{suffix}")
    put(tmp_path / f"a.txt{suffix}")
    put(tmp_path / "a.gguf.sha256")
    assert find(tmp_path) == ({}, {str(unfinished): "a download that has not ended"})


def test_a_folder_that_may_not_be_read_is_a_problem_and_the_scan_goes_on(unprivileged: Unprivileged) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        closed = put(root / "closed/a.gguf").parent
        put(root / "open/b.gguf")
        root.chmod(0o755)
        closed.chmod(0o000)
        with unprivileged():
            models, problems = find(root)
        closed.chmod(0o700)
    assert (list(models), problems) == (["b"], {str(closed): "the folder cannot be read: Permission denied"})


# Names


def test_names_with_newlines_and_invalid_utf8_are_found_and_can_be_shown(tmp_path: Path) -> None:
    put(tmp_path / "two\nlines.gguf")
    put(tmp_path / os.fsdecode(b"caf\xe9.gguf"))
    put(tmp_path / "\x1b[31mred.gguf")
    put(tmp_path / "\u202egpj.gguf")
    models, problems = find(tmp_path)
    assert (sorted(models), problems) == (["caf\ufffd", "gpj", "red", "two lines"], {})
    for model in models.values():
        msgspec.json.encode((model.name, printable(model.path), path_base64(model.path)))
        assert os.path.exists(model.path)


@given(name=st.binary(min_size=1, max_size=60).filter(lambda name: not set(name) & {0, ord("/")}))
def test_a_file_of_any_name_is_found_and_shown(name: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(os.fsencode(folder), b"m" + name + b".gguf")
        with open(path, "wb") as file:
            file.write(b"GGUF")
        (found,) = find_model_files([folder])
        assert path == os.fsencode(found.path)
        msgspec.json.encode(found.name if isinstance(found, ModelFile) else found.reason)


def test_lm_studios_models_are_called_as_it_calls_them(home: Path) -> None:
    put(home / ".lmstudio/models/maker/Model-GGUF/Model-Q4_K_M.gguf")
    put(home / ".lmstudio/models/maker/Model-GGUF/Big-00001-of-00001.gguf")
    put(home / ".lmstudio/models/loose.gguf")
    put(home / ".lmstudio/models/a/b/c/deep.gguf")
    models, _ = find(*default_places())
    assert sorted(models) == ["deep", "loose", "maker/Model-GGUF/Big", "maker/Model-GGUF/Model-Q4_K_M"]


# Places


def test_hidden_folders_are_passed_over_but_for_the_known_places_of_models(home: Path) -> None:
    put(home / "models/a.gguf")
    put(home / ".cache/llama.cpp/b.gguf")
    put(home / ".trash/c.gguf")
    put(home / "models/.git/d.gguf")
    put(home / "models/._a.gguf")
    models, problems = find(home)
    assert (sorted(models), problems) == (["a", "b"], {})


def test_a_hidden_folder_that_is_named_is_entered(tmp_path: Path) -> None:
    put(tmp_path / ".secret/a.gguf")
    assert list(find(tmp_path / ".secret")[0]) == ["a"]


def test_search_path_names_the_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_PATH", "/one::~/two:")
    assert default_places() == ["/one", str(home / "two")]


def test_without_search_path_the_known_folders_that_exist_are_the_places(home: Path) -> None:
    put(home / "models/a.gguf")
    put(home / ".ollama/models/manifests/x")
    ours = [place for place in default_places() if place.startswith(str(home))]
    assert ours == [str(home / "models"), str(home / ".ollama/models")]


def test_the_places_of_other_programs_follow_their_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(home / ".cache/huggingface/hub") in known_places()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert {"/cache/huggingface/hub", "/cache/llama.cpp"} <= set(known_places())
    monkeypatch.setenv("HF_HOME", "/hf")
    monkeypatch.setenv("OLLAMA_MODELS", "~/ollama")
    monkeypatch.setenv("LLAMA_CACHE", "/llama")
    assert {"/hf/hub", str(home / "ollama"), "/llama"} <= set(known_places())
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    assert "/hub" in known_places()
    assert "/hf/hub" not in known_places()
