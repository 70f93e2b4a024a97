"""A conversation of models that do not all fit: chat-models runs a serve-models of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modelpipes.config.reading import load
from modelpipes.fit.spec import spec_of
from modelpipes.serving import budget
from tests.commands.conftest import Commands
from tests.models import scripted_model

NAMES = ("qwen", "gemma", "phi")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Three models, and room for two."""
    for name in NAMES:
        scripted_model(tmp_path / f"{name}.gguf", f"This is {name}.", name=name)
    place = budget.Place(n_devices=0, is_charged=True)
    path = tmp_path / "models.toml"
    path.write_text("\n".join(f'[models.{name}]\nfile = "{name}.gguf"\nctx_size = 512' for name in NAMES))
    model = load(str(path)).config.models["qwen"]
    each = budget.Demand(spec_of(model.file, ctx_size=512), place)()
    path.write_text(f"[memory]\nbudget = {each.card * 5 // 2}\nmin_resident_s = 0\n{path.read_text()}\n")
    return path


def test_three_models_talk_in_room_for_two_and_the_swaps_are_told(run: Commands, config: Path) -> None:
    seats = ["alice=qwen", "bob=gemma", "carol=phi"]
    told = run("chat", "--serve", str(config), *seats, "--rounds", "2", "--json")
    assert told.code == 0, told.stderr
    turns = [json.loads(line) for line in told.lines]
    assert [(turn["from"], turn["content"]) for turn in turns[1:]] == [
        ("alice", "This is qwen."),
        ("bob", "This is gemma."),
        ("carol", "This is phi."),
    ] * 2
    cost = re.search(r"(\d+) loads in [\d.]+ s, (\d+) models swapped out", told.stderr)
    assert cost and int(cost[1]) >= 4 and int(cost[2]) >= 2


def test_a_configuration_that_is_wrong_is_told_before_anything_starts(run: Commands, config: Path) -> None:
    config.write_text("[models.qwen]\nfil = 'x.gguf'\n")
    told = run("chat", "--serve", str(config), "alice=qwen", "bob=qwen")
    assert told.code == 1
    assert "models.qwen.fil is no key: did you mean file?" in told.stderr and len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--serve", "CONFIG", "alice", "bob"], "chat-models --serve models.toml alice=qwen bob=gemma"),
        (["alice=qwen", "bob"], "to seat a model give --model alice=qwen"),
        (["--serve", "CONFIG", "alice=qwen", "alice=phi"], "alice is named twice"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Commands, config: Path, arguments: list[str], words: str) -> None:
    told = run("chat", *(str(config) if word == "CONFIG" else word for word in arguments))
    assert told.code == 2
    assert words in told.stderr


def test_a_model_that_is_not_served_is_refused_before_anybody_speaks(run: Commands, config: Path) -> None:
    told = run("chat", "--serve", str(config), "alice=qwen", "bob=nix", "--rounds", "1")
    assert (told.code, told.stdout) == (2, "")
    assert "bob=nix: no such model is served; there are qwen, gemma, phi" in told.stderr
