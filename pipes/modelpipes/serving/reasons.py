"""Why a residency decision is as it is: its facts, and the sentence that they make. Pure.

The sentence is made from the facts alone, so that whoever has an event can see that it is true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from modelpipes.events import Candidate, Facts, Rule
from modelpipes.serving.bytes import NOTHING, Bytes, amount
from modelpipes.serving.situation import Resident, Waiting
from modelpipes.serving.victims import EXACT_VICTIMS
from modelpipes.values.units import format_seconds


def candidates_of(
    some: Iterable[Resident], cost: Callable[[Resident], float], chosen: Collection[str], now: float
) -> tuple[Candidate, ...]:
    """Those of whom some are chosen, as an event tells of them."""
    return tuple(
        Candidate(r.name, dict(r.charge.by_place), cost(r), now - r.idle_since, r.running, r.name in chosen)
        for r in some
    )


def facts_for(
    rule: Rule, first: Waiting, now: float, needs: Bytes, budget: Bytes, held: Bytes, planned: Bytes
) -> Facts:
    """What is known of a request for whose model room is wanted; who goes is added with `msgspec.structs.replace`."""
    return Facts(
        rule,
        first.name,
        now - first.since,
        dict(needs.by_place),
        dict(budget.by_place),
        dict(held.by_place),
        dict(planned.by_place),
    )


def sentence(facts: Facts, name: str) -> str:
    """Why this is done with this model; of the rules that have facts beside themselves."""
    needs, budget = Bytes(facts.needs), Bytes(facts.budget)
    wanted = f"{facts.model}: {amount(needs, needs)} needed"
    if facts.rule == "too-large":
        pinned = ", ".join(f"{one.name} ({amount(Bytes(one.bytes), needs)})" for one in facts.candidates)
        return f"{wanted}, the budget is {amount(budget, needs)}{f', {pinned} pinned' if pinned else ''}"
    needed = f"{wanted}, {amount(budget - Bytes(facts.held), needs)} free"
    if facts.rule == "fits":
        return needed
    one = next(each for each in facts.candidates if each.name == name)
    idle = f"{name} is idle for {_seconds(one.idle_s)}"
    match facts.rule:
        case "idle-unload":
            return f"{idle}: unloaded, as configured"
        case "over-budget":
            excess = missing_of(facts)
            return f"{amount(excess, excess)} over the budget; {idle}; frees {amount(Bytes(one.bytes), excess)}"
        case "idle":
            return f"{needed}; {idle} and {_why_this(facts, one)}; frees {amount(Bytes(one.bytes), needs)}"
        case "yielding":
            why = f"{name} is busy with {one.running} that give way" if one.running else idle
        case _:
            needed += f"; it has waited {_seconds(facts.waited_s)}"
            why = f"{name} is busy with {one.running} and takes no more" if one.running else idle
    return f"{needed}; {why}; frees {amount(Bytes(one.bytes), needs)}"


def missing_of(facts: Facts) -> Bytes:
    """By how much the budget is too small; the budget's places first."""
    return NOTHING - Bytes(facts.budget) + Bytes(facts.planned) + Bytes(facts.needs)


def _why_this(facts: Facts, one: Candidate) -> str:
    """Why it goes and no other idle one; those who choose are in `victims.smallest`."""
    others = [each.name for each in facts.candidates if each.is_chosen and each is not one]
    if facts.idle == 1:
        return "the only idle one"
    if len(facts.candidates) == 1:
        return "the only one that may go now"
    if len(facts.candidates) > EXACT_VICTIMS:
        return (
            f"taken from the least used of {len(facts.candidates)} on, for what they cost to load again, "
            "without those whose room is not needed"
        )
    if others:
        return (
            f"with {', '.join(others)} the least used, for what they cost to load again, "
            f"of any {len(others) + 1} that make room"
        )
    if one.cost <= min(each.cost for each in facts.candidates):
        of_these = " of those that may go now" if facts.idle > len(facts.candidates) else ""
        return f"the least used for what it costs to load again{of_these}"
    if len(_enough_alone(facts)) == 1:
        return "the only one whose room is enough"
    return "the least used, for what it costs to load again, of those whose room is enough"


def _enough_alone(facts: Facts) -> Sequence[Candidate]:
    missing = missing_of(facts)
    return [one for one in facts.candidates if missing <= Bytes(one.bytes)]


def _seconds(seconds: float) -> str:
    return format_seconds(round(seconds, 3))
