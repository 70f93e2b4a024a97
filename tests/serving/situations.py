"""Situations for the residency decision: single ones, put together in a line, and any."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from modelpipes.serving.bytes import NOTHING, Bytes
from modelpipes.serving.residency import decide
from modelpipes.serving.situation import (
    CLASSES,
    Action,
    Class,
    Loadable,
    Move,
    Refuse,
    Resident,
    Situation,
    Start,
    State,
    Use,
    Waiting,
    Yield,
    Yielding,
)
from tests.serving.simulate import waiters_of

GB = 10**9
NAMES = "abcde"
MOMENTS = st.integers(0, 40).map(float)

Told = tuple[str, str | int]


def model(name: str, size: int = 5, load_s: float = 4.0, sequences: int = 1, host: int = 0, work: int = 0) -> Loadable:
    return Loadable(name, Bytes.of(size * GB, host * GB), load_s, sequences, Bytes.of(work * GB))


def resident(
    name: str,
    size: int = 5,
    state: State = "ready",
    *,
    running: int = 0,
    loaded_at: float = 0.0,
    last_used: float = 0.0,
    host: int = 0,
    **others: Any,
) -> Resident:
    return Resident(name, Bytes.of(size * GB, host * GB), state, running, loaded_at, last_used, **others)


def at(
    now: float,
    *residents: Resident,
    waiting: str = "",
    since: float | None = None,
    queue: tuple[Waiting, ...] = (),
    models: tuple[Loadable, ...] = (),
    budget: int = 10,
    **others: Any,
) -> Situation:
    """A situation where `queue` waits, or one request for each letter of `waiting`, numbered from 0, since `since`."""
    known = {name: model(name) for name in "abcdef"} | {one.name: one for one in models}
    came = now if since is None else since
    queue = queue or tuple(Waiting(number, name, came) for number, name in enumerate(waiting))
    scene = Scene(Situation(now, Bytes.of(budget * GB, 100 * GB), known, residents), queue).situation
    return dataclasses.replace(scene, **others)


def told(situation: Situation) -> list[Told]:
    return [identity(action) for action in decide(situation)]


def identity(action: Action) -> Told:
    """What is done to which request or model."""
    match action:
        case Move():
            return action.to_do, action.name
        case Refuse():
            return "refuse", action.name
        case Start() | Yield():
            return type(action).__name__.lower(), action.id


@dataclass
class Scene:
    """A situation, and everybody who waits in it, one by one."""

    bare: Situation
    queue: tuple[Waiting, ...]
    situation: Situation = field(init=False)

    def __post_init__(self) -> None:
        queue = sorted(self.queue, key=lambda one: (one.since, one.id))
        arrivals = tuple(one.since for one in queue)
        self.situation = dataclasses.replace(self.bare, waiting=waiters_of(queue, self.bare.models), arrivals=arrivals)

    def head_start_s(self, of_class: Class) -> float:
        return self.bare.head_starts_s.get(of_class, 0.0)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    elsewhere = draw(st.sampled_from(((), (), ("card 1",), ("card 1", "box"))))

    def bytes_(card: int, host: int, others: int) -> Bytes:
        sizes = Bytes({place: draw(st.integers(0, others)) for place in elsewhere})
        return Bytes.of(draw(st.integers(min(card, 1), card)), draw(st.integers(0, host))) + sizes

    models = {
        name: Loadable(name, bytes_(8, 3, 5), draw(st.integers(1, 9)), 2, draw(st.sampled_from((NOTHING, Bytes.of(1)))))
        for name in NAMES
    }
    residents: list[Resident] = []
    for name in draw(st.sets(st.sampled_from(NAMES))):
        state: State = draw(st.sampled_from(("loading", "ready", "ready", "ready", "draining", "stopping")))
        running = draw(st.integers(0, 2)) if state in ("ready", "draining") else 0
        loaded_at = draw(MOMENTS)
        residents.append(
            Resident(
                name,
                models[name].needs,
                state,
                running,
                loaded_at,
                loaded_at + draw(st.integers(0, 9)),
                draw(st.sampled_from((False, False, False, True))),
                draw(st.sampled_from((None, 5.0, 30.0))),
                draw(st.sampled_from((False, False, False, True))),
                models[name].work,
                tuple(
                    Yielding(
                        100 + 10 * len(residents) + number,
                        draw(st.sampled_from(CLASSES)),
                        draw(st.sampled_from((0.0, 20.0))),
                        draw(st.booleans()),
                    )
                    for number in range(draw(st.integers(0, running)))
                ),
                draw(st.sampled_from(CLASSES)),
                draw(st.sampled_from((math.inf, 40.0, 60.0))) if state == "draining" else math.inf,
            )
        )
    queue = [
        Waiting(number, draw(st.sampled_from(NAMES)), draw(MOMENTS), draw(st.sampled_from(CLASSES)))
        for number in range(draw(st.integers(0, 6)))
    ]
    recent = []
    for _ in range(draw(st.integers(0, 6))):
        began = draw(MOMENTS)
        recent.append(Use(draw(st.sampled_from(NAMES)), began - 1, began, draw(st.sampled_from((None, began + 1)))))
    bare = Situation(
        50.0,
        Bytes.of(draw(st.integers(4, 20)), draw(st.integers(2, 8)))
        + Bytes({place: draw(st.integers(2, 12)) for place in elsewhere}),
        models,
        tuple(residents),
        min_resident_s=draw(st.sampled_from((0.0, 5.0, 30.0))),
        max_wait_s=draw(st.sampled_from((5.0, 30.0, 60.0))),
        blocked_until=draw(st.dictionaries(st.sampled_from(NAMES), st.integers(40, 70).map(float), max_size=2)),
        recent=tuple(sorted(recent, key=lambda use: use.began_at)),
        head_starts_s=draw(st.dictionaries(st.sampled_from(CLASSES), st.sampled_from((0.0, 10.0, 60.0)))),
    )
    return Scene(bare, tuple(queue))


def after(scene: Scene, actions: tuple[Action, ...]) -> Scene:
    """The scene once the actions were carried out, before anything else has happened."""
    situation = scene.bare
    residents = {one.name: one for one in situation.residents}
    waiting = {one.id: one for one in scene.queue}
    recent = list(situation.recent)
    for action in actions:
        one = residents.get(action.name)
        match action:
            case Start():
                assert one is not None
                residents[action.name] = dataclasses.replace(one, running=one.running + 1)
                recent.append(Use(action.name, waiting.pop(action.id).since, situation.now))
            case Refuse():
                waiting = {id_: one for id_, one in waiting.items() if one.name != action.name}
            case Yield():
                assert one is not None
                yielding = tuple(
                    dataclasses.replace(use, is_asked=use.is_asked or use.id == action.id) for use in one.yielding
                )
                residents[action.name] = dataclasses.replace(one, yielding=yielding)
            case Move("load"):
                loaded = situation.models[action.name]
                residents[action.name] = Resident(action.name, loaded.needs, "loading", 0, 0.0, 0.0, work=loaded.work)
            case Move():
                assert one is not None
                states: dict[str, State] = {"drain": "draining", "undrain": "ready", "stop": "stopping"}
                residents[action.name] = dataclasses.replace(one, state=states[action.to_do])
    bare = dataclasses.replace(situation, residents=tuple(residents.values()), recent=tuple(recent))
    return Scene(bare, tuple(waiting.values()))


def settled(scene: Scene) -> Scene:
    for _ in range(10):
        actions = decide(scene.situation)
        if not actions:
            return scene
        scene = after(scene, actions)
    raise AssertionError(f"never settles: {actions}")
