"""Contexts: equal to llama.cpp's in every measured row, and sensible where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import UsageError
from modelpipes.fit.context import Context, plan_context
from modelpipes.fit.placement import place
from modelpipes.fit.settings import Settings
from modelpipes.gguf.types import CACHE_TYPES, TYPE_IDS
from tests.fit.table import CASES, Case, weighed

# One of each kind of memory.
VARIED = (
    "bge-base-en",
    "llama-3.2-1b",
    "gemma-2-9b",
    "gemma-3n-e4b",
    "deepseek-v2-lite",
    "deepseek-v2-lite-old",
    "falcon-mamba-7b",
    "jamba-v0.1",
    "falcon-h1-1.5b",
    "qwen3.5-9b",
    "kimi-linear-48b-a3b",
    "rwkv-7-1.5b",
    "lfm2-1.2b",
    "deepseek4-moe",
    "glm-dsa-moe",
    "dots3note-moe",
    "minimax-m3-moe",
    "glm5-next-moe",
)


def plan(name: str, settings: Settings) -> Context:
    hparams, weights = weighed(name)
    return plan_context(hparams, place(weights, hparams, settings), settings)


@pytest.mark.parametrize("name", CASES)
def test_context_is_llama_cpps_to_the_byte(name: str) -> None:
    for case in CASES[name]:
        assert planned_bytes(case) == measured_bytes(case), case.settings


def measured_bytes(case: Case) -> list[int] | None:
    return None if case.figures is None else [place.context for place in case.figures]


def planned_bytes(case: Case) -> list[int] | None:
    try:
        context = plan(case.name, case.settings)
    except UsageError:
        return None
    return [*context.device_bytes, context.host_bytes]


@given(name=st.sampled_from(VARIED), n_ctx=st.integers(1, 2**20), more=st.integers(1, 2**20), unified=st.booleans())
def test_a_longer_context_never_takes_less(name: str, n_ctx: int, more: int, unified: bool) -> None:
    settings = Settings(n_ctx=n_ctx, n_parallel=3, kv_unified=unified, n_gpu_layers=7)
    short, long = plan(name, settings), plan(name, replace(settings, n_ctx=n_ctx + more))
    assert short.host_bytes <= long.host_bytes
    assert short.device_bytes <= long.device_bytes
    assert short.state_bytes == long.state_bytes


@given(name=st.sampled_from(VARIED), layers=st.integers(0, 100), split=st.floats(0, 1), n_parallel=st.integers(1, 9))
def test_where_the_layers_lie_changes_nothing_in_all(name: str, layers: int, split: float, n_parallel: int) -> None:
    whole = plan(name, Settings(n_parallel=n_parallel))
    shared = plan(
        name, Settings(n_parallel=n_parallel, n_gpu_layers=layers, n_devices=2, tensor_split=(split, 1 - split))
    )
    assert sum(shared.device_bytes) + shared.host_bytes == sum(whole.device_bytes)
    assert shared.caches == whole.caches


@given(n_ctx=st.integers(1, 2**20), n_parallel=st.integers(1, 64), unified=st.booleans())
def test_every_sequence_has_whole_blocks_of_256_cells(n_ctx: int, n_parallel: int, unified: bool) -> None:
    context = plan("llama-3.2-1b", Settings(n_ctx=n_ctx, n_parallel=n_parallel, kv_unified=unified))
    assert context.cells == context.n_ctx_seq
    assert context.n_ctx_seq % 256 == 0
    assert context.n_ctx == context.n_ctx_seq * (1 if unified else n_parallel)
    assert context.n_streams == (1 if unified else n_parallel)


def test_a_window_is_no_wider_than_the_context() -> None:
    assert plan("gemma-2-9b", Settings(n_ctx=2048)).cells_swa == 2048
    assert plan("gemma-2-9b", Settings(n_ctx=32768)).cells_swa == 4096 + 512


def test_the_window_of_a_unified_cache_holds_every_sequence() -> None:
    one = plan("gpt-oss-20b", Settings(n_ctx=65536))
    four = plan("gpt-oss-20b", Settings(n_ctx=65536, n_parallel=4))
    assert (one.cells_swa, four.cells_swa) == (768, 1024)


def test_the_batch_is_cut_to_the_context_of_models_that_write() -> None:
    assert plan("llama-3.2-1b", Settings(n_ctx=256, n_ubatch=1024)).n_ubatch == 256
    assert plan("bge-base-en", Settings(n_ctx=256, n_ubatch=1024)).n_ubatch == 1024


def test_state_grows_with_sequences_and_not_with_the_context() -> None:
    one = plan("falcon-mamba-7b", Settings(n_ctx=4096))
    four = plan("falcon-mamba-7b", Settings(n_ctx=65536, n_parallel=4))
    assert one.kv_bytes == four.kv_bytes == (0,)
    assert four.state_bytes == (4 * one.state_bytes[0],)


def test_grok_never_has_flash_attention() -> None:
    assert not plan("grok-2", Settings()).flash_attn


def test_cuda_pads_rows_of_quantised_caches() -> None:
    settings = Settings(type_k="q8_0", type_v="q8_0")
    generic = plan("deepseek-v2-lite", settings)
    cuda = plan("deepseek-v2-lite", replace(settings, backend="cuda"))
    # Rows of 576 elements are read in pieces of 512: each layer's cache ends with 448 more.
    padding = -(-448 // 32 * 34 // 128) * 128
    assert cuda.kv_bytes[0] - generic.kv_bytes[0] == 27 * padding


def test_cache_types_are_known() -> None:
    assert set(CACHE_TYPES) <= set(TYPE_IDS)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("llama-3.2-1b", Settings(type_v="q8_0", flash_attn=False), "needs flash attention"),
        ("falcon-mamba-7b", Settings(type_v="q8_0", flash_attn=False), "needs flash attention"),
        ("grok-2", Settings(type_v="q8_0"), "needs flash attention"),
        ("llama-3.2-1b", Settings(type_k="q6_K"), "no cache can be of type q6_K"),
        ("deepseek-v2-lite", Settings(type_k="q8_0"), "K and V caches of one type"),
        ("stablelm-3b", Settings(type_k="q8_0"), "whole blocks"),
        ("llama-3.2-1b", Settings(n_parallel=257), "1 to 256 sequences"),
        ("llama-3.2-1b", Settings(n_parallel=0), "1 to 256 sequences"),
    ],
)
def test_settings_that_llama_cpp_refuses_are_refused(name: str, settings: Settings, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plan(name, settings)
