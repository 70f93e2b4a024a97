"""Classes, yielding, several places and the largest piece of work: what they change, and where they change nothing."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpipes.serving.bytes import Bytes
from modelpipes.serving.residency import decide, wake_at
from modelpipes.serving.situation import CLASSES, Model, Move, Refuse, Resident, Waiters, Waiting, Yield, Yielding
from tests.serving.simulate import Request, Workload, equal_models, random_workload, simulate
from tests.serving.situations import GB, Scene, at, model, resident, scenes, told

HEAD_STARTS = {"interactive": 600.0, "high": 60.0}
A_JOB = (Yielding(50, "normal"),)


# Who goes first.


def test_a_class_is_a_head_start_in_seconds() -> None:
    queue = (Waiting(1, "a", 10.0, "normal"), Waiting(2, "a", 60.0, "high"), Waiting(3, "a", 75.0, "high"))
    six = (model("a", 10, sequences=6),)
    started = told(at(80, resident("a", 10), queue=queue, models=six, head_starts_s=HEAD_STARTS))
    assert started == [("start", 2), ("start", 1), ("start", 3)]


def test_one_in_a_hurry_has_its_model_loaded_before_one_who_came_earlier() -> None:
    queue = (Waiting(1, "a", 10.0, "normal"), Waiting(2, "b", 90.0))
    assert told(at(100, queue=queue, budget=5)) == [("load", "a")]
    assert told(at(100, queue=queue, budget=5, head_starts_s=HEAD_STARTS)) == [("load", "b")]
    long_ago = (Waiting(1, "a", -510.5, "normal"), Waiting(2, "b", 90.0))
    assert told(at(100, queue=long_ago, budget=5, head_starts_s=HEAD_STARTS)) == [("load", "a")]


def test_busy_models_are_drained_for_a_less_urgent_one_only_once_nobody_can_come_before_it() -> None:
    queue = (Waiting(1, "b", 10.0, "normal"),)
    situation = at(669, resident("a", 10, running=1), queue=queue, head_starts_s=HEAD_STARTS)
    assert told(situation) == []
    assert wake_at(situation) == 670
    assert told(dataclasses.replace(situation, now=670.0)) == [("drain", "a")]


def test_an_idle_model_is_not_kept_for_those_who_are_less_urgent() -> None:
    busy, idle = resident("a", running=1), resident("b", last_used=99)
    situation = at(100, busy, idle, waiting="c", head_starts_s=HEAD_STARTS)
    assert told(situation) == []
    jobs = dataclasses.replace(idle, last_class="low")
    assert told(dataclasses.replace(situation, residents=(busy, jobs))) == [("stop", "b")]


# Who gives way.


def test_a_job_gives_its_place_to_one_who_would_wait_for_it() -> None:
    situation = at(100, resident("a", 10, running=1, yielding=A_JOB), waiting="a", head_starts_s=HEAD_STARTS)
    assert decide(situation) == (Yield(50, "a", "a: a request of class interactive goes before one of class normal"),)
    asked = (Yielding(50, "normal", is_asked=True),)
    assert told(at(100, resident("a", 10, running=1, yielding=asked), waiting="a", head_starts_s=HEAD_STARTS)) == []


def test_as_many_give_way_as_places_are_missing_the_least_urgent_first() -> None:
    three = (model("a", 10, sequences=3),)
    uses = (Yielding(50, "high"), Yielding(51, "low"), Yielding(52, "normal", is_asked=True))
    busy = resident("a", 10, running=3, yielding=uses)
    head_starts_s = {**HEAD_STARTS, "normal": 10.0}
    assert told(at(100, busy, waiting="a", models=three, head_starts_s=head_starts_s)) == []
    assert told(at(100, busy, waiting="aa", models=three, head_starts_s=head_starts_s)) == [("yield", 51)]
    assert told(at(100, busy, waiting="aaa", models=three, head_starts_s=head_starts_s)) == [
        ("yield", 51),
        ("yield", 50),
    ]


def test_a_job_that_cost_much_gives_way_only_to_one_who_has_waited_for_a_while() -> None:
    dear = (Yielding(50, "normal", after_s=20.0),)
    for waiting in ("a", "b"):  # its place, and its room
        situation = at(
            100, resident("a", 10, running=1, yielding=dear), waiting=waiting, since=90, head_starts_s=HEAD_STARTS
        )
        assert told(situation) == []
        assert wake_at(situation) == 110
        assert ("yield", 50) in told(dataclasses.replace(situation, now=110.0))


def test_nobody_gives_way_to_one_who_is_not_more_urgent() -> None:
    queue = (Waiting(1, "a", 10.0, "normal"), Waiting(2, "b", 10.0, "low"))
    busy = resident("a", 10, running=1, yielding=A_JOB)
    assert told(at(60, busy, queue=queue, head_starts_s=HEAD_STARTS)) == []
    assert told(at(60, busy, waiting="ab")) == []  # all head starts are equal


def test_a_model_on_which_all_give_way_makes_room() -> None:
    busy = resident("a", 10, running=1, yielding=A_JOB)
    assert told(at(100, busy, waiting="b", head_starts_s=HEAD_STARTS)) == [("drain", "a"), ("yield", 50)]
    draining = resident("a", 10, "draining", running=1, yielding=(Yielding(50, "normal", is_asked=True),))
    assert told(at(100, draining, waiting="b", head_starts_s=HEAD_STARTS)) == []
    given_way = resident("a", 10, "draining", last_used=100, last_class="normal")
    assert told(at(100, given_way, waiting="b", head_starts_s=HEAD_STARTS)) == [("stop", "a")]


def test_a_model_makes_no_room_while_one_on_it_does_not_give_way() -> None:
    two = (model("a", 10, sequences=2),)
    busy = resident("a", 10, running=2, yielding=A_JOB)
    assert told(at(100, busy, waiting="b", models=two, head_starts_s=HEAD_STARTS)) == []


def test_a_young_model_makes_no_room_though_all_on_it_give_way() -> None:
    young = resident("a", 10, running=1, loaded_at=97, yielding=A_JOB)
    situation = at(100, young, waiting="b", head_starts_s=HEAD_STARTS)
    assert told(situation) == []
    assert wake_at(situation) == 102
    assert told(dataclasses.replace(situation, now=102.0)) == [("drain", "a"), ("yield", 50)]


def test_one_who_waited_too_long_has_those_give_way_who_may() -> None:
    two = (model("a", 10, sequences=2),)
    busy = resident("a", 10, running=2, yielding=A_JOB)
    situation = at(100, busy, waiting="b", since=40, models=two, head_starts_s=HEAD_STARTS)
    assert told(situation) == [("drain", "a"), ("yield", 50)]


def test_a_chat_beside_jobs_waits_for_a_swap_and_no_longer() -> None:
    job = Request("a", 30.0, of_class="low", yields=3)
    chat = tuple(Request("b", 1.0, 5.0) for _ in range(3))
    workload = Workload(
        equal_models(2, 2.0), Bytes.of(1), (chat,), (job,) * 4, stop_s=0.5, head_starts_s={"interactive": 1000.0}
    )
    outcome = simulate(workload)
    assert sorted(outcome.served) == ["a"] * (4 + outcome.yields) + ["b"] * 3
    assert outcome.yields > 0
    assert max(outcome.waits_s[n] for n, name in enumerate(outcome.served) if name == "b") == pytest.approx(3.0)
    patient = dataclasses.replace(workload, head_starts_s={})
    outcome = simulate(patient)
    assert outcome.yields == 0
    assert max(outcome.waits_s[n] for n, name in enumerate(outcome.served) if name == "b") > 10.0


# Several places, and the largest piece of work.


def test_each_place_is_a_budget_and_is_told_by_name() -> None:
    large = Model("b", Bytes({"card 1": 3 * GB, "box": 2 * GB}), 4.0)
    on_box = Resident("a", Bytes({"box": 4 * GB}), "ready", 0, 0.0, 0.0)
    on_card = Resident("c", Bytes({"card 1": GB}), "ready", 0, 0.0, 0.0)
    situation = at(100, on_box, on_card, waiting="b", models=(large,))
    budget = Bytes({"card 1": 4 * GB, "box": 5 * GB})
    (action,) = decide(dataclasses.replace(situation, budget=budget))
    assert isinstance(action, Move)
    assert (action.to_do, action.name) == ("stop", "a")
    assert action.reason.startswith(
        "b: 1.9 GiB of box and 2.8 GiB of card 1 needed, 953.7 MiB of box and 2.8 GiB of card 1 free"
    )


def test_what_needs_a_place_that_is_not_there_is_refused() -> None:
    lent = Model("b", Bytes({"box": GB}), 4.0)
    assert decide(at(100, waiting="b", models=(lent,))) == (
        Refuse("b", 1, "b: 953.7 MiB of box needed, the budget is 0 B of box"),
    )


def test_an_engine_is_charged_for_its_largest_piece_of_work_from_its_load_on() -> None:
    painter = (model("b", 4, work=3),)
    assert told(at(100, resident("a", 3), waiting="b", models=painter)) == [("load", "b")]
    assert told(at(100, resident("a", 4), waiting="b", models=painter)) == [("stop", "a")]
    drawing = resident("b", 4, running=1, work=Bytes.of(3 * GB))
    assert told(at(100, drawing, waiting="c", models=(model("c", 4),))) == []
    assert decide(at(100, waiting="b", models=painter, budget=6)) == (
        Refuse("b", 1, "b: 6.5 GiB needed, the budget is 5.6 GiB"),
    )


# What changes nothing.


@given(scenes(), st.sampled_from((0.0, 60.0)))
@settings(max_examples=200, deadline=None)
def test_with_equal_head_starts_neither_classes_nor_who_yields_change_a_decision(
    scene: Scene, head_start_s: float
) -> None:
    equal = dataclasses.replace(scene.bare, head_starts_s=dict.fromkeys(CLASSES, head_start_s))
    plain = Scene(
        dataclasses.replace(
            scene.bare,
            head_starts_s={},
            residents=tuple(
                dataclasses.replace(one, yielding=(), last_class="interactive") for one in scene.bare.residents
            ),
        ),
        tuple(dataclasses.replace(one, of_class="interactive") for one in scene.queue),
    )
    mixed = Scene(equal, scene.queue)
    assert decide(mixed.situation) == decide(plain.situation)
    assert wake_at(mixed.situation) == wake_at(plain.situation)


@pytest.mark.parametrize("seed", range(40))
def test_with_equal_head_starts_classes_change_nothing_in_a_workload(seed: int) -> None:
    chance = random.Random(seed)
    workload = random_workload(chance)

    def classed(request: Request) -> Request:
        return dataclasses.replace(request, of_class=chance.choice(CLASSES), yields=chance.choice((0, 2)))

    mixed = dataclasses.replace(
        workload,
        clients=tuple(tuple(map(classed, client)) for client in workload.clients),
        arrivals=tuple(map(classed, workload.arrivals)),
        head_starts_s=dict.fromkeys(CLASSES, 30.0),
    )
    assert simulate(mixed) == simulate(workload)


@given(scenes())
@settings(max_examples=200, deadline=None)
def test_what_places_are_called_changes_no_decision(scene: Scene) -> None:
    names = {"card": "box", "host": "card 2", "card 1": "host", "box": "card"}

    def renamed(size: Bytes) -> Bytes:
        return Bytes({names[place]: bytes_ for place, bytes_ in size.by_place.items()})

    situation = scene.situation
    other = dataclasses.replace(
        situation,
        budget=renamed(situation.budget),
        models={
            name: dataclasses.replace(one, needs=renamed(one.needs), work=renamed(one.work))
            for name, one in situation.models.items()
        },
        residents=tuple(
            dataclasses.replace(one, bytes=renamed(one.bytes), work=renamed(one.work)) for one in situation.residents
        ),
    )
    assert told(other) == told(situation)
    assert wake_at(other) == wake_at(situation)


@given(scenes())
@settings(max_examples=200, deadline=None)
def test_who_waits_may_be_told_in_one_entry_or_one_by_one(scene: Scene) -> None:
    situation = scene.situation
    singly = tuple(Waiters((one,), 1) for one in scene.queue)
    assert decide(dataclasses.replace(situation, waiting=singly)) == decide(situation)
    assert wake_at(dataclasses.replace(situation, waiting=singly)) == wake_at(situation)


@given(scenes())
@settings(max_examples=200, deadline=None)
def test_work_counts_as_what_is_held(scene: Scene) -> None:
    situation = scene.situation
    whole = dataclasses.replace(
        situation,
        models={name: Model(name, one.charge, one.load_s, one.sequences) for name, one in situation.models.items()},
        residents=tuple(dataclasses.replace(one, bytes=one.charge, work=Bytes({})) for one in situation.residents),
    )
    assert decide(whole) == decide(situation)
