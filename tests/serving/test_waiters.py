"""Who waits in the pool, and what the decision is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.serving.bytes import NOTHING
from modelpipes.serving.situation import CLASSES, Class, Model, Waiting
from modelpipes.serving.waiters import Waiter, WaitingList
from tests.serving.simulate import waiters_of

MODELS = {"a": Model("a", NOTHING, 1.0, 1), "b": Model("b", NOTHING, 1.0, 4)}
ARRIVALS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(CLASSES), st.booleans()), max_size=20)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@given(arrivals=ARRIVALS)
def test_whoever_came_and_left_the_first_of_each_model_and_class_and_all_are_told(
    loop: asyncio.AbstractEventLoop, arrivals: list[tuple[str, Class, bool]]
) -> None:
    waiters = WaitingList()
    for number, (name, of_class, _) in enumerate(arrivals):
        waiting = Waiting(number, name, float(number), of_class)
        waiters[number] = Waiter(waiting, loop.create_future())
    for number, (_, _, has_left) in enumerate(arrivals):
        if has_left:
            del waiters[number]
    left = [one.waiting for one in waiters.values()]
    assert [one.id for one in left] == [number for number, (_, _, has_left) in enumerate(arrivals) if not has_left]
    told = waiters.situation(lambda name: MODELS[name].sequences)
    assert sorted(told, key=repr) == sorted(waiters_of(left, MODELS), key=repr)
    assert waiters.arrivals(3) == tuple(one.since for one in left[-3:])
    for name in MODELS:
        assert {one.waiting.id for one in waiters.of_model(name)} == {one.id for one in left if one.name == name}
