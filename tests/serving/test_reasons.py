"""Every decision can be made again from its event alone, and its sentence is true."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from modelpipes.events import Candidate, Decided, Event, Facts
from modelpipes.serving import residency
from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.serving.reasons import missing_of, sentence
from modelpipes.serving.residency import decide
from modelpipes.serving.situation import Action, Move, Refuse, Resident, Situation, Waiting
from tests.serving import simulate
from tests.serving.situations import at, model, resident

EVICTIONS = 1000
CHOICES = ("idle", "yielding", "overdue-idle", "overdue-busy", "over-budget")
NO_CHOICE = ("replaced", "asked", "idle-unload", "drain-timeout", "unneeded", "class")


def test_a_thousand_random_swaps_are_decided_again_from_their_events_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Situation, Action]] = []

    def recorded(situation: Situation) -> tuple[Action, ...]:
        actions = residency.decide(situation)
        seen.extend((situation, action) for action in actions)
        return actions

    monkeypatch.setattr(simulate, "decide", recorded)
    chance = random.Random(15)
    while sum(isinstance(action, Move) and action.to_do in ("stop", "drain") for _, action in seen) < EVICTIONS:
        kind = chance.choice((simulate.random_workload, simulate.random_workload_with_classes))
        simulate.World(kind(chance), is_checked=False).run()
    rules = {check(situation, action) for situation, action in seen if isinstance(action, Move | Refuse)}
    assert {"fits", "too-large", "idle", "yielding", "overdue-idle", "overdue-busy", "drain-timeout"} & rules >= {
        "fits", "too-large", "idle", "overdue-idle", "overdue-busy",
    }  # fmt: skip


def test_any_number_of_idle_models_is_chosen_among_again() -> None:
    chance = random.Random(5)
    rules = []
    for _ in range(300):
        models = tuple(model(f"m{n}", chance.randint(1, 9), chance.choice((1.0, 4.0, 9.0))) for n in range(16))
        there = [
            resident(one.name, one.needs.card // 10**9, last_used=float(chance.randint(1, 900)))
            for one in models[: chance.randint(1, 15)]
        ]
        held = sum(one.bytes.card for one in there) // 10**9
        situation = at(
            1000, *there, queue=waiting_for("m15", 960.0), models=models, budget=held + chance.randint(-2, 2)
        )
        rules += [check(situation, action) for action in decide(situation) if isinstance(action, Move)]
    assert {"idle", "over-budget", "fits"} <= set(rules)


@pytest.mark.parametrize(
    ("there", "wanted", "why"),
    [
        ((resident("a", 4),), 4, "the only idle one"),
        ((resident("a", 2, last_used=10), resident("b", 8, last_used=90)), 8, "the only one whose room is enough"),
        (
            (resident("a", 2, last_used=10), resident("b", 8, last_used=90), resident("c", 8, last_used=91)),
            8,
            "the least used, for what it costs to load again, of those whose room is enough",
        ),
        (
            (resident("a", 4, last_used=10), resident("b", 4, last_used=20), resident("c", 4, last_used=90)),
            8,
            "with b the least used, for what they cost to load again, of any 2 that make room",
        ),
        ((resident("a", 4), resident("b", 4, loaded_at=99.0, last_used=99.5)), 4, "the only one that may go now"),
        (
            (resident("a", 4, last_used=10), resident("b", 4, last_used=20), resident("c", 4, loaded_at=99.0)),
            4,
            "the least used for what it costs to load again of those that may go now",
        ),
    ],
)
def test_a_sentence_says_why_this_one(there: tuple[Resident, ...], wanted: int, why: str) -> None:
    budget = sum(one.bytes.card for one in there) // 10**9
    situation = at(100, *there, queue=waiting_for("d"), models=(model("d", wanted),), budget=budget)
    action = decide(situation)[0]
    assert isinstance(action, Move) and f" and {why}; frees " in action.reason
    check(situation, action)


def test_a_model_too_large_beside_what_is_pinned_is_refused_with_what_is_in_its_way() -> None:
    situation = at(100, resident("a", 4, is_pinned=True), waiting="b", models=(model("b", 7),))
    (action,) = decide(situation)
    assert isinstance(action, Refuse) and action.reason.endswith("a (3.7 GiB) pinned")
    assert check(situation, action) == "too-large"


# -- how it is decided again


def waiting_for(name: str, since: float = 60.0) -> tuple[Waiting, ...]:
    return (Waiting(1, name, since),)


def check(situation: Situation, action: Move | Refuse) -> str:
    """The event of an action against the situation, its own choice, and its sentence; the rule."""
    name = action.to_do if isinstance(action, Move) else "refuse"
    line = msgspec.json.encode(Decided(name, action.name, action.reason, action.facts))
    told = msgspec.json.decode(line, type=Event)
    assert isinstance(told, Decided) and told.facts is not None
    facts = told.facts
    for one in facts.candidates:
        there = next(r for r in situation.residents if r.name == one.name)
        assert Bytes(one.bytes) == there.charge and one.running == there.running
        assert one.idle_s == situation.now - there.idle_since
    if facts.rule in (*CHOICES, "fits", "too-large"):
        assert told.reason == sentence(facts, told.name)
        assert Bytes(facts.budget) == situation.budget
    if facts.rule in CHOICES:
        chosen = {one.name for one in facts.candidates if one.is_chosen}
        assert told.name in chosen == replay(facts)
        assert missing_of(facts) <= freed(facts, chosen) or facts.rule == "over-budget"
        check_words(facts, told)
    elif facts.rule == "fits":
        assert Bytes(facts.held) + Bytes(facts.needs) <= situation.budget
        assert Bytes(facts.planned) + Bytes(facts.needs) <= situation.budget
    elif facts.rule == "too-large":
        pinned = Bytes.total(Bytes(one.bytes) for one in facts.candidates)
        assert not Bytes(facts.needs) + pinned <= situation.budget
    else:
        assert facts.rule in NO_CHOICE
    return facts.rule


def replay(facts: Facts) -> set[str]:
    """Who goes, found by nothing but what the event tells."""
    missing = missing_of(facts).by_place
    ranked = sorted(facts.candidates, key=lambda one: (one.cost, *(one.bytes.get(at, 0) for at in missing), one.name))
    names = {one.name for one in facts.candidates}
    if not has_room(missing, ranked):
        return names if facts.rule == "over-budget" else set()
    if len(ranked) > 10:
        going = list(next(some for some in prefixes(ranked) if has_room(missing, some)))
        for one in reversed(going[:]):
            if has_room(missing, [other for other in going if other is not one]):
                going.remove(one)
        return {one.name for one in going}
    sets = [some for size in range(1, len(ranked) + 1) for some in itertools.combinations(ranked, size)]
    enough = [some for some in sets if has_room(missing, some)]
    fewest = len(enough[0]) if facts.is_fewest_first else len(ranked)
    best = min((some for some in enough if len(some) <= fewest), key=lambda some: sum(one.cost for one in some))
    return {one.name for one in best}


def prefixes(ranked: list[Candidate]) -> Iterator[list[Candidate]]:
    return (ranked[:count] for count in range(1, len(ranked) + 1))


def has_room(missing: Mapping[str, int], going: tuple[Candidate, ...] | list[Candidate]) -> bool:
    return all(sum(one.bytes.get(place, 0) for one in going) >= size for place, size in missing.items())


def freed(facts: Facts, names: set[str]) -> Bytes:
    return NOTHING + Bytes.total(Bytes(one.bytes) for one in facts.candidates if one.name in names)


def check_words(facts: Facts, told: Decided) -> None:
    """What the sentence says, seen without the code that makes it."""
    mine = next(one for one in facts.candidates if one.name == told.name)
    assert facts.model == "" or told.reason.startswith(f"{facts.model}: ")
    missing = missing_of(facts)
    alone = [one for one in facts.candidates if missing <= Bytes(one.bytes)]
    if "the only idle one" in told.reason:
        assert facts.idle == 1 == len(facts.candidates)
    elif "the only one that may go now" in told.reason:
        assert [mine] == list(facts.candidates)
    elif "the only one whose room is enough" in told.reason:
        assert alone == [mine]
    elif "of those whose room is enough" in told.reason:
        assert mine.cost == min(one.cost for one in alone)
    elif "that make room" in told.reason:
        assert not alone
    elif "the least used for what it costs" in told.reason:
        assert mine.cost == min(one.cost for one in facts.candidates)
    if "is busy with" in told.reason:
        assert f"is busy with {mine.running} " in told.reason
    else:
        assert mine.running == 0
