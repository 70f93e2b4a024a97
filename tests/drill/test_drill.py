"""Whoever is killed, whenever: every turn once and in order, in the transcript and in what reaches a model.

Nothing outlives its owner, and clean-up leaves an empty place. The bounded form; the long one is
`bin/test -m drill`, or `python -m tests.drill`, which says more.
"""

from __future__ import annotations

import os
import random
from functools import cache

import pytest

from modelpipes.engine.locate import find_engine
from modelpipes.errors import EngineError
from tests.drill import ptrace
from tests.drill.drill import VICTIMS, Figures, Victim, kill_at_boundaries, kill_at_random

SEED = os.environ.get("DRILL_SEED") or str(random.SystemRandom().randrange(10**6))
KILLS, ENGINE_KILLS = 12, 6  # of each victim in each manner: about a minute for all of them on two cores
LONG_KILLS = 50


def check(figures: Figures) -> None:
    print(f"DRILL_SEED={SEED}: {figures}")
    assert not figures.violations, f"DRILL_SEED={SEED}: {figures.violations[0]}"


def rng(victim: Victim, manner: str) -> random.Random:
    return random.Random(f"{SEED} {victim.name} {manner}")


def few(victim: Victim) -> int:
    return ENGINE_KILLS if victim.engine else KILLS


@cache
def engine_missing() -> str:
    try:
        find_engine()
    except EngineError as error:
        return str(error)
    return ""


@pytest.fixture(params=VICTIMS, ids=lambda victim: victim.name.replace(",", "").replace(" ", "-"))
def victim(request: pytest.FixtureRequest) -> Victim:
    found: Victim = request.param
    if found.engine and engine_missing():
        pytest.skip(engine_missing())
    return found


@pytest.fixture
def tracing() -> None:
    if reason := ptrace.why_not():
        pytest.skip(f"processes cannot be traced here: {reason}")


@pytest.mark.usefixtures("tracing")
def test_a_kill_at_a_system_call_boundary_loses_and_doubles_nothing(victim: Victim) -> None:
    check(kill_at_boundaries(victim, few(victim), rng(victim, "boundary")))


def test_a_kill_at_a_random_moment_loses_and_doubles_nothing(victim: Victim) -> None:
    check(kill_at_random(victim, few(victim), rng(victim, "random")))


@pytest.mark.drill
@pytest.mark.usefixtures("tracing")
def test_many_kills_at_system_call_boundaries_lose_and_double_nothing(victim: Victim) -> None:
    check(kill_at_boundaries(victim, LONG_KILLS, rng(victim, "boundary")))


@pytest.mark.drill
def test_many_kills_at_random_moments_lose_and_double_nothing(victim: Victim) -> None:
    check(kill_at_random(victim, LONG_KILLS, rng(victim, "random")))
