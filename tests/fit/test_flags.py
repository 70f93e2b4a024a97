"""What a user's own arguments of an engine make of its spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.fit.flags import in_force
from modelpipes.fit.spec import EngineSpec, spec_of

WORDS = st.one_of(
    st.sampled_from(
        ["-c", "--ctx-size", "-ub", "-b", "-np", "--parallel", "-ctk", "-ctv", "-ngl", "-fa", "--cpu-moe", "-ncmoe",
         "--mmproj", "-md", "-ngld", "--spec-draft-n-max", "--lora", "--lora-scaled", "-ot", "-ts", "-kvu",
         "512", "0", "-1", "q8_0", "off", "auto", "all", "3,1", "a.gguf", "--ctx-size=2048", "x", ""]
    ),
    st.text(max_size=5),
)  # fmt: skip


def told(*arguments: str, **given: Any) -> EngineSpec:
    return in_force(spec_of("m.gguf", **given, engine_args=arguments))


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("-c", "65536"), {"n_ctx": 65536}),
        (("--ctx-size=65536",), {"n_ctx": 65536}),  # as the embedded engine takes it
        (("-c", "1024", "-c", "2048"), {"n_ctx": 2048}),
        (("-c", "0"), {"n_ctx": 0}),  # the trained one
        (("-np", "4"), {"n_parallel": 4, "n_ctx": 4096}),
        (("-ub", "2048"), {"n_ubatch": 512}),  # no larger than the logical batch, which stays
        (("-b", "2048"), {"n_ubatch": 512}),
        (("-b", "2048", "-ub", "1024"), {"n_ubatch": 1024}),
        (("-ctk", "q8_0", "-ctv", "q4_0"), {"type_k": "q8_0", "type_v": "q4_0"}),
        (("-ngl", "7"), {"n_gpu_layers": 7}),
        (("-ngl", "all"), {"n_gpu_layers": None}),
        (("-fa", "off"), {"flash_attn": False}),
        (("-fa", "auto"), {"flash_attn": True}),
        (("--cpu-moe",), {"cpu_moe": True}),
        (("-ncmoe", "12"), {"n_cpu_moe": 12}),
        (("--no-kv-unified",), {"kv_unified": False}),
        (("-ts", "3,1"), {"tensor_split": (3.0, 1.0)}),
        (("-m", "other.gguf"), {"model": "other.gguf"}),
        (("--mmproj", "p.gguf"), {"projector": "p.gguf"}),
        (("--lora", "a.gguf,b.gguf", "--lora-scaled", "c.gguf:0.5"), {"adapters": ("a.gguf", "b.gguf", "c.gguf")}),
        (("-ot", "exps=CPU", "-sm", "row"), {"uncounted": ("-ot", "-sm")}),
    ],
)
def test_an_argument_overrides_its_field(arguments: tuple[str, ...], fields: dict[str, object]) -> None:
    found = told(*arguments)
    assert {name: getattr(found, name) for name in fields} == fields
    assert found.arguments == arguments


def test_a_model_that_drafts_has_the_context_of_the_model_and_settings_of_its_own() -> None:
    found = told("-md", "d.gguf", "-ngld", "3", "-ctkd", "q8_0", ctx_size=1024, parallel=2, kv_type="q4_0")
    assert found.draft
    assert (found.draft.model, found.draft.n_ctx, found.draft.n_parallel) == ("d.gguf", 2048, 2)
    assert (found.draft.n_gpu_layers, found.draft.type_k, found.draft.type_v) == (3, "q8_0", "f16")


def test_a_model_that_drafts_is_one_however_it_was_told() -> None:
    told_so, by_field = told("-md", "d.gguf"), told(draft="d.gguf")
    assert told_so.draft == by_field.draft
    later = told("-md", "e.gguf", "-ngld", "3", draft="d.gguf")
    assert later.draft and (later.draft.model, later.draft.n_gpu_layers) == ("e.gguf", 3)
    assert told("-ngld", "3", draft="d.gguf").draft == replace(by_field.draft, n_gpu_layers=3)  # type: ignore[type-var]


def test_what_was_drafted_is_looked_at_at_once_and_yields_so_many_logits() -> None:
    assert told(draft="d.gguf", parallel=2).n_outputs == 2 * (1 + 3)
    assert told("--spec-draft-n-max", "7", draft="d.gguf").n_outputs == 8
    assert told("--spec-draft-n-max", "7").n_outputs is None
    assert told("-b", "4", "--spec-draft-n-max", "7", draft="d.gguf").n_outputs == 4  # no more than a batch has


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c",),
        ("-ctk", "q9"),
        ("-c", "many"),
        ("-c", "-1"),
        ("-np", "0"),
        ("-ngld", "3"),
        ("-md",),
        ("-m",),
        ("-ctk",),
        ("--lora",),
    ],
)
def test_what_the_engine_would_refuse_changes_nothing(arguments: tuple[str, ...]) -> None:
    assert told(*arguments) == spec_of("m.gguf", engine_args=arguments)


@given(st.lists(WORDS, max_size=12), st.sampled_from([None, "d.gguf"]))
def test_any_arguments_can_be_read_and_twice_is_once(arguments: list[str], draft: str | None) -> None:
    found = told(*arguments, draft=draft)
    assert in_force(found) == found
    assert found.n_ctx_seq >= 0


def test_a_persons_words_are_the_contexts_of_all_conversations_and_one_type_for_both_caches() -> None:
    spec = spec_of("m.gguf", ctx_size=1024, parallel=3, kv_type="q8_0", gpu_layers=0, threads=2, cpu_moe=True)
    assert (spec.n_ctx, spec.n_ctx_seq, spec.n_parallel) == (3072, 1024, 3)
    assert (spec.type_k, spec.type_v, spec.n_gpu_layers, spec.threads, spec.cpu_moe) == ("q8_0", "q8_0", 0, 2, True)
    assert (
        spec_of("m.gguf", ctx_size=None, parallel=None, kv_type=None) == spec_of("m.gguf") == EngineSpec(model="m.gguf")
    )
