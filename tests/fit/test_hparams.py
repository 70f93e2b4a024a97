"""Hyper-parameters: llama.cpp's defaults, and no header that makes the reader stumble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import ModelFileError
from modelpipes.fit.architectures import ARCHITECTURES
from modelpipes.fit.context import plan_context
from modelpipes.fit.hparams import Hparams, classify, read_hparams
from modelpipes.fit.placement import place, weigh
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header, Shard
from tests.fit.table import CASES, make_header, weighed

SMALL: dict[str, Any] = {
    "block_count": 4,
    "context_length": 2048,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 8,
    "vocab_size": 100,
}


def header_of(arch: str, **changes: Any) -> Header:
    """A header with `SMALL`'s keys; underscores stand for dots, and None takes a key out."""
    keys = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"{arch}.{key}": value for key, value in keys.items() if value is not None}
    return make_header(arch, {"general.architecture": arch} | metadata, [("token_embd.weight", 1, (64, 100))])


def read(arch: str, **changes: Any) -> Hparams:
    return read_hparams(header_of(arch, **changes))


def test_heads_share_the_embedding_unless_the_file_says_otherwise() -> None:
    assert read("llama").n_embd_head_k == (8,) * 4
    wide = read("llama", attention__key_length=32, attention__value_length=16)
    assert (wide.n_embd_head_k, wide.n_embd_head_v, wide.n_rot) == ((32,) * 4, (16,) * 4, (32,) * 4)


def test_every_query_head_has_keys_of_its_own_unless_the_file_says_otherwise() -> None:
    assert read("llama").n_head_kv == (8,) * 4
    assert read("llama", attention__head_count_kv=[8, 4, 2, 0]).n_head_kv == (8, 4, 2, 0)


def test_a_model_without_heads_is_no_division_by_zero() -> None:
    assert read("llama", attention__head_count=0).n_embd_head_k == (0,) * 4
    assert read("llama", attention__head_count=None).n_head == (0,) * 4


def test_the_vocabulary_is_as_long_as_the_table_of_tokens() -> None:
    assert read("llama", vocab_size=7).n_vocab == 100


def test_blocks_for_next_token_prediction_are_counted_apart() -> None:
    hparams = read("glm4moe", nextn_predict_layers=1)
    assert (hparams.n_layer, hparams.n_layer_nextn, hparams.n_layer_trunk) == (4, 1, 3)


def test_windows_of_gemma_follow_from_the_architecture() -> None:
    assert read("gemma2").n_swa == 4096
    assert read("gemma2").is_swa == (True, False, True, False)
    assert not any(read("gemma3").is_swa)
    assert read("gemma3", block_count=7, attention__sliding_window=512).is_swa == (True,) * 5 + (False, True)


def test_a_list_of_windows_in_the_file_goes_before_the_architectures() -> None:
    listed = [False, True, True, False]
    pattern = {"attention__sliding_window": 512, "attention__sliding_window_pattern": listed}
    assert read("gemma3", **pattern).is_swa == tuple(listed)
    assert read("gemma3", attention__sliding_window=9, attention__sliding_window_pattern=2).is_swa[:2] == (True, False)
    short = {"attention__sliding_window": 512, "attention__sliding_window_pattern": [True]}
    assert read("gemma3", **short).is_swa == (True, False, False, False)


def test_a_window_that_llama_cpp_ignores_is_none() -> None:
    assert read("phi3", attention__sliding_window=262144).swa_type == "none"
    assert read("llama", attention__sliding_window=4096).swa_type == "none"


def test_llama_4_has_chunks_whatever_the_file_says() -> None:
    hparams = read("llama4", attention__sliding_window=77)
    assert (hparams.n_swa, hparams.swa_type, hparams.is_swa) == (8192, "chunked", (True, True, True, False))
    assert read("llama4", attention__sliding_window=0).swa_type == "none"


def test_hybrids_know_their_recurrent_layers() -> None:
    heads = [0, 8, 0, 0]
    assert read("jamba", attention__head_count_kv=heads).is_recr == (True, False, True, True)
    assert read("qwen3next").is_recr == (True, True, True, False)
    assert read("qwen3next", full_attention_interval=2).is_recr == (True, False, True, False)
    assert read("qwen35", attention__recurrent_layers=[False, True, True, True]).is_recr == (False, True, True, True)
    nemotron = read("nemotron_h", attention__head_count_kv=heads, feed_forward_length=[0, 0, 9, 0])
    assert nemotron.is_recr == (True, False, False, True)


def test_latent_attention_needs_both_lengths_and_the_architecture() -> None:
    lengths = {"attention__key_length_mla": 24, "attention__value_length_mla": 16}
    assert read("deepseek2", **lengths).is_mla
    assert not read("deepseek2").is_mla
    assert not read("minicpm3", **lengths).is_mla


def test_looped_blocks_have_caches_of_their_own() -> None:
    hparams = read("nanbeige", num_loops=3)
    assert (hparams.n_layer, len(hparams.n_head)) == (12, 12)


def test_an_unknown_architecture_is_taken_for_a_dense_decoder() -> None:
    header = header_of("llama9", attention__head_count_kv=2)
    hparams = read_hparams(header)
    assert not hparams.known
    placement = place(weigh(header, hparams), hparams, EngineSpec())
    assert plan_context(hparams, placement, EngineSpec()).kv_bytes == (4 * 2 * 2 * 8 * 2 * 4096,)


def test_every_measured_architecture_is_known() -> None:
    assert all(weighed(name)[0].known for name in CASES)
    assert {weighed(name)[0].arch for name in CASES} <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": 0}, "makes 0 blocks"),
        ({"block_count": 513}, "makes 513 blocks"),
        ({"block_count": "4"}, "is '4', not a number"),
        ({"block_count": -1}, "is -1, not a number"),
        ({"embedding_length": None}, "llama.embedding_length is missing"),
        ({"context_length": 2**32}, "not a number from 0 to"),
        ({"attention__head_count": [8, 8]}, "has 2 entries for 4 blocks"),
        ({"attention__head_count_kv": [8, 8, 8, 1.5]}, "is 1.5, not a number"),
        ({"feed_forward_length": []}, "has 0 entries for 4 blocks"),
        ({"nextn_predict_layers": 5}, "more than there are blocks"),
        ({"expert_count": 2048, "expert_used_count": 8}, "llama.cpp takes up to 1024"),
        ({"expert_count": 4, "expert_used_count": 8}, "is 8 of 4 experts"),
        ({"expert_count": 4}, "is 0 of 4 experts"),
    ],
)
def test_a_header_that_llama_cpp_refuses_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read("llama", **changes)


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("gpt-oss", {}, "attention.sliding_window is missing"),
        ("gemma4", {"attention__sliding_window": 512}, "sliding_window_pattern is missing, or no list"),
        ("qwen35", {"full_attention_interval": 0}, "full_attention_interval is 0"),
        ("nanbeige", {"num_loops": 0}, "makes 0 blocks"),
        ("nanbeige", {"num_loops": 500}, "makes 2000 blocks"),
        ("deepseek4", {"attention__sliding_window": 128}, "has 0 entries for 4 blocks"),
    ],
)
def test_what_an_architecture_cannot_do_without_is_demanded(arch: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read(arch, **changes)


KEYS = sorted({key.partition(".")[2] for name in CASES for key in CASES[name][0].header.metadata if "." in key})
ODD = st.one_of(
    st.integers(-3, 700), st.integers(), st.floats(), st.text(max_size=3), st.booleans(),
    st.lists(st.integers(-2, 20), max_size=5), st.lists(st.booleans(), min_size=4, max_size=4),
)  # fmt: skip


@given(arch=st.sampled_from(sorted(ARCHITECTURES)), odd=st.dictionaries(st.sampled_from(KEYS), ODD, max_size=5))
def test_no_header_makes_the_reader_stumble(arch: str, odd: dict[str, Any]) -> None:
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in (SMALL | odd).items()}
    header = make_header(
        arch, metadata, [("token_embd.weight", 1, (64, 100)), ("blk.3.ffn_up_exps.weight", 8, (64, 9))]
    )
    try:
        hparams = read_hparams(header)
        weights = weigh(header, hparams)
    except ModelFileError:
        return
    place(weights, hparams, EngineSpec())


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"general.architecture": "llama", "llama.block_count": 4}, "model"),
        ({"general.architecture": "llama", "llama.block_count": 4, "general.type": "model"}, "model"),
        ({"general.architecture": "clip", "clip.has_vision_encoder": True}, "projector"),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "projector"),
        ({"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}, "adapter"),
        ({"general.architecture": "llama", "adapter.type": "lora"}, "adapter"),
        ({"general.architecture": "controlvector"}, "adapter"),
        ({"general.type": "imatrix"}, "imatrix"),
        ({"imatrix.chunk_count": 10}, "imatrix"),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}, "vocabulary"),
        ({"general.architecture": "flux"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_files_are_told_apart(metadata: dict[str, Any], kind: str) -> None:
    assert classify(make_header("file", metadata, [("token_embd.weight", 1, (64, 100))])) == kind


def test_a_model_without_weights_is_a_vocabulary_unless_they_are_in_other_shards() -> None:
    header = replace(header_of("llama"), tensors=())
    assert classify(header) == "vocabulary"
    assert classify(replace(header, shard=Shard(0, 2, 9))) == "model"
