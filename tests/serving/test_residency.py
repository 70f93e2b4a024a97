"""The residency decision: single situations, any situation, and thousands of workloads run to their end."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import statistics
from collections.abc import Callable, Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpipes.serving.bytes import Bytes
from modelpipes.serving.residency import decide, wake_at
from modelpipes.serving.situation import Move, Refuse, Start, Use, Waiting, Yield
from modelpipes.serving.uses import next_uses
from tests.serving.simulate import (
    Request,
    Workload,
    best_with_reordering,
    equal_models,
    optimal_swaps,
    quick_workload,
    random_clients,
    random_workload,
    random_workload_with_classes,
    served_in_turn,
    simulate,
    trace_with_phases,
    traces,
)
from tests.serving.situations import Scene, at, identity, model, resident, scenes, settled, told

WORKLOADS = int(os.environ.get("MODELPIPES_WORKLOADS", "2400"))
CHUNKS = 8  # of the workloads, so that several cores share them


def test_nothing_to_do_is_no_action_and_no_moment() -> None:
    assert decide(at(0)) == ()
    assert wake_at(at(0)) is None


def test_a_request_for_a_ready_model_starts() -> None:
    assert told(at(100, resident("a"), waiting="a")) == [("start", 0)]


def test_no_more_start_than_the_model_runs_at_a_time() -> None:
    two = (model("a", sequences=2),)
    assert told(at(100, resident("a", running=1), waiting="aaa", models=two)) == [("start", 0)]


def test_a_model_that_fits_is_loaded_with_the_room_it_takes_in_the_reason() -> None:
    (action,) = decide(at(100, resident("a"), waiting="b"))
    assert action == Move("load", "b", "b: 4.7 GiB needed, 4.7 GiB free")


def test_a_load_in_flight_is_joined() -> None:
    assert told(at(100, resident("a", state="loading"), waiting="aaa")) == []


def test_one_load_serves_all_who_wait_for_the_model() -> None:
    assert told(at(100, waiting="aaa")) == [("load", "a")]


def test_the_least_recently_used_makes_room() -> None:
    situation = at(100, resident("a", last_used=50), resident("b", last_used=40), waiting="c")
    (action,) = decide(situation)
    assert action == Move(
        "stop",
        "b",
        "c: 4.7 GiB needed, 0 B free; "
        "b is idle for 1m and the least used for what it costs to load again; frees 4.7 GiB",
    )


def test_what_is_dear_to_load_again_is_kept_though_it_was_used_earlier() -> None:
    dear = (model("b", load_s=60.0),)
    assert told(at(100, resident("a", last_used=50), resident("b", last_used=40), waiting="c", models=dear)) == [
        ("stop", "a")
    ]


def test_one_that_suffices_goes_rather_than_two_that_were_used_earlier() -> None:
    small = resident("a", 2, last_used=1), resident("b", 2, last_used=2)
    assert told(at(100, *small, resident("c", 6, last_used=60), waiting="d")) == [("stop", "c")]


def test_two_go_where_one_is_not_enough() -> None:
    few = resident("a", 3, last_used=3), resident("b", 3, last_used=2), resident("c", 4, last_used=1)
    big = (model("d", 7),)
    assert told(at(100, *few, waiting="d", models=big)) == [("stop", "c"), ("stop", "b")]


def test_with_many_small_models_no_more_go_than_needed() -> None:
    names = [f"small{number}" for number in range(20)]
    small = tuple(model(name, 1) for name in names)
    residents = [resident(name, 1, last_used=number) for number, name in enumerate(names)]
    actions = told(at(100, *residents, waiting="a", models=small, budget=20))
    assert actions == [("stop", name) for name in reversed(names[:5])] or actions == [
        ("stop", name) for name in names[:5]
    ]


def test_nothing_is_loaded_before_the_stopped_one_has_gone() -> None:
    assert told(at(100, resident("a", state="stopping"), resident("b", running=1), waiting="c")) == []


def test_host_memory_is_a_budget_too() -> None:
    both = (model("b", 1, host=60),)
    assert told(at(100, resident("a", 1, host=50), waiting="b", models=both)) == [("stop", "a")]


def test_a_young_model_is_not_evicted_before_its_minimum_residence() -> None:
    young = resident("a", 10, loaded_at=98, last_used=99)
    situation = at(100, young, waiting="b")
    assert told(situation) == []
    assert wake_at(situation) == 103
    assert told(dataclasses.replace(situation, now=103)) == [("stop", "a")]


def test_a_young_model_goes_when_the_newcomer_waited_too_long() -> None:
    young = resident("a", 10, loaded_at=98, last_used=99)
    assert told(at(100, young, waiting="b", since=98, max_wait_s=2)) == [("stop", "a")]


def test_a_busy_model_is_left_alone_until_the_newcomer_waited_too_long_and_then_drained() -> None:
    situation = at(100, resident("a", 10, running=1), waiting="b", since=41)
    assert told(situation) == []
    assert wake_at(situation) == 101
    (action,) = decide(dataclasses.replace(situation, now=101))
    assert action == Move(
        "drain",
        "a",
        "b: 4.7 GiB needed, 0 B free; it has waited 1m; a is busy with 1 and takes no more; frees 9.3 GiB",
    )


def test_the_newcomer_who_waited_too_long_comes_before_later_requests_of_the_drained_model() -> None:
    queue = (Waiting(1, "b", 10.0), Waiting(2, "a", 20.0))
    draining = resident("a", 10, "draining", running=1)
    assert told(at(100, draining, queue=queue)) == []
    gone = at(100, budget=5, queue=queue)
    assert told(gone) == [("load", "b")]


def test_requests_that_came_before_the_newcomer_are_served_before_the_drain() -> None:
    queue = (Waiting(1, "a", 5.0), Waiting(2, "b", 10.0), Waiting(3, "a", 20.0))
    three_at_a_time = (model("a", 10, sequences=3),)
    situation = at(100, resident("a", 10, running=1), queue=queue, models=three_at_a_time)
    assert told(situation) == [("start", 1)]


def test_requests_of_one_model_are_served_together() -> None:
    """ABCABC as AABBCC."""
    clients = tuple((Request(name, 1.0),) for name in "abcabc")
    outcome = simulate(Workload(equal_models(3, 5.0), Bytes.of(1), clients))
    assert "".join(outcome.served) == "aabbcc"
    assert outcome.loads == 3


def test_a_drained_model_whose_newcomer_left_is_ready_again() -> None:
    assert told(at(100, resident("a", 10, "draining", running=1))) == [("undrain", "a")]


def test_a_drained_model_is_stopped_once_idle() -> None:
    assert told(at(100, resident("a", 10, "draining"), waiting="b", since=10)) == [("stop", "a")]


def test_pinned_models_make_no_room_however_long_one_waits() -> None:
    pinned = resident("a", is_pinned=True)
    busy = resident("b", running=1)
    assert told(at(1000, pinned, busy, waiting="c", since=0)) == [("drain", "b")]


def test_what_can_never_fit_is_refused_at_once() -> None:
    big = (model("b", 11),)
    (action,) = decide(at(100, waiting="b", models=big))
    assert action == Refuse("b", 1, "b: 10.2 GiB needed, the budget is 9.3 GiB")


def test_what_cannot_fit_beside_the_pinned_is_refused_and_they_are_named() -> None:
    pinned = resident("a", 6, is_pinned=True)
    (action,) = decide(at(100, pinned, waiting="b"))
    assert isinstance(action, Refuse)
    assert action.reason.endswith("a (5.6 GiB) pinned")


def test_an_unknown_model_is_refused() -> None:
    assert told(at(100, waiting="z")) == [("refuse", "z")]


def test_a_model_in_back_off_waits_and_does_not_block_others() -> None:
    situation = at(100, waiting="ab", blocked_until={"a": 110.0}, budget=5)
    assert told(situation) == [("load", "b")]
    assert told(dataclasses.replace(situation, now=110.0)) == [("load", "a")]
    assert wake_at(at(100, waiting="a", blocked_until={"a": 110.0})) == 110.0


def test_an_idle_model_is_unloaded_when_its_time_has_come() -> None:
    idle = at(100, resident("a", last_used=90, idle_unload_s=20))
    assert told(idle) == []
    assert wake_at(idle) == 110
    assert told(dataclasses.replace(idle, now=110)) == [("stop", "a")]


def test_a_model_that_is_to_be_unloaded_is_drained_then_stopped() -> None:
    assert told(at(100, resident("a", running=1, is_unwanted=True), waiting="a")) == [("drain", "a")]
    assert told(at(100, resident("a", 5, "draining", running=1, is_unwanted=True), waiting="a")) == []
    assert told(at(100, resident("a", 5, "draining", is_unwanted=True), waiting="a")) == [("stop", "a")]


def test_a_model_that_is_still_busy_is_stopped_once_it_had_its_time() -> None:
    draining = resident("a", 10, "draining", running=1, drained_by=130.0)
    waiting = at(100, draining, waiting="b", since=10)
    assert told(waiting) == []
    assert wake_at(waiting) == 130.0
    assert told(at(130, draining, waiting="b", since=10)) == [("stop", "a")]
    nobody_waits = at(130, draining)
    assert ("stop", "a") not in told(nobody_waits)


def test_a_model_whose_file_was_replaced_goes_at_its_next_idle_moment_pinned_or_not() -> None:
    for is_pinned in (False, True):
        busy = resident("a", running=1, is_outdated=True, is_pinned=is_pinned)
        assert told(at(100, busy, waiting="a")) == []  # it has one sequence, which is taken
        assert told(at(100, dataclasses.replace(busy, running=0), waiting="a")) == [("stop", "a")]
        assert told(at(100, dataclasses.replace(busy, running=0))) == [("stop", "a")]
    two = (model("a", sequences=2),)
    assert told(at(100, resident("a", running=1, is_outdated=True), waiting="a", models=two)) == [("start", 0)]


def test_the_room_of_a_model_whose_file_was_replaced_is_another_s() -> None:
    actions = told(at(100, resident("a", is_outdated=True), resident("b", running=1), waiting="c"))
    assert actions == [("stop", "a")]


def test_a_drained_model_is_stopped_with_what_runs_once_its_time_is_over() -> None:
    """One endless answer kept a model that was to go, and who waited for its room, for ever."""
    busy = resident("a", 5, "draining", running=1, is_unwanted=True, drained_by=130)
    waiting = at(100, busy, waiting="b", budget=5)
    assert told(waiting) == []
    assert wake_at(waiting) == 130
    assert told(dataclasses.replace(waiting, now=130)) == [("stop", "a")]
    claimed = at(200, resident("a", 5, "draining", running=1, drained_by=130), waiting="b", since=100, budget=5)
    assert told(claimed) == [("stop", "a")]


def test_a_drained_model_whose_time_is_over_goes_on_where_nobody_waits_for_its_room() -> None:
    assert told(at(200, resident("a", 5, "draining", running=1, drained_by=130))) == [("undrain", "a")]


def test_idle_models_go_when_the_budget_has_shrunk() -> None:
    pair = resident("a", last_used=2), resident("b", last_used=1)
    assert told(at(100, *pair, budget=6)) == [("stop", "b")]


def test_while_others_are_served_an_idle_model_is_kept_for_a_while() -> None:
    busy, idle = resident("a", running=1), resident("b", last_used=99)
    situation = at(100, busy, idle, waiting="c")
    assert told(situation) == []
    assert wake_at(situation) == 111  # three loads of 4 s after its last use
    assert told(dataclasses.replace(situation, now=111)) == [("stop", "b")]


def test_one_client_alone_never_waits_for_a_swap_to_begin() -> None:
    """It was answered a moment ago, and it is the one who asks: nobody else will come back."""
    uses = (Use("a", 90.0, 90.0, 99.999),)
    assert told(at(100, resident("a", 10, last_used=99.999), waiting="b", recent=uses)) == [("stop", "a")]


def test_one_who_was_just_answered_may_ask_again_before_the_swap() -> None:
    uses = (Use("a", 90.0, 90.0, 99.999),)
    situation = at(100, resident("a", 10, last_used=99.999), waiting="b", since=95, recent=uses)
    assert told(situation) == []
    assert wake_at(situation) == pytest.approx(100.249)


def test_a_client_who_left_for_good_does_not_delay_others_for_ever() -> None:
    uses = (Use("a", 1.0, 1.0, 2.0), Use("a", 90.0, 90.0, 99.999))
    assert told(at(100, resident("a", 10, last_used=99.999), waiting="b", recent=uses)) == [("stop", "a")]


def test_a_newcomer_keeps_the_room_made_for_it_from_those_who_came_later() -> None:
    queue = (Waiting(1, "b", 10.0), Waiting(2, "c", 11.0))
    small = model("a", 6), model("b", 8), model("c", 3)
    stopping = resident("a", 6, "stopping")
    assert told(at(100, stopping, queue=queue, models=small)) == []


def test_where_models_take_turns_the_one_whose_turn_is_next_stays() -> None:
    turns = tuple(Use(name, 10.0 * n, 10.0 * n, 10.0 * n + 9) for n, name in enumerate("abcabcab"))
    assert next_uses(turns, 80.0) == {"a": 10.0, "b": 20.0}
    pair = resident("a", last_used=69), resident("b", last_used=79)
    assert told(at(80, *pair, waiting="c", recent=turns)) == [("stop", "b")]


# Any situation.


@given(scenes())
@settings(max_examples=300, deadline=None)
def test_no_action_breaks_a_law_in_any_situation(scene: Scene) -> None:
    situation = scene.situation
    residents = {one.name: one for one in situation.residents}
    yielding = {one.id: one for r in situation.residents for one in r.yielding}
    actions = decide(situation)
    assert decide(dataclasses.replace(situation)) == actions
    assert len({identity(action) for action in actions}) == len(actions)
    used = Bytes.total(one.charge for one in situation.residents)
    for action in actions:
        one = residents.get(action.name)
        assert action.reason
        match action:
            case Start():
                assert one is not None and one.state == "ready"
            case Refuse():
                assert action.count == sum(waiting.name == action.name for waiting in scene.queue)
            case Yield():
                assert one is not None and one.state in ("ready", "draining")
                asked = yielding[action.id]
                assert not asked.is_asked
                assert any(
                    scene.head_start_s(waiting.of_class) > scene.head_start_s(asked.of_class)
                    and waiting.since + asked.after_s <= situation.now
                    for waiting in scene.queue
                )
            case Move("load"):
                used += situation.models[action.name].charge
                assert one is None and used <= situation.budget
                assert situation.blocked_until.get(action.name, 0.0) <= situation.now
            case Move("drain"):
                assert one is not None and one.running > 0 and not one.is_pinned and one.state == "ready"
            case Move("stop"):
                assert one is not None and one.state in ("ready", "draining")
                assert one.running == 0 or (one.state == "draining" and one.drained_by <= situation.now)
                assert one.is_outdated or not one.is_pinned


@given(scenes())
@settings(max_examples=300, deadline=None)
def test_once_carried_out_nothing_is_ordered_again(scene: Scene) -> None:
    settled(scene)


@given(scenes(), st.floats(0, 1, exclude_max=True))
@settings(max_examples=300, deadline=None)
def test_time_alone_changes_nothing_before_the_moment_named(scene: Scene, share: float) -> None:
    quiet = settled(scene).situation
    wake = wake_at(quiet)
    later = quiet.now + share * (1000.0 if wake is None else wake - quiet.now)
    if wake is None or later < wake:
        assert decide(dataclasses.replace(quiet, now=later)) == ()


# Workloads.


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_request_is_answered_within_its_bound_over_random_workloads(chunk: int) -> None:
    """Never over the budget, no busy or pinned model stopped, none loaded in vain: `World` checks each action."""
    run_all(random_workload, range(chunk, WORKLOADS, CHUNKS))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_so_it_is_where_requests_have_classes_and_yield_and_models_lie_at_several_places(chunk: int) -> None:
    run_all(random_workload_with_classes, range(chunk, WORKLOADS // 2, CHUNKS))


def run_all(make: Callable[[random.Random], Workload], seeds: Iterable[int]) -> None:
    for seed in seeds:
        try:
            simulate(make(random.Random(seed)))
        except AssertionError as error:
            raise AssertionError(f"workload {seed}: {error}") from error


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_request_is_answered_within_its_bound_over_workloads_that_shrink(chance: random.Random) -> None:
    simulate(random_workload_with_classes(chance))


def test_a_newcomer_is_not_starved_by_two_clients_who_overlap() -> None:
    busy = tuple(Request("a", 2.0) for _ in range(100))
    late = (Request("a", 1.0), *busy)
    workload = Workload(equal_models(2, 1.0, 2), Bytes.of(1), (busy, late, (Request("b", 1.0, 5.0),)), max_wait_s=10.0)
    outcome = simulate(workload)
    assert outcome.drains == 1
    assert max(outcome.waits_s) <= 10.0 + 2.0 + 1.0 + 2.0


def test_a_model_that_never_loads_does_not_keep_others_from_memory() -> None:
    broken = (Request("a", 1.0),)
    sound = tuple(Request("b", 1.0) for _ in range(20))
    outcome = simulate(Workload(equal_models(2, 1.0), Bytes.of(1), (broken, sound), failing={"a": 5}, max_wait_s=5.0))
    assert outcome.failed == 5
    assert len(outcome.served) == 21


# Beside the optimum.


@given(st.text("abcd", max_size=30), st.integers(1, 3))
@settings(deadline=None)
def test_for_one_client_the_least_with_reordering_is_beladys_optimum(trace: str, capacity: int) -> None:
    assert best_with_reordering([trace], capacity) == optimal_swaps(trace, capacity)


@given(st.lists(st.text("abc", max_size=4), min_size=1, max_size=3), st.integers(1, 2))
@settings(max_examples=50, deadline=None)
def test_no_order_of_serving_needs_less_than_the_least(clients: list[str], capacity: int) -> None:
    turns = [n for n, client in enumerate(clients) for _ in client]
    orders = set(itertools.islice(itertools.permutations(turns), 2000))
    for order in orders:
        sources = [iter(client) for client in clients]
        assert optimal_swaps([next(sources[n]) for n in order], capacity) >= best_with_reordering(clients, capacity)


@pytest.mark.parametrize("title", [one for one in traces() if "turn" in one or "moderator" in one])
def test_where_models_take_turns_loads_are_within_1_3_times_the_optimum(title: str) -> None:
    trace, capacity = traces()[title]
    assert served_in_turn(trace, capacity).loads <= 1.3 * optimal_swaps(trace, capacity)


@pytest.mark.parametrize("capacity", [3, 4])
def test_where_requests_are_local_loads_are_within_1_3_times_the_optimum(capacity: int) -> None:
    some = [trace_with_phases(seed) for seed in range(12)]
    loads = sum(served_in_turn(trace, capacity).loads for trace in some)
    assert loads <= 1.3 * sum(optimal_swaps(trace, capacity) for trace in some)


@pytest.mark.parametrize("sequences", [1, 4])
def test_forty_requests_of_four_clients_need_at_most_nine_loads_and_wait_less_than_0_4_s(sequences: int) -> None:
    outcomes = [simulate(quick_workload(random_clients(seed, 4, 40), 2, sequences)) for seed in range(5)]
    assert statistics.median(outcome.loads for outcome in outcomes) <= 9
    assert max(max(outcome.waits_s) for outcome in outcomes) < 0.4


@pytest.mark.parametrize("sequences", [1, 4])
def test_a_thousand_requests_of_four_clients_need_at_most_1_5_times_the_least(sequences: int) -> None:
    clients = random_clients(1, 4, 1000)
    outcome = simulate(quick_workload(clients, 2, sequences))
    assert outcome.loads <= 1.5 * best_with_reordering(clients, 2)
    assert max(outcome.waits_s) < 0.4
