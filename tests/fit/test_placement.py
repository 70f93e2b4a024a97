"""Placing weights: equal to llama.cpp in every measured row; nothing lost, nothing counted twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import ModelFileError, UsageError
from modelpipes.fit.hparams import read_hparams
from modelpipes.fit.placement import (
    EXPERTS,
    INPUT,
    OUTPUT,
    TABLE,
    UNUSED,
    Placement,
    layer_devices,
    locate,
    place,
    size_of,
    weigh,
)
from modelpipes.fit.spec import EngineSpec
from tests.fit.table import CASES, make_header, weighed

NAMES = st.sampled_from(sorted(CASES))
LAYERS = st.integers(-1, 100)


def placed(name: str, settings: EngineSpec) -> Placement:
    hparams, weights = weighed(name)
    return place(weights, hparams, settings)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_llama_cpps_to_the_byte(name: str) -> None:
    for case in CASES[name]:
        if case.figures is not None:
            placement = placed(name, case.settings)
            measured = [place.model for place in case.figures]
            assert [*placement.model_bytes, placement.host_model_bytes] == measured, case.settings


@given(name=NAMES, layers=LAYERS, split=st.floats(0, 1), cpu_moe=st.booleans())
def test_every_tensor_is_counted_where_it_is_said_to_lie(name: str, layers: int, split: float, cpu_moe: bool) -> None:
    settings = EngineSpec(n_gpu_layers=layers, n_devices=2, tensor_split=(split, 1 - split), cpu_moe=cpu_moe)
    hparams, weights = weighed(name)
    placement = place(weights, hparams, settings)
    sums = {0: 0, 1: 0, None: 0}
    tensors = CASES[name][0].header.tensors
    for tensor in tensors:
        home = locate(tensor.name, hparams)
        if home not in (UNUSED, TABLE):
            sums[placement.device_of(tensor.name, home)] += size_of(tensor).plain
    for device in {placement.layers[layer] for layer in weights.table_layers}:
        sums[device] += weights.tables.plain
    if placement.output is not None or weights.tied_always_copied:
        sums[placement.output] += weights.tied.plain
    if name == "codeshell-7b":  # its input is a copy of its output
        sums[placement.output] += next(size_of(tensor).plain for tensor in tensors if tensor.name == OUTPUT)
    assert (sums[0], sums[1], sums[None]) == (*placement.model_bytes, placement.host_model_bytes)


@given(name=NAMES, layers=st.integers(0, 100))
def test_another_layer_on_the_device_never_makes_it_hold_less(name: str, layers: int) -> None:
    fewer, more = (placed(name, EngineSpec(n_gpu_layers=n)) for n in (layers, layers + 1))
    assert fewer.model_bytes <= more.model_bytes
    assert fewer.host_model_bytes >= more.host_model_bytes


@given(name=NAMES, layers=LAYERS)
def test_layers_and_what_is_beside_them_make_the_whole(name: str, layers: int) -> None:
    hparams, weights = weighed(name)
    placement = place(weights, hparams, EngineSpec(n_gpu_layers=layers))
    tables = len({placement.layers[layer] for layer in weights.table_layers}) * weights.tables.plain
    held = sum(placement.model_bytes) + placement.host_model_bytes
    assert sum(placement.layer_bytes) + weights.inputs.plain + tables == held


@given(name=NAMES, layers=LAYERS)
def test_experts_on_the_host_leave_the_rest_where_it_is(name: str, layers: int) -> None:
    settings = EngineSpec(n_gpu_layers=layers)
    without, with_experts = placed(name, replace(settings, cpu_moe=True)), placed(name, settings)
    moved = sum(with_experts.model_bytes) - sum(without.model_bytes)
    assert moved == without.host_model_bytes - with_experts.host_model_bytes
    assert 0 <= moved <= sum(size.plain for size in weighed(name)[1].experts)
    assert without.layers == with_experts.layers


@given(name=NAMES, layers=LAYERS)
def test_cuda_never_takes_less_and_the_host_is_the_same(name: str, layers: int) -> None:
    settings = EngineSpec(n_gpu_layers=layers)
    generic, cuda = placed(name, settings), placed(name, replace(settings, backend="cuda"))
    assert cuda.model_bytes >= generic.model_bytes
    assert cuda.host_model_bytes == generic.host_model_bytes


@given(n_layer=st.integers(1, 512), layers=st.integers(-1, 600), split=st.lists(st.floats(0, 100), max_size=6))
def test_layers_go_to_the_devices_in_order_and_the_first_stay_on_the_host(
    n_layer: int, layers: int, split: list[float]
) -> None:
    settings = EngineSpec(n_gpu_layers=layers, n_devices=max(len(split), 1), tensor_split=tuple(split) or None)
    devices = layer_devices(n_layer, settings)
    on_host = [device for device in devices if device is None]
    on_devices = [device for device in devices if device is not None]
    assert len(devices) == n_layer + 1
    assert list(devices) == on_host + sorted(on_devices)
    assert len(on_devices) == (n_layer + 1 if layers < 0 else min(layers, n_layer + 1))


def test_shares_follow_the_split() -> None:
    devices = layer_devices(31, EngineSpec(n_devices=3, tensor_split=(2.0, 1.0, 1.0)))
    assert [devices.count(device) for device in (0, 1, 2)] == [16, 8, 8]


def test_a_split_of_nothing_is_even() -> None:
    assert layer_devices(9, EngineSpec(n_devices=2, tensor_split=(0.0, 0.0))) == (0,) * 5 + (1,) * 5


def test_no_device_means_that_all_stays_on_the_host() -> None:
    placement = placed("llama-3.2-1b", EngineSpec(n_devices=0))
    assert placement.model_bytes == ()
    assert placement.output is None


def test_a_negative_share_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be negative"):
        layer_devices(9, EngineSpec(n_devices=2, tensor_split=(-1.0, 2.0)))


def test_cuda_pads_the_rows_of_quantised_matrices() -> None:
    header = make_header("odd", {"general.architecture": "llama"}, [("blk.0.ffn_down.weight", 8, (96, 10))])
    # 96 elements of Q8_0 are 102 bytes; a row of 416 more is read past the end.
    assert size_of(header.tensors[0]) == (1024, -(-(1020 + 416 // 32 * 34) // 128) * 128)


@given(name=NAMES, tensor=st.text() | st.from_regex(r"(enc\.|dec\.)?(blk|posnet|convnext)\.[0-9.]*\w*"))
def test_any_name_has_a_place(name: str, tensor: str) -> None:
    hparams, _ = weighed(name)
    assert locate(tensor, hparams) in {INPUT, TABLE, UNUSED, *range(hparams.n_layer + 1)}


def test_experts_are_found_as_llama_cpp_finds_them() -> None:
    found = [f"blk.0.ffn_{name}.weight" for name in ("up_exps", "gate_up_exps", "down_chexps", "gate_exps")]
    assert all(map(EXPERTS.search, found))
    assert not any(map(EXPERTS.search, ("blk.0.ffn_up_shexp.weight", "blk.0.ffn_norm_exps.weight")))


def test_a_tensor_of_an_unknown_type_is_refused() -> None:
    header = CASES["qwen3-0.6b"][0].header
    bad = replace(header, tensors=(header.tensors[0]._replace(type=99, n_bytes=None),))
    with pytest.raises(ModelFileError, match="is of type 99, which"):
        weigh(bad, read_hparams(header))
