from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from msgspec import structs

from modelpipes.fit.memory import Predictor
from modelpipes.fit.rating import (
    LEAST_CONTEXT,
    STEP,
    Rating,
    Space,
    device_spare_bytes,
    host_work,
    largest,
    partial_layers,
    rate,
    spare_bytes,
)
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header
from tests.fit.table import shape_header

MIB = 1 << 20
GIB = 1 << 30
PLENTY = 1 << 50
ORDER = ("no", "partial", "tight", "fits")
# Dense, tied, a window, a mixture, latent attention, recurrent, a short context.
NAMES = (
    "llama-3.1-8b", "qwen3-0.6b", "gemma-3-12b", "qwen3-30b-a3b", "deepseek-v2-lite", "falcon-mamba-7b", "olmoe-1b-7b",
)  # fmt: skip
ASKED = EngineSpec(backend="cuda")
a_model = st.sampled_from(NAMES)
a_context = st.sampled_from([100, 512, 2048, 4096, 10_000, 200_000])


@cache
def header(name: str) -> Header:
    return shape_header(name)


@cache
def predictor(name: str) -> Predictor:
    return Predictor(header(name))


def needed_bytes(name: str, settings: EngineSpec = ASKED) -> int:
    """What all of a model takes of one card."""
    return predictor(name)(settings).device_bytes


def card(free_bytes: int, host_bytes: int = PLENTY, reserve_bytes: int = GIB) -> Space:
    return Space((free_bytes,), host_bytes, reserve_bytes)


def rated(name: str, space: Space, settings: EngineSpec = ASKED) -> Rating:
    return rate(header(name), settings, space)


def planned(name: str, rating: Rating, space: Space) -> EngineSpec:
    """The settings that a rating promises to work."""
    return replace(
        ASKED, n_ctx=rating.fit_context, n_gpu_layers=rating.gpu_layers, cpu_moe=rating.cpu_moe,
        n_devices=len(space.device_bytes), tensor_split=tuple(map(float, space.device_bytes)),
    )  # fmt: skip


class TestFits:
    def test_to_the_byte_with_the_reserve_kept_free(self) -> None:
        needed = needed_bytes("llama-3.1-8b")
        assert rated("llama-3.1-8b", card(needed + GIB)).fit == "fits"
        assert rated("llama-3.1-8b", card(needed + GIB - 1)).fit == "tight"
        assert rated("llama-3.1-8b", card(needed, reserve_bytes=0)).fit == "fits"

    def test_a_context_beyond_the_trained_one_is_cut_to_it(self) -> None:
        rating = rated("olmoe-1b-7b", card(PLENTY), replace(ASKED, n_ctx=1 << 20))
        assert (rating.fit, rating.n_ctx, rating.fit_context, rating.max_context) == ("fits", 4096, 4096, 4096)

    def test_the_host_must_have_its_part_too(self) -> None:
        host = predictor("llama-3.1-8b")(ASKED).host.total_bytes
        assert rated("llama-3.1-8b", card(PLENTY, host)).fit == "fits"
        short = rated("llama-3.1-8b", card(PLENTY, host - 1))
        assert short.fit != "fits"
        assert not short.reason.startswith("leaves")


class TestTight:
    def test_into_the_reserve_to_its_last_byte(self) -> None:
        needed = needed_bytes("llama-3.1-8b")
        rating = rated("llama-3.1-8b", card(needed))
        assert (rating.fit, rating.fit_context, rating.reason) == (
            "tight", 4096, "leaves 0 MiB of the reserve of 1,024 MiB",
        )  # fmt: skip

    def test_at_a_smaller_context_where_the_reserve_is_too_little(self) -> None:
        space = card(needed_bytes("llama-3.1-8b") - 1, reserve_bytes=0)
        rating = rated("llama-3.1-8b", space)
        assert (rating.fit, rating.fit_context, rating.max_context) == ("tight", 3840, 3840)
        assert rating.reason == "at a context of 3840"

    def test_but_not_below_the_least(self) -> None:
        least = needed_bytes("llama-3.1-8b", replace(ASKED, n_ctx=LEAST_CONTEXT))
        assert rated("llama-3.1-8b", card(least, reserve_bytes=0)).fit_context == LEAST_CONTEXT
        rating = rated("llama-3.1-8b", card(least - 1, reserve_bytes=0))
        assert (rating.fit, rating.max_context) == ("partial", LEAST_CONTEXT - STEP)

    def test_the_reserve_is_not_said_to_be_eaten_where_the_host_lacks_memory(self) -> None:
        host = predictor("llama-3.1-8b")(ASKED).host.total_bytes
        assert rated("llama-3.1-8b", card(PLENTY, host // 2)).fit == "no"


class TestPartial:
    def test_the_most_layers_that_fit(self) -> None:
        space = card(needed_bytes("llama-3.1-8b") // 2, reserve_bytes=0)
        rating = rated("llama-3.1-8b", space)
        assert (rating.fit, rating.n_layers) == ("partial", 33)
        settings = planned("llama-3.1-8b", rating, space)
        predict = predictor("llama-3.1-8b")
        assert device_spare_bytes(predict(settings), space) >= 0
        assert device_spare_bytes(predict(replace(settings, n_gpu_layers=rating.gpu_layers + 1)), space) < 0
        assert "of 33 layers; the rest takes" in rating.reason

    def test_the_rest_must_fit_the_host(self) -> None:
        space = card(needed_bytes("llama-3.1-8b") // 2, reserve_bytes=0)
        host = rated("llama-3.1-8b", space).host_bytes
        assert rated("llama-3.1-8b", replace(space, host_bytes=host)).fit == "partial"
        assert rated("llama-3.1-8b", replace(space, host_bytes=host - 1)).fit == "no"

    def test_of_a_mixture_the_plan_that_leaves_the_host_less_to_read(self) -> None:
        predict = predictor("qwen3-30b-a3b")
        seen = set()
        for gib in range(2, 17):
            space = card(gib * GIB, reserve_bytes=0)
            rating = rated("qwen3-30b-a3b", space)
            plans = [partial_layers(predict, replace(ASKED, cpu_moe=cpu_moe), space) for cpu_moe in (False, True)]
            best = min((plan for plan in plans if plan.n_gpu_layers), key=lambda plan: host_work(predict, plan))
            assert (rating.gpu_layers, rating.cpu_moe) == (best.n_gpu_layers, best.cpu_moe)
            seen.add(rating.cpu_moe)
        assert seen == {False, True}

    def test_a_card_without_room_for_a_layer_is_of_no_use(self) -> None:
        rating = rated("llama-3.1-8b", card(300 * MIB, reserve_bytes=0))
        assert (rating.fit, rating.gpu_layers, rating.max_context) == ("no", 0, 0)
        assert rating.reason.startswith("needs ")


def test_without_a_room_only_the_memory_is_predicted() -> None:
    rating = rate(header("llama-3.1-8b"), ASKED, None)
    assert (rating.fit, rating.memory) == (None, predictor("llama-3.1-8b")(ASKED))


def test_several_cards_share_by_what_each_has_free() -> None:
    rating = rated("llama-3.1-8b", Space((9 * GIB, 3 * GIB), PLENTY))
    large, small = (share.model_bytes for share in rating.memory.devices)
    assert rating.fit == "fits"
    assert large > 2 * small


@given(name=a_model, n_ctx=a_context, parts=st.lists(st.floats(0.1, 2), min_size=1, max_size=3), reserve=st.booleans(),
       host_bytes=st.sampled_from([1 << 28, 1 << 30, 4 << 30, PLENTY]))  # fmt: skip
@examples(max_examples=40, deadline=None)
def test_what_a_rating_promises_holds(
    name: str, n_ctx: int, parts: list[float], reserve: bool, host_bytes: int
) -> None:
    reserve_bytes = GIB if reserve else 0
    needed = needed_bytes(name)
    space = Space(tuple(int(part * needed) + reserve_bytes for part in parts), host_bytes, reserve_bytes)
    rating = rated(name, space, replace(ASKED, n_ctx=n_ctx))
    predict = predictor(name)
    if rating.fit in ("fits", "tight", "partial"):
        memory = predict(planned(name, rating, space))
        eaten = reserve_bytes if rating.reason.startswith("leaves") else 0
        assert device_spare_bytes(memory, space) >= -eaten
        assert memory.host.total_bytes <= rating.host_bytes <= host_bytes
    if rating.fit == "fits":
        assert rating.fit_context == rating.n_ctx == min(n_ctx, predict.hparams.n_ctx_train)
    whole = replace(planned(name, rating, space), n_gpu_layers=None, cpu_moe=False)
    if rating.max_context:
        assert spare_bytes(predict(replace(whole, n_ctx=rating.max_context)), space) >= 0
    if rating.max_context < predict.hparams.n_ctx_train:
        more = rating.max_context // STEP * STEP + STEP
        assert spare_bytes(predict(replace(whole, n_ctx=more)), space) < 0


@given(name=a_model, n_ctx=a_context, part=st.floats(0.05, 2), more=st.floats(0, 1),
       host_bytes=st.sampled_from([1 << 28, 4 << 30, PLENTY]), more_host=st.floats(0, 1))  # fmt: skip
@examples(max_examples=40, deadline=None)
def test_more_memory_never_gives_a_worse_fit(
    name: str, n_ctx: int, part: float, more: float, host_bytes: int, more_host: float
) -> None:
    settings = replace(ASKED, n_ctx=n_ctx)
    free = int(part * needed_bytes(name))
    less = rated(name, card(free, host_bytes), settings)
    richer = rated(name, card(int(free * (1 + more)), int(host_bytes * (1 + more_host))), settings)
    assert less.fit and richer.fit
    assert ORDER.index(richer.fit) >= ORDER.index(less.fit)
    assert richer.max_context >= less.max_context


@given(name=a_model, part=st.floats(0.05, 1.5), host_bytes=st.sampled_from([1 << 28, 1 << 30, 4 << 30, 20 << 30]),
       other_bytes=st.integers(1 << 27, 40 << 30))  # fmt: skip
@examples(max_examples=40, deadline=None)
def test_a_rating_holds_with_other_host_memory_where_it_says_so(
    name: str, part: float, host_bytes: int, other_bytes: int
) -> None:
    free = int(part * needed_bytes(name))
    rating = rated(name, card(free, host_bytes))
    other = rated(name, card(free, other_bytes))
    if rating.host_bytes <= other_bytes and not (rating.host_limits and other_bytes > host_bytes):
        assert structs.replace(other, host_limits=rating.host_limits) == rating


@given(st.integers(-5, 300), st.integers(-5, 300), st.data())
def test_the_largest_number_is_found_whatever_the_slope(low: int, high: int, data: st.DataObject) -> None:
    falls = data.draw(st.lists(st.integers(0, 50), min_size=306, max_size=306))
    start = data.draw(st.integers(-100, 8000))

    def spare(number: int) -> int:
        assert low <= number <= high
        return start - sum(falls[: number + 5])

    expected = max((number for number in range(low, high + 1) if spare(number) >= 0), default=low - 1)
    assert largest(low, high, spare) == expected
    slack = data.draw(st.integers(0, 200))
    assert largest(low, high, spare, lambda number: spare(number) + slack) == expected


def test_what_a_bound_rules_out_is_not_asked() -> None:
    asked: list[int] = []

    def spare(number: int) -> int:
        asked.append(number)
        return 999 - 100 * number

    assert largest(1, 40, spare, lambda number: 1009 - 100 * number) == 9
    assert max(asked) <= 10
    asked.clear()
    assert largest(20, 40, spare, lambda number: 1009 - 100 * number) == 19
    assert asked == []


def test_a_straight_line_needs_few_questions() -> None:
    asked: list[int] = []

    def spare(number: int) -> int:
        asked.append(number)
        return 12_345_678 - 3456 * number

    assert largest(1, 4096, spare) == 12_345_678 // 3456
    assert len(asked) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_rating_needs_few_predictions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[EngineSpec] = []
    predict = Predictor.__call__

    def counted(self: Predictor, settings: EngineSpec) -> object:
        calls.append(settings)
        return predict(self, settings)

    monkeypatch.setattr(Predictor, "__call__", counted)
    for part in (0.3, 0.7, 1.1, 1.5):
        calls.clear()
        rated(name, card(int(part * needed_bytes(name)) + GIB))
        assert len(calls) <= 30
