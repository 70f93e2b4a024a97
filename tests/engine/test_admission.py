"""The check before engines start: models that cannot be resident together are refused, with what would work."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelpipes.engine import locate
from modelpipes.engine.admission import Asked, check_fit
from modelpipes.errors import FileError
from modelpipes.machine import cards as gpu
from tests.commands.conftest import Commands, run
from tests.fit.shapes import SHAPES, write_model

__all__ = ["run"]  # a fixture

GIB = 1 << 30
HUGE_CTX = 2**22  # tokens: a cache of half a terabyte


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """A model file of 8 billion parameters; a hole where the weights would be."""
    path = tmp_path / "llama.gguf"
    write_model(path, SHAPES["llama-3.1-8b"]())
    return str(path)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card with 12 GiB free, and an engine that computes on it."""
    card = gpu.Card(index=0, name="RTX 4080", total_bytes=16 * GIB, free_bytes=12 * GIB, uuid="GPU-1")
    monkeypatch.setattr(gpu, "find_visible_cards", lambda: gpu.Cards((card,)))
    monkeypatch.setattr(locate.Binary, "has_gpu", True)


def test_models_that_fit_are_let_through(llama: str, card: None) -> None:
    check_fit([Asked("alice", llama), Asked("bob", llama)])


def test_what_does_not_fit_the_card_is_refused_with_a_context_that_would(llama: str, card: None) -> None:
    asked = [Asked("alice", llama, 40000), Asked("bob", llama, 4096)]
    with pytest.raises(FileError, match=r"alice .* GiB, bob .* GiB: more than the 12\.0 GiB .* RTX 4080; --ctx-size"):
        check_fit(asked)


def test_the_context_that_is_suggested_is_let_through(llama: str, card: None) -> None:
    with pytest.raises(FileError) as refused:
        check_fit([Asked("alice", llama, 40000), Asked("bob", llama, 4096)])
    suggested = int(str(refused.value).partition("--ctx-size ")[2].split()[0])
    check_fit([Asked("alice", llama, suggested), Asked("bob", llama, min(4096, suggested))])


def test_three_models_that_no_context_makes_fit_get_fewer_layers(llama: str, card: None) -> None:
    three = [Asked(name, llama) for name in ("alice", "bob", "carol")]
    with pytest.raises(FileError, match=r"--gpu-layers \d+ would fit") as refused:
        check_fit(three)
    layers = int(str(refused.value).partition("--gpu-layers ")[2].split()[0])
    check_fit([Asked(one.name, one.model, gpu_layers=layers) for one in three])


def test_without_a_card_host_memory_counts(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="of host memory that are free; --ctx-size"):
        check_fit([Asked("alice", llama, HUGE_CTX)], "embedded")


def test_a_file_that_two_engines_map_counts_once_in_host_memory(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelpipes.machine import memory as hostmemory

    monkeypatch.setattr(hostmemory, "available_bytes", lambda: 7 * GIB)
    check_fit([Asked("alice", llama), Asked("bob", llama)], "embedded")


def test_chat_models_refuses_before_anything_is_started(run: Commands, llama: str, tmp_path: Path) -> None:
    done = run("chat", "--model", f"a={llama}", "--model", "b=tiny-chat", "--ctx-size", f"a={HUGE_CTX}")
    assert done.code == 1
    assert "a " in done.stderr
    assert "--no-fit-check" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_member_that_does_not_fit_says_so_and_leaves(run: Commands, llama: str) -> None:
    run("setup", "alice")
    done = run("attach", "alice", "--model", llama, "--ctx-size", str(HUGE_CTX))
    assert done.code == 1
    assert "would fit" in done.stderr


def test_a_server_is_not_checked(run: Commands) -> None:
    done = run("chat", "--server", "a=http://127.0.0.1:1", "--server", "b=http://127.0.0.1:1", "--timeout", "1")
    assert "fit" not in done.stderr
