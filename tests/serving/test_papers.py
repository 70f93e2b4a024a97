"""The files of config/: what they claim is so."""

from __future__ import annotations

import configparser
import itertools
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from modelpipes.config.reading import load
from modelpipes.config.settings import Config, Model
from modelpipes.engine import admission
from modelpipes.fit.spec import spec_of
from modelpipes.machine.cards import Cards, parse_gpu
from modelpipes.serving.budget import Demand, Place, find_budget
from modelpipes.serving.bytes import Bytes
from modelpipes.serving.daemon import given_of
from tests.fit.shapes import SHAPES, TensorType, write_model

FOLDER = Path(__file__).parent.parent.parent / "config"
EXAMPLE = FOLDER / "serve.toml"
UNIT = FOLDER / "modelpipes-serve.service"
# The example's files by the shape that they have, and what most of its weights are.
SHAPES_OF = {
    "qwen": ("qwen2.5-7b", TensorType.Q6_K),
    "gemma": ("gemma-2-9b", TensorType.Q5_K),
    "llama3.1": ("llama-3.1-8b", TensorType.Q6_K),
}


def test_the_example_is_three_models_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    example = load(str(EXAMPLE)).config
    assert set(example.models) == set(SHAPES_OF)
    assert all(model.file.startswith("/home/someone/models/") for model in example.models.values())
    assert example.memory == Config().memory


def test_any_two_of_the_examples_models_fit_an_rtx_4080_beside_a_desktop_and_three_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop_bytes = 1_000_000_000
    (card,) = parse_gpu("rtx4080").cards
    card = msgspec.structs.replace(card, free_bytes=card.total_bytes - desktop_bytes)
    monkeypatch.setattr(admission, "find_visible_cards", lambda: Cards((card,)))
    example = load(str(EXAMPLE)).config
    memory = example.memory
    limits, place, _ = find_budget(memory.budget, memory.host_budget, memory.reserve, has_gpu=True)
    needs = [needs_of(name, model, place, tmp_path) for name, model in example.models.items()]
    for one, other in itertools.combinations(needs, 2):
        assert (one + other).card <= limits.card
    assert sum(one.card for one in needs) > card.total_bytes
    assert all(6.5e9 < one.card < 8e9 for one in needs)  # as it says


def needs_of(name: str, model: Model, place: Place, folder: Path) -> Bytes:
    """What one of the example's models takes: a file of its shape, without the weights."""
    shape, kind = SHAPES_OF[name]
    whole = SHAPES[shape]()
    tensors = [replace(one, type=kind if one.type is TensorType.Q4_K else one.type) for one in whole.tensors]
    path = folder / f"{name}.gguf"
    write_model(path, replace(whole, tensors=tensors))
    return Demand(spec_of(str(path), **given_of(model)), place)()


def unit() -> dict[str, str]:
    """The unit's [Service] section; ConfigParser keeps the last of a key given twice, which none is."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def test_the_unit_starts_reloads_and_restarts_the_daemon() -> None:
    service = unit()
    assert service["ExecStart"].endswith("serve-models %E/modelpipes/serve.toml")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"  # a wrong configuration stays wrong


def test_the_unit_leaves_the_cards_devices_and_the_runtimes_compiler_alone() -> None:
    hidden = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "MemoryDenyWriteExecute", "ProtectProc", "ProcSubset"}
    assert not hidden & unit().keys()


def test_the_unit_asks_for_nothing_that_needs_privileges_or_a_mount_namespace() -> None:
    of_the_system = {"User", "Group", "DynamicUser", "CapabilityBoundingSet", "AmbientCapabilities"}
    of_mounts = re.compile(
        "Protect|Private|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|TemporaryFileSystem|BindPaths"
    )
    assert not [key for key in unit() if key in of_the_system or of_mounts.match(key)]
    assert unit()["NoNewPrivileges"] == "yes"  # what lets a user's manager set filters of system calls


def test_every_file_here_is_in_the_folders_readme() -> None:
    told = (FOLDER / "README.md").read_text()
    assert all(f"`{path.name}`" in told for path in FOLDER.iterdir() if path.name != "README.md")
