"""Commands that start engines refuse those that have no room, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.commands.conftest import Commands
from tests.fit.shapes import SHAPES, write_model

HUGE_CTX = 2**22  # tokens: a cache of half a terabyte


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """A model file of 8 billion parameters; a hole where the weights would be."""
    path = tmp_path / "llama.gguf"
    write_model(path, SHAPES["llama-3.1-8b"]())
    return str(path)


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


def test_what_an_engines_own_arguments_ask_for_is_counted(run: Commands, llama: str) -> None:
    run("setup", "alice")
    done = run("attach", "alice", "--model", llama, "--engine-arg=-c", f"--engine-arg={HUGE_CTX}")
    assert done.code == 1
    assert "would fit, and an --engine-arg asks for more" in done.stderr


def test_what_cannot_be_counted_of_an_engines_own_arguments_is_said(run: Commands) -> None:
    run("setup", "alice")
    done = run("attach", "alice", "--model=tiny-chat", "--engine=embedded", "--engine-arg=-ot", "--engine-arg=exps=CPU")
    assert done.stderr.splitlines()[0] == "alice: what -ot moves or adds is not counted"
    assert done.code == 1  # the embedded engine does not know it


HEADLESS = "its numbers contradict each other"


@pytest.fixture
def headless(tmp_path: Path) -> str:
    """A model file whose attention has no heads."""
    path = tmp_path / "headless.gguf"
    model = SHAPES["llama-3.2-1b"]()
    write_model(path, replace(model, metadata=model.metadata | {"llama.attention.head_count": 0}))
    return str(path)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("fit", ["{}", "--vram=16GB"]),
        ("chat", ["--model=a={}", "--model=b=tiny-chat"]),
        ("attach", ["alice", "--model={}"]),
    ],
)
def test_a_header_that_contradicts_itself_is_one_line_and_exit_1(
    run: Commands, headless: str, verb: str, arguments: list[str]
) -> None:
    run("setup", "alice")
    done = run(verb, *(each.format(headless) for each in arguments))
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert HEADLESS in done.stderr
    assert headless in done.stderr


def test_such_a_header_is_a_line_of_a_listing_and_left_out_by_a_server(run: Commands, headless: str) -> None:
    listed = run("find", headless, "--vram=16GB", "-v")
    assert listed.code == 0
    assert HEADLESS in listed.stdout + listed.stderr
    config = Path(run.cwd) / "models.toml"
    config.write_text(f"[models.bad]\nfile = '{headless}'\n")
    served = run("serve", str(config), "--listen=127.0.0.1:0")
    assert served.code == 1
    assert f"bad is left out: {headless}: {HEADLESS}" in served.stderr
