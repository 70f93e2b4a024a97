"""The prediction against llama.cpp's own figures, and what must hold beyond the table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpipes.errors import FileError
from modelpipes.fit import Settings, memory, predict_memory
from tests.fit.accuracy import MIB, misses, report
from tests.fit.shapes import SHAPES
from tests.fit.table import CASES, shape_header

# Drafters and routers that lean on another model (`Architecture.approximate`), and a test's mixture that no such
# model is: the general rule stands in.
GENERIC = {"dflash-qwen3-8b", "eagle3-llama-3.1-8b", "granite-switch-3b", "refact-moe"}


@pytest.mark.parametrize("name", SHAPES)
def test_every_byte_of_the_reference_is_predicted(name: str) -> None:
    assert [miss for miss in misses(name) if not miss.is_exact] == []


@pytest.mark.parametrize("name", [name for name in CASES if name not in SHAPES])
def test_other_architectures_are_predicted_within_the_bounds(name: str) -> None:
    for miss in misses(name):
        assert miss.model == miss.context == 0
        assert miss.estimate == ("generic" if name in GENERIC else "exact")
        if name not in GENERIC:
            assert miss.is_near(0.10, 32)


def test_nearly_all_settings_are_predicted_to_the_byte() -> None:
    found = [miss for name in CASES for miss in misses(name)]
    assert sum(miss.is_exact for miss in found) >= 0.97 * len(found)
    assert sum(miss.is_near(0.03, 16) for miss in found) >= 0.99 * len(found)
    near = [miss for miss in found if abs(miss.total) <= max(0.01 * miss.measured_total, 32 * MIB)]
    assert len(near) >= 0.99 * len(found)


def test_the_table_of_accuracy_names_the_worst_case_of_each_model() -> None:
    table = report(["llama-3.2-1b"], every=True)
    assert "llama-3.2-1b" in table
    assert "to the byte" in table


def test_an_unknown_architecture_is_rated_by_the_general_rule_and_says_so() -> None:
    known = shape_header("qwen2.5-7b")
    metadata = {key.replace("qwen2.", "newcomer."): value for key, value in known.metadata.items()}
    header = replace(known, metadata={**metadata, "general.architecture": "newcomer"}, signature=b"newcomer")
    found, like = predict_memory(header, Settings()), predict_memory(known, Settings())
    assert (found.estimate, like.estimate) == ("generic", "exact")
    assert found.devices[0].model_bytes == like.devices[0].model_bytes


def test_a_model_without_a_weight_that_its_architecture_needs_is_a_rough_estimate() -> None:
    known = shape_header("llama-3.2-1b")
    tensors = tuple(tensor for tensor in known.tensors if "ffn_down" not in tensor.name)
    found = predict_memory(replace(known, tensors=tensors, signature=b"no ffn_down"), Settings())
    assert found.estimate == "generic"
    assert found.devices[0].compute_bytes > 0


@pytest.mark.parametrize(
    ("name", "key", "cache"),
    [("glm-dsa-moe", "attention.indexer.key_length", "f16"), ("llama-3.2-1b", "attention.key_length", "q8_0")],
)
def test_heads_without_elements_are_planned_for_as_well(name: str, key: str, cache: str) -> None:
    # What turns their rows was doubled for ever.
    known = CASES[name][0].header
    metadata = {**known.metadata, f"{known.architecture}.{key}": 0}
    header = replace(known, metadata=metadata, signature=f"no {key}".encode())
    wanted = Settings(n_ctx=1024, type_k=cache)
    assert (
        predict_memory(header, wanted).devices[0].context_bytes < predict_memory(known, wanted).devices[0].context_bytes
    )


def test_a_projector_is_no_language_model() -> None:
    known = shape_header("llama-3.2-1b")
    header = replace(known, metadata={"general.architecture": "clip"}, signature=b"projector")
    with pytest.raises(FileError, match="projector"):
        predict_memory(header, Settings())


def test_a_tensor_of_an_unknown_type_counts_up_to_the_next() -> None:
    known = shape_header("llama-3.2-1b")
    tensors = tuple(
        tensor._replace(type=250, n_bytes=None) if "ffn_up" in tensor.name else tensor for tensor in known.tensors
    )
    header = replace(known, tensors=tensors, signature=b"unknown type")
    assert predict_memory(header, Settings()).devices == predict_memory(known, Settings()).devices


settings_of_engines = st.builds(
    Settings,
    n_ctx=st.integers(256, 40000),
    n_ubatch=st.sampled_from([64, 512, 1024]),
    n_parallel=st.integers(1, 4),
    kv_unified=st.booleans(),
    flash_attn=st.just(True),
    type_k=st.sampled_from(["f16", "q8_0"]),
    n_gpu_layers=st.none() | st.integers(0, 40),
    cpu_moe=st.booleans(),
    n_devices=st.integers(1, 2),
    backend=st.sampled_from(["generic", "cuda"]),
)


@settings(max_examples=60, deadline=None)
@given(settings_of_engines, st.sampled_from(["llama-3.1-8b", "gemma-3-12b", "qwen3-30b-a3b", "falcon-mamba-7b"]))
def test_more_context_never_needs_less(wanted: Settings, name: str) -> None:
    header = shape_header(name)
    less, more = predict_memory(header, wanted), predict_memory(header, replace(wanted, n_ctx=2 * wanted.n_ctx))
    for small, large in zip((*less.devices, less.host), (*more.devices, more.host), strict=True):
        assert small.context_bytes <= large.context_bytes
        assert small.model_bytes == large.model_bytes


@settings(max_examples=40, deadline=None)
@given(settings_of_engines, st.sampled_from(["llama-3.1-8b", "gemma-2-9b", "olmoe-1b-7b"]))
def test_cuda_never_needs_less_than_the_plain_rules(wanted: Settings, name: str) -> None:
    header = shape_header(name)
    plain = predict_memory(header, replace(wanted, backend="generic", n_gpu_layers=None, cpu_moe=False))
    cuda = predict_memory(header, replace(wanted, backend="cuda", n_gpu_layers=None, cpu_moe=False))
    for less, more in zip(plain.devices, cuda.devices, strict=True):
        assert less.total_bytes <= more.total_bytes
        assert more.overhead_bytes > less.overhead_bytes == 0


@settings(max_examples=25, deadline=None)
@given(settings_of_engines, st.sampled_from(["llama-3.1-8b", "gemma-3-12b", "gpt-oss-20b", "deepseek-v2-lite"]))
def test_leaving_out_repeated_blocks_changes_nothing(wanted: Settings, name: str) -> None:
    header = shape_header(name)
    wanted = replace(wanted, backend="generic")
    try:
        short = predict_memory(header, replace(wanted, type_v=wanted.type_k))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "without_repeats", lambda labels: list(range(len(labels))))
            whole = predict_memory(header, replace(wanted, type_v=wanted.type_k))
    except FileError:
        raise
    for left, right in zip((*short.devices, short.host), (*whole.devices, whole.host), strict=True):
        assert abs(left.compute_bytes - right.compute_bytes) <= 0.01 * right.compute_bytes
