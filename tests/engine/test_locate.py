"""Where an engine and a model file are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelpipes.engine.locate import Binary, find_engine, find_model, parse_flags
from modelpipes.errors import EngineError, FileError, UsageError


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\necho '-m,    --model FNAME   a path, --not-this'\necho '--slots, --no-slots   x'\n")
    path.chmod(0o755)
    return path


def test_the_environment_beats_the_path(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LLAMA_SERVER", str(program))
    assert find_engine() == Binary("llama-server", (str(program),))


def test_the_path_beats_the_embedded_engine(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_engine().kind == "llama-server"


def test_a_wrong_llama_server_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SERVER", "/no/llama-server")
    with pytest.raises(EngineError, match=r"\$LLAMA_SERVER .* names '/no/llama-server'"):
        find_engine()


def test_without_any_engine_one_line_names_the_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # where builds lie
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"\$LLAMA_SERVER.* PATH.*.\[embedded\]"):
        find_engine()


def test_flags_are_those_that_help_lists(program: Path) -> None:
    assert Binary("llama-server", (str(program),)).flags == {"-m", "--model", "--slots", "--no-slots"}


def test_flags_of_argparse_help_are_read_too() -> None:
    text = "options:\n  -m FILE, --model FILE\n                        -x is text\n  -fit {on,off}, --fit {on,off}\n"
    assert parse_flags(text) == {"-m", "--model", "-fit", "--fit"}


def test_a_program_that_is_no_llama_server_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no llama-server"):
        _ = Binary("llama-server", ("/bin/true",)).flags


def test_the_embedded_engine_lists_what_lifecycle_passes() -> None:
    flags = Binary("embedded", (sys.executable, "-P", "-m", "modelpipes.engine.embedded")).flags
    assert flags >= {"--model", "--host", "--port", "--ctx-size", "--parallel", "--batch-size", "--ubatch-size"}
    assert flags >= {"--cache-ram", "--sse-ping-interval", "--slots", "--offline", "--no-ui", "--n-gpu-layers", "--fit"}


def test_a_model_is_found_by_path(hello: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(hello) == hello
    monkeypatch.chdir(Path(hello).parent)
    assert find_model("hello.gguf") == hello
    monkeypatch.setenv("HOME", str(Path(hello).parent))
    assert find_model("~/hello.gguf") == hello


def test_tiny_chat_is_a_model_name() -> None:
    assert Path(find_model("tiny-chat")).is_file()


def test_a_name_that_find_gguf_prints_is_a_model(hello: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEARCH_PATH", str(tmp_path))
    monkeypatch.chdir("/")
    shutil.copy(hello, tmp_path / "hello-Q8_0.gguf")
    assert find_model("hello-Q8_0") == str(tmp_path / "hello-Q8_0.gguf")


def test_a_name_of_two_models_is_wrong_usage_and_shows_both_paths(
    hello: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEARCH_PATH", str(tmp_path))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(hello, tmp_path / folder / "hello-Q8_0.gguf")
    with pytest.raises(UsageError, match=r"one/hello-Q8_0\.gguf.*two/hello-Q8_0\.gguf"):
        find_model("hello-Q8_0")


def test_a_name_of_nothing_points_to_find_gguf_and_to_tiny_chat() -> None:
    with pytest.raises(FileError, match=r"no model file 'no-such'.*find-gguf.*tiny-chat"):
        find_model("no-such")


def test_a_model_file_is_found_without_looking_for_names(hello: str) -> None:
    check = "import sys\nfrom modelpipes.engine.locate import find_model\nfind_model(sys.argv[1])\n"
    check += "sys.exit('modelpipes.gguf' in sys.modules)"
    package = str(Path(sys.modules["modelpipes.engine.locate"].__file__ or "").parents[2])
    assert (
        subprocess.run([sys.executable, "-c", check, hello], env=os.environ | {"PYTHONPATH": package}).returncode == 0
    )


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"", "is empty"), (b"<html>", "is no GGUF file"), (b"GG", "is no GGUF file")]
)
def test_what_is_no_model_file_is_told(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(FileError, match=complaint):
        find_model(str(tmp_path / "m.gguf"))


def test_a_missing_model_file_and_a_directory_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no model file"):
        find_model(str(tmp_path / "none.gguf"))
    with pytest.raises(FileError, match="is a directory"):
        find_model(str(tmp_path))
    with pytest.raises(FileError, match="nor a model of that name"):
        find_model("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is a pipe"):
        find_model(str(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_model_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "m.gguf").chmod(0)
    with pytest.raises(FileError, match="may not be read"):
        find_model(str(tmp_path / "m.gguf"))


def test_looking_imports_no_http_client() -> None:
    check = "import sys, modelpipes.engine.locate; sys.exit(bool({'http.client', 'numpy', 'gguf'} & set(sys.modules)))"
    package = str(Path(sys.modules["modelpipes.engine.locate"].__file__ or "").parents[2])
    assert subprocess.run([sys.executable, "-c", check], env=os.environ | {"PYTHONPATH": package}).returncode == 0


@pytest.mark.parametrize(
    ("printed", "sees"),
    [
        ("Available devices:\n  CUDA0: NVIDIA GeForce RTX 4080 (16376 MiB, 15000 MiB free)\n", True),
        ("Available devices:\n  (none)\n", False),
        ("error: invalid argument: --list-devices\n", False),
    ],
)
def test_an_engine_has_a_gpu_if_it_lists_a_device(tmp_path: Path, printed: str, sees: bool) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    program.chmod(0o755)
    assert Binary("llama-server", (str(program),)).has_gpu is sees


def test_the_embedded_engine_computes_on_the_host() -> None:
    assert Binary("embedded", ("python",)).has_gpu is False
