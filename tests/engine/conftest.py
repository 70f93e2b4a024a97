"""Engines and model files for the tests of `modelpipes.engine`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice, engines
from modelpipes.values.deadline import Deadline
from tests import models

START_LIMIT_S = 30.0  # tiny models are ready in 50 ms; a busy machine may take its time

ENGINES: list[EngineChoice] = []
if importlib.util.find_spec("xllamacpp") is not None:
    ENGINES.append("embedded")
if any(engines("llama-server")):
    ENGINES.append("llama-server")


@pytest.fixture(scope="session", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> EngineChoice:
    """Every engine that this machine has, one after the other."""
    found: EngineChoice = request.param
    return found


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripted model files, made once."""
    folder = tmp_path_factory.mktemp("models")
    models.scripted_model(folder / "hello.gguf", "Hello there, my friend.")
    models.scripted_model(folder / "endless.gguf", " on and on", endless=True)
    models.scripted_model(folder / "slow.gguf", "At last.", pad_mib=32)
    models.scripted_model(
        folder / "thinks.gguf", ["Hm,", " well.", "</think>", "So", " be it."], template=models.THINKING_TEMPLATE
    )
    models.scripted_model(folder / "deaf.gguf", template=models.DEAF_TEMPLATE)
    models.scripted_model(folder / "nosystem.gguf", template=models.NO_SYSTEM_TEMPLATE)
    models.scripted_model(folder / "alternating.gguf", template=models.ALTERNATING_TEMPLATE)
    return folder


@pytest.fixture
def hello(folder: Path) -> str:
    return str(folder / "hello.gguf")


@pytest.fixture(scope="session")
def hello_engine(kind: EngineChoice, folder: Path) -> Iterator[Engine]:
    """A ready engine that answers `Hello there, my friend.`, shared by tests that leave it as it is."""
    with Engine(str(folder / "hello.gguf"), engine=kind, ctx_size=1024, parallel=2) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        yield engine
