"""What a kept conversation depends on: every file, setting and program that could make it mean something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modelpipes.engine.cachekey import files_read, key_of
from modelpipes.engine.locate import Binary, EngineChoice, find_engine
from modelpipes.fit.spec import EngineSpec, spec_of

PROGRAM = b"#!/bin/sh\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model", "draft", "projector", "adapter", "vector", "template"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF of a kind that nobody has to read")
    (tmp_path / "bin").mkdir()
    for name in ("bin/llama-server", "bin/libllama.so"):
        (tmp_path / name).write_bytes(PROGRAM)
        (tmp_path / name).chmod(0o700)
    return tmp_path


@pytest.fixture
def spec(folder: Path) -> EngineSpec:
    arguments = [
        f"--model-draft={folder}/draft.gguf", "--mmproj", f"{folder}/projector.gguf",
        "--lora-scaled", f"{folder}/adapter.gguf:0.5", "--control-vector", f"{folder}/vector.gguf",
        "--chat-template-file", f"{folder}/template.gguf", "--temp", "0",
    ]  # fmt: skip
    return spec_of(f"{folder}/model.gguf", ctx_size=512, engine_args=arguments)


@pytest.fixture
def binary(folder: Path) -> Binary:
    return Binary("llama-server", (f"{folder}/bin/llama-server",))


def test_the_same_files_settings_and_program_are_one_key_in_one_word(spec: EngineSpec, binary: Binary) -> None:
    one, other = key_of(spec, binary), key_of(spec, binary)
    assert one == other and one.digest == other.digest and one.is_of_now()


def test_every_file_that_the_engine_reads_takes_part_once(spec: EngineSpec, folder: Path) -> None:
    names = ["model", "draft", "projector", "adapter", "vector", "template"]
    assert files_read(spec) == tuple(f"{folder}/{name}.gguf" for name in names)


@pytest.mark.parametrize("name", ["model", "draft", "projector", "adapter", "vector", "template"])
def test_any_file_that_was_replaced_makes_another_key(
    name: str, spec: EngineSpec, binary: Binary, folder: Path
) -> None:
    before = key_of(spec, binary)
    file = folder / f"{name}.gguf"
    os.utime(file, ns=(1, 1))
    assert not before.is_of_now()
    after = key_of(spec, binary)
    assert after != before and after.digest != before.digest and after.is_of_now()


@pytest.mark.parametrize("name", ["llama-server", "libllama.so"])
def test_another_build_of_the_program_makes_another_key(
    name: str, spec: EngineSpec, binary: Binary, folder: Path
) -> None:
    before = key_of(spec, binary)
    (folder / "bin" / name).write_bytes(PROGRAM + b"true\n")
    assert key_of(spec, binary) != before
    (folder / "bin" / "README").write_bytes(b"none of the program's")
    assert key_of(spec, binary) == key_of(spec, binary)


CHANGES: dict[str, Callable[[EngineSpec], EngineSpec]] = {
    "context": lambda spec: replace(spec, n_ctx=1024),
    "context, by an argument": lambda spec: replace(spec, arguments=(*spec.arguments, "-c", "1024")),
    "slots": lambda spec: replace(spec, n_parallel=2),
    "cache type": lambda spec: replace(spec, type_k="q8_0"),
    "layers": lambda spec: replace(spec, n_gpu_layers=3),
    "unified cache": lambda spec: replace(spec, arguments=(*spec.arguments, "--no-kv-unified")),
    "whole window": lambda spec: replace(spec, arguments=(*spec.arguments, "--swa-full")),
    "rope": lambda spec: replace(spec, arguments=(*spec.arguments, "--rope-scale", "2")),
    "an adapter's scale": lambda spec: replace(
        spec, arguments=tuple(word.replace(":0.5", ":0.7") for word in spec.arguments)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_setting_makes_another_key(
    change: Callable[[EngineSpec], EngineSpec], spec: EngineSpec, binary: Binary
) -> None:
    assert key_of(change(spec), binary) != key_of(spec, binary)


def test_what_is_missing_has_a_key_too(binary: Binary) -> None:
    gone = spec_of("/nonexistent/model.gguf", engine_args=["--lora", "/nonexistent/adapter.gguf"])
    assert key_of(gone, Binary("llama-server", ("/nonexistent/llama-server",))).is_of_now()


def test_an_engine_of_this_machine_is_known_by_its_files(kind: EngineChoice, spec: EngineSpec) -> None:
    assert any(key_of(spec, find_engine(kind)).build[0])
