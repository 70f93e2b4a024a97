"""Plans: properties that hold in every space, and the plans that people ask for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpipes.errors import FileError, UsageError
from modelpipes.fit import EngineSpec, predict_memory
from modelpipes.fit.arrangement import choose_devices
from modelpipes.fit.plan import MAX_MODELS, Plan, Planned, Wishes, plan
from modelpipes.fit.rating import LEAST_CONTEXT, STEP, Space
from modelpipes.gguf.header import Header
from tests.fit.table import shape_header

GIB = 1 << 30
MIB = 1 << 20
RTX_4080 = Space((16376 * MIB,), 32 * GIB)
TWO_RTX_3060 = Space((12288 * MIB,) * 2, 32 * GIB)
KINDS = ["none", "turns", "partial", "whole"]  # the better, the later

# One of each kind that the plan tells apart: dense, tied, a mixture, without a cache, with a short context.
NAMES = st.lists(
    st.sampled_from(["llama-3.1-8b", "llama-3.2-1b", "gpt-oss-20b", "falcon-mamba-7b", "olmoe-1b-7b"]),
    min_size=1,
    max_size=3,
)
SIZES = st.integers(1, 28 * 1024).map(lambda n: n * MIB)
HOSTS = st.sampled_from([0, 1, 4, 8, 16, 64]).map(lambda n: n * GIB)
ROOMS = st.builds(Space, st.lists(SIZES, min_size=1, max_size=3).map(tuple), HOSTS, st.sampled_from([0, GIB]))
WISHES = st.builds(
    Wishes,
    n_ctx=st.sampled_from([None, None, 3000, 8192]),
    whole_only=st.booleans(),
    n_parallel=st.sampled_from([1, 1, 4]),
    flash_attn=st.sampled_from([True, True, False]),
)


def headers(names: Sequence[str]) -> list[Header]:
    return [shape_header(name) for name in names]


def lacks(space: Space, names: Sequence[str], models: Sequence[tuple[int, Planned]]) -> bool:
    """Whether these models are too much for a space, each predicted afresh."""
    left, host = [free - space.reserve_bytes for free in space.device_bytes], space.host_bytes
    used = set()
    for number, model in models:
        memory = predict_memory(shape_header(names[number]), model.settings)
        assert memory == model.memory
        host -= memory.host.total_bytes
        for device, share in zip(model.devices, memory.devices, strict=True):
            left[device] -= share.total_bytes
            used.add(device)
    return host < 0 or any(left[device] < 0 for device in used)


def residents(made: Plan) -> list[tuple[int, Planned]]:
    return [(number, model) for number, model in enumerate(made.models) if model.resident]


@settings(max_examples=60, deadline=None)
@given(NAMES, ROOMS, WISHES)
def test_no_plan_is_over_the_budget_in_any_turn(names: list[str], space: Space, wishes: Wishes) -> None:
    made = plan(headers(names), space, wishes)
    assert not lacks(space, names, residents(made))
    for swap in made.swaps:
        staying = [(number, model) for number, model in residents(made) if number not in swap.leaves]
        assert not lacks(space, names, [*staying, (swap.enters, made.models[swap.enters])])


@settings(max_examples=40, deadline=None)
@given(NAMES, ROOMS, WISHES)
def test_a_plan_keeps_the_wishes_and_says_what_becomes_of_every_model(
    names: list[str], space: Space, wishes: Wishes
) -> None:
    made = plan(headers(names), space, wishes)
    assert made.is_together == all(model.resident for model in made.models)
    assert [model.reason for model in made.models if not model.reason] == []
    for number, model in enumerate(made.models):
        trained = shape_header(names[number]).metadata[f"{shape_header(names[number]).architecture}.context_length"]
        assert isinstance(trained, int)
        assert model.settings.n_ctx == min(trained, made.n_ctx)
        assert made.n_ctx >= min(wishes.n_ctx or wishes.min_ctx, trained)
        assert (model.settings.n_parallel, model.settings.flash_attn) == (wishes.n_parallel, wishes.flash_attn)
        assert model.fit != "partial" or not wishes.whole_only
        assert model.resident + (number in [swap.enters for swap in made.swaps]) + (model.fit == "no") == 1


@settings(max_examples=40, deadline=None)
@given(NAMES, st.lists(SIZES, min_size=2, max_size=2).map(sorted), HOSTS)
def test_more_memory_never_gives_a_worse_plan(names: list[str], sizes: list[int], host_bytes: int) -> None:
    less, more = (plan(headers(names), Space((size,), host_bytes)) for size in sizes)
    assert KINDS.index(less.kind) <= KINDS.index(more.kind)
    assert less.n_ctx <= more.n_ctx


@settings(max_examples=30, deadline=None)
@given(NAMES, ROOMS, WISHES)
def test_asked_twice_the_plan_is_the_same(names: list[str], space: Space, wishes: Wishes) -> None:
    assert plan(headers(names), space, wishes) == plan(headers(names), space, wishes)


@settings(max_examples=30, deadline=None)
@given(NAMES.filter(lambda names: len(names) > 1), SIZES)
def test_what_is_whole_together_is_whole_with_fewer_models(names: list[str], size: int) -> None:
    space = Space((size,), 64 * GIB)
    together = plan(headers(names), space)
    if together.kind == "whole":
        fewer = plan(headers(names[1:]), space)
        assert fewer.kind == "whole"
        assert all(a.settings.n_ctx >= b.settings.n_ctx for a, b in zip(fewer.models, together.models[1:], strict=True))


@settings(max_examples=30, deadline=None)
@given(NAMES, SIZES)
def test_no_longer_context_fits_with_any_type_and_no_better_type_with_this_context(names: list[str], size: int) -> None:
    space = Space((size,), 64 * GIB)
    made = plan(headers(names), space)
    if made.kind != "whole":
        return

    def fits(n_ctx: int, kv_type: str) -> bool:
        needed = 0
        for number, model in enumerate(made.models):
            longest = plan(headers([names[number]]), Space((256 * GIB,), 64 * GIB)).n_ctx
            wanted = replace(model.settings, n_ctx=min(n_ctx, longest), type_k=kv_type, type_v=kv_type)
            needed += predict_memory(shape_header(names[number]), wanted).devices[0].total_bytes
        return needed <= size - space.reserve_bytes

    is_longest = made.n_ctx >= max(plan(headers([name]), Space((256 * GIB,), 64 * GIB)).n_ctx for name in names)
    assert is_longest or not any(fits(made.n_ctx + STEP, kv_type) for kv_type in made.contexts)
    types = [model.settings.type_k for model in made.models]
    worst = max(types, key=list(made.contexts).index)
    better = itertools.takewhile(lambda kv_type: kv_type != worst, made.contexts)
    assert not any(fits(made.n_ctx, kv_type) for kv_type in better)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=4).map(lambda sizes: sorted(sizes, reverse=True)),
    st.lists(st.integers(-5, 100), min_size=1, max_size=3),
)
def test_devices_are_chosen_so_that_the_fullest_has_the_most_left(sizes: list[int], left: list[int]) -> None:
    def spare(devices: Sequence[int]) -> int:
        return min(
            left[device] - sum(size for size, at in zip(sizes, devices, strict=True) if at == device)
            for device in set(devices)
        )

    every = itertools.product(range(len(left)), repeat=len(sizes))
    assert spare(choose_devices(sizes, left)) == max(map(spare, every))


class TestOnOneCard:
    def test_two_8b_models_fit_an_rtx_4080_with_a_long_context(self) -> None:
        made = plan(headers(["llama-3.1-8b", "qwen2.5-7b"]), RTX_4080)
        assert (made.kind, made.n_ctx) == ("whole", 131072)
        assert [model.settings.n_ctx for model in made.models] == [131072, 32768]
        assert made.models[1].reason == "trained for 32768 tokens"

    def test_three_fit_it_with_a_worse_cache_and_the_plan_says_what_a_better_one_would_cost(self) -> None:
        made = plan(headers(["llama-3.1-8b"] * 3), RTX_4080)
        assert made.kind == "whole"
        assert made.contexts["f16"] < made.contexts["q8_0"] < made.contexts["q4_0"] == made.n_ctx
        assert f"f16 would end at {made.contexts['f16']}" in made.reason
        assert f"{made.n_ctx + STEP} would need" in made.reason

    def test_a_model_named_first_gets_the_better_cache_where_one_has_room_for_it(self) -> None:
        made = plan(headers(["qwen3-0.6b", "llama-3.1-8b"]), Space((10 * GIB,), 32 * GIB), Wishes(n_ctx=32768))
        assert [model.settings.type_k for model in made.models] == ["q8_0", "q4_0"]
        assert made.models[0].reason == "there is space for a cache of q8_0"

    def test_a_mixture_too_large_keeps_on_the_host_what_costs_least(self) -> None:
        made = plan(headers(["qwen3-30b-a3b"]), RTX_4080)
        (model,) = made.models
        assert (made.kind, made.n_ctx, model.fit) == ("partial", LEAST_CONTEXT, "partial")
        assert model.settings.type_k == "f16"
        assert 30 < model.gpu_layers < model.n_layers
        small = plan(headers(["qwen3-30b-a3b"]), Space((3 * GIB,), 32 * GIB)).models[0]
        assert (small.settings.cpu_moe, small.gpu_layers) == (True, small.n_layers)

    def test_experts_leave_the_card_before_layers_of_a_dense_model_do(self) -> None:
        made = plan(headers(["llama-3.1-8b", "qwen3-30b-a3b"]), RTX_4080)
        assert [model.fit for model in made.models] == ["fits", "partial"]

    def test_what_may_not_go_to_the_host_takes_turns(self) -> None:
        names = ["llama-3.1-8b", "qwen2.5-7b", "gemma-3-12b"]
        made = plan(headers(names), RTX_4080, Wishes(whole_only=True))
        assert made.kind == "turns"
        assert [model.resident for model in made.models] == [True, False, True]
        (swap,) = made.swaps
        assert (swap.enters, swap.leaves) == (1, (0,))
        weights = [predict_memory(shape_header(name), EngineSpec()) for name in names]
        loads, returns = (
            memory.devices[0].model_bytes + memory.host.model_bytes for memory in (weights[1], weights[0])
        )
        assert abs(swap.loads_bytes - loads) < MIB
        assert abs(swap.returns_bytes - returns) < MIB

    def test_a_model_that_does_not_fit_even_alone_is_said_to(self) -> None:
        made = plan(headers(["qwen3-30b-a3b", "qwen3-0.6b"]), Space((6 * GIB,), 2 * GIB))
        assert made.kind == "none"
        assert [model.fit for model in made.models] == ["no", "fits"]
        assert made.models[0].reason.startswith("needs 17.")
        assert made.swaps == ()

    def test_a_context_that_is_asked_for_is_kept(self) -> None:
        made = plan(headers(["llama-3.1-8b"] * 2), RTX_4080, Wishes(n_ctx=10000))
        assert (made.n_ctx, made.models[0].settings.type_k) == (10000, "f16")
        assert "as asked for" in made.reason

    def test_a_type_that_a_model_refuses_is_not_used_for_it(self) -> None:
        known = shape_header("llama-3.1-8b")
        narrow = replace(
            known,
            metadata={**known.metadata, "llama.attention.key_length": 80, "llama.attention.value_length": 80},
            signature=b"heads of 80",
        )
        made = plan([narrow, known], RTX_4080, Wishes(min_ctx=40960))
        assert [model.settings.type_k for model in made.models] == ["f16", "q4_0"]
        assert "80 elements" in made.models[0].reason
        with pytest.raises(UsageError, match="80 elements"):
            plan([narrow, known], RTX_4080, Wishes(kv_types=("q8_0",)))

    def test_a_quantised_cache_without_flash_attention_is_refused(self) -> None:
        with pytest.raises(UsageError, match="needs flash attention"):
            plan(headers(["llama-3.1-8b"]), RTX_4080, Wishes(kv_types=("q8_0",), flash_attn=False))
        assert list(plan(headers(["llama-3.1-8b"]), RTX_4080, Wishes(flash_attn=False)).contexts) == ["f16"]

    def test_an_unknown_architecture_makes_the_plan_an_estimate(self) -> None:
        known = shape_header("qwen2.5-7b")
        metadata = {key.replace("qwen2.", "newcomer."): value for key, value in known.metadata.items()}
        header = replace(known, metadata={**metadata, "general.architecture": "newcomer"}, signature=b"new here")
        made = plan([header], RTX_4080)
        assert made.estimate == "generic"
        assert "general rule" in made.models[0].reason


class TestOnSeveralCards:
    def test_two_models_get_a_card_each_where_that_gives_as_much(self) -> None:
        made = plan(headers(["llama-3.1-8b"] * 2), TWO_RTX_3060)
        assert (made.kind, made.n_ctx) == ("whole", 131072)
        assert [model.devices for model in made.models] == [(0,), (1,)]

    def test_a_model_that_no_card_holds_alone_is_split_by_what_is_free(self) -> None:
        (model,) = plan(headers(["qwen3-30b-a3b"]), Space((10 * GIB, 14 * GIB), 32 * GIB)).models
        assert model.devices == (0, 1)
        assert model.settings.tensor_split == (9216.0, 13312.0)
        assert model.memory.devices[0].model_bytes < model.memory.devices[1].model_bytes

    def test_a_12b_and_an_8b_share_two_cards_of_12_gb(self) -> None:
        made = plan(headers(["mistral-nemo-12b", "llama-3.1-8b"]), TWO_RTX_3060)
        assert made.kind == "whole"
        assert made.n_ctx > 65536

    def test_a_card_without_room_is_left_out(self) -> None:
        (model,) = plan(headers(["qwen3-30b-a3b"]), Space((GIB, 14 * GIB, 14 * GIB), 32 * GIB)).models
        assert model.devices == (1, 2)


def test_without_a_device_the_host_is_what_is_shared() -> None:
    space = Space((), 12 * GIB)
    made = plan(headers(["llama-3.1-8b", "qwen2.5-7b"]), space, Wishes(backend="generic"))
    assert made.kind == "whole"
    assert [(model.devices, model.gpu_layers) for model in made.models] == [((), 0)] * 2
    assert not lacks(space, ["llama-3.1-8b", "qwen2.5-7b"], residents(made))
    assert plan(headers(["llama-3.1-8b"] * 3), space, Wishes(backend="generic")).kind == "turns"


def test_a_projector_is_refused_and_so_are_too_many_models() -> None:
    known = shape_header("llama-3.2-1b")
    with pytest.raises(FileError, match="projector"):
        plan([replace(known, metadata={"general.architecture": "clip"}, signature=b"a projector")], RTX_4080)
    for models in ([], [known] * (MAX_MODELS + 1)):
        with pytest.raises(UsageError, match=f"1 to {MAX_MODELS}"):
            plan(models, RTX_4080)
