"""What is asked of an engine reaches it: batch, threads, a model that drafts; what it does not know is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from modelpipes.engine.arguments import batch_of, make_arguments, placed, value_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import Binary, EngineChoice, find_engine
from modelpipes.errors import Cause, EngineFailure, FileError
from modelpipes.fit.spec import spec_of
from modelpipes.machine.processes import command_of
from modelpipes.values.deadline import Deadline
from tests.bench.counted import Case, measure, predict, spec_in

LIMIT_S = 30.0
OLD = ["--model", "--port", "--ctx-size"]


def asked(client: Any) -> Any:
    question = [{"role": "user", "content": "x"}]
    return client.post("/v1/chat/completions", {"messages": question, "max_tokens": 40, "temperature": 0}, LIMIT_S)


def test_a_batch_and_threads_that_were_asked_for_are_on_its_command_line(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, batch_size=96, threads=1) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        words = command_of(engine.pid)
        assert [value_of(words, flag) for flag in ("--batch-size", "--ubatch-size", "--threads")] == ["96", "96", "1"]


def test_the_batch_is_what_is_asked_for_and_else_what_cancels_soon() -> None:
    assert placed(spec_of("m.gguf", batch_size=700), 0).n_ubatch == 700
    assert [batch_of(spec_of("m.gguf"), on_cpu=on_cpu) for on_cpu in (True, False)] == [32, 128]
    assert placed(spec_of("m.gguf", batch_size=700, engine_args=["-b", "64"]), 0).n_ubatch == 64


@pytest.mark.parametrize("how", ["draft", "engine_args"])
def test_a_model_that_drafts_does_so(kind: EngineChoice, folder: Path, how: str) -> None:
    """b11434 loads it and leaves it idle where nobody says how it is to draft."""
    model = str(folder / "hello.gguf")
    given: dict[str, Any] = {"draft": model} if how == "draft" else {"engine_args": ["--model-draft", model]}
    with Engine(model, engine=kind, ctx_size=512, **given) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        answer = asked(engine.client())
        assert answer["choices"][0]["message"]["content"] == "Hello there, my friend."
        assert answer["timings"]["draft_n"] > 0
        assert answer["timings"]["draft_n_accepted"] > 0


def test_a_model_that_drafts_and_is_not_there_is_named_before_anything_starts(kind: EngineChoice, hello: str) -> None:
    with pytest.raises(FileError, match=r"^draft: no model file /no/such\.gguf"):
        Engine(hello, engine=kind, draft="/no/such.gguf")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"draft": "hello"}, r"knows no draft \(its --help does not list --model-draft\)"),
        ({"batch_size": 64}, r"knows no batch_size \(its --help does not list --batch-size\)"),
        ({"threads": 1}, r"knows no threads \(its --help does not list --threads\)"),
        ({"cpu_moe": True}, r"knows no cpu_moe \(its --help does not list --cpu-moe\)"),
    ],
)
def test_what_an_engine_does_not_know_is_told_and_not_left_out(
    hello: str, given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    script = tmp_path / "old.py"
    script.write_text(f"for flag in {OLD}: print(flag + ' N   what it is')")
    old = Binary("llama-server", (sys.executable, str(script)))
    given = given | ({"draft": hello} if "draft" in given else {})
    with Engine(hello, engine=old, **given) as engine:
        with pytest.raises(EngineFailure, match=words) as failed:
            engine.be_ready(Deadline.after(LIMIT_S))
        assert failed.value.cause is Cause.FLAG


def test_a_kind_of_drafting_that_a_person_names_is_theirs(kind: EngineChoice, hello: str) -> None:
    own = spec_of(hello, draft=hello, engine_args=["--spec-type", "none"])
    words = make_arguments(find_engine(kind), own, 1, None)
    assert words.count("--spec-type") == 1


@pytest.mark.parametrize(
    "case",
    [
        Case("draft", "qwen3-0.6b", {"ctx_size": 512}, draft="qwen3-0.6b"),
        Case("batch", "qwen3-0.6b", {"ctx_size": 512, "batch_size": 256}),
        Case("pictures", "llama-3.2-1b", {"ctx_size": 512}, projector="smolvlm (SigLIP-B)"),
    ],
    ids=lambda case: case.name,
)
def test_what_is_counted_is_what_the_engine_allocates(kind: EngineChoice, case: Case, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, case)
    assert predict(spec).total == pytest.approx(measure(find_engine(kind), spec).total, rel=1e-3)


@pytest.mark.parametrize(("name", "told"), [("qwen", "qwen"), ("folder/qwen", "folder/qwen"), ("", "hello")])
def test_an_engine_calls_its_model_by_its_name_and_not_by_a_path(
    kind: EngineChoice, hello: str, name: str, told: str
) -> None:
    with Engine(hello, engine=kind, name="bob", alias=name) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        answer = asked(engine.client())
        assert answer["model"] == told
        assert engine.client().models() == [told]


def test_the_name_that_a_person_gave_an_engine_wins(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, alias="qwen", engine_args=["--alias", "mine"]) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        assert engine.client().models() == ["mine"]
