"""The check before engines start: models that cannot be resident together are refused, with what would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelpipes.engine import admission, locate
from modelpipes.engine.admission import Candidate, admit
from modelpipes.errors import EngineError, FileError, UsageError
from modelpipes.fit.spec import spec_of
from modelpipes.machine.cards import Card, Cards
from tests.fit.shapes import SHAPES, write_model

GIB = 1 << 30
HUGE_CTX = 2**22  # tokens: a cache of half a terabyte


def seated(name: str, model: str, ctx_size: int = 4096, **more: Any) -> Candidate:
    return Candidate(name, spec_of(model, ctx_size=ctx_size, **more))


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """A model file of 8 billion parameters; a hole where the weights would be."""
    path = tmp_path / "llama.gguf"
    write_model(path, SHAPES["llama-3.1-8b"]())
    return str(path)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card with 12 GiB free, and an engine that computes on it."""
    card = Card(index=0, name="RTX 4080", total_bytes=16 * GIB, free_bytes=12 * GIB, uuid="GPU-1")
    monkeypatch.setattr(admission, "find_visible_cards", lambda: Cards((card,)))
    monkeypatch.setattr(locate.Binary, "has_gpu", True)


def test_models_that_fit_are_let_through(llama: str, card: None) -> None:
    admit([seated("alice", llama), seated("bob", llama)])


def test_what_does_not_fit_the_card_is_refused_with_a_context_that_would(llama: str, card: None) -> None:
    asked = [seated("alice", llama, 40000), seated("bob", llama, 4096)]
    with pytest.raises(FileError, match=r"alice .* GiB, bob .* GiB: more than the 12\.0 GiB .* RTX 4080; --ctx-size"):
        admit(asked)


def test_an_engine_above_its_own_memory_limit_is_refused_before_it_starts(llama: str) -> None:
    with pytest.raises(FileError, match=r"alice: it needs .* GiB of host memory, and its memory_limit is 1\.0 GiB"):
        admit([seated("alice", llama, memory_limit=GIB)], "embedded")


def test_ones_own_estimate_wins_and_is_told(llama: str, card: None) -> None:
    with pytest.raises(FileError, match=r"alice 13\.0 GiB \(own estimate\): more than the 12\.0 GiB"):
        admit([seated("alice", llama, memory=13 * GIB)])
    (told,) = admit([seated("alice", llama, 2**18, memory=11 * GIB)])
    assert told == "alice: 11.0 GiB is your own estimate of its memory, and counts in place of the prediction"


def test_what_the_machine_does_not_have_is_refused_with_the_name_of_the_seat(llama: str) -> None:
    with pytest.raises(UsageError, match=r"^alice: cpu_affinity: 8000 is none of our CPUs"):
        admit([seated("alice", llama, cpu_affinity="8000")])


def test_the_context_that_is_suggested_is_let_through(llama: str, card: None) -> None:
    with pytest.raises(FileError) as refused:
        admit([seated("alice", llama, 40000), seated("bob", llama, 4096)])
    suggested = int(str(refused.value).partition("--ctx-size ")[2].split()[0])
    admit([seated("alice", llama, suggested), seated("bob", llama, min(4096, suggested))])


def test_three_models_that_no_context_makes_fit_get_fewer_layers(llama: str, card: None) -> None:
    three = [seated(name, llama) for name in ("alice", "bob", "carol")]
    with pytest.raises(FileError, match=r"--gpu-layers \d+ would fit") as refused:
        admit(three)
    layers = int(str(refused.value).partition("--gpu-layers ")[2].split()[0])
    admit([seated(one.name, llama, gpu_layers=layers) for one in three])


@pytest.mark.usefixtures("card")
def test_the_trained_context_that_an_engine_argument_of_0_asks_for_is_what_advice_begins_from(llama: str) -> None:
    # It began from 0 tokens, and no context was advised.
    with pytest.raises(FileError, match=r"a context of \d{4,} would fit, and an --engine-arg asks for more"):
        admit([seated("alice", llama, engine_args=["-c", "0"])])


@pytest.mark.usefixtures("card")
def test_layers_that_an_engine_argument_asks_for_are_not_to_be_taken_back_by_an_option(llama: str) -> None:
    # The advice was --gpu-layers, which the argument beats.
    three = [seated(name, llama, engine_args=["-ngl", "99"]) for name in ("alice", "bob", "carol")]
    with pytest.raises(FileError, match=r"[0-9]+ layers on the card would fit, and an --engine-arg asks for more"):
        admit(three)


def test_without_a_card_host_memory_counts(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="of host memory that are free; --ctx-size"):
        admit([seated("alice", llama, HUGE_CTX)], "embedded")


def test_a_file_that_two_engines_map_counts_once_in_host_memory(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "available_bytes", lambda: 7 * GIB)
    admit([seated("alice", llama), seated("bob", llama)], "embedded")


def test_what_llama_cpp_would_refuse_of_an_engines_own_arguments_is_the_engines_fault_to_tell(llama: str) -> None:
    # An exit code of 2 is for what was typed wrong of ours.
    with pytest.raises(EngineError, match=r"^a: a V cache of type q8_0 needs flash attention \(an --engine-arg asks"):
        admit([seated("a", llama, engine_args=("-ctv", "q8_0", "-fa", "off"))], "embedded")
