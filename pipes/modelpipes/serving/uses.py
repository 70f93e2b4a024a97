"""What the last uses of models tell of those to come: whose turn is next, and whether somebody may ask again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from modelpipes.serving.situation import Use


def next_uses(recent: Sequence[Use], now: float) -> dict[str, float]:
    """Seconds until the next use of each model that takes turns regularly (its last two intervals are equal).

    Counted in turns, where requests of one model in a row are one turn, and then in the mean time of a turn. Least
    recently used is the worst choice there is where models take turns: it evicts the one whose turn is next.
    """
    turns = [next(group) for _, group in itertools.groupby(recent, key=lambda use: use.name)]
    places: dict[str, list[int]] = {}
    for place, use in enumerate(turns):
        places.setdefault(use.name, []).append(place)
    uses = {}
    for name, at in places.items():
        if len(at) < 3 or at[-1] - at[-2] != at[-2] - at[-3]:
            continue
        to_come = 2 * at[-1] - at[-2] - len(turns)
        if to_come > 0:
            uses[name] = to_come * (now - turns[0].began_at) / len(turns)
    return uses


def last_answer(recent: Sequence[Use], arrivals: Sequence[float]) -> float:
    """When the last of those was answered who have not asked again; `arrivals` of those who wait now.

    An arrival is taken for the one answered last: whoever has left for good is soon too long ago to matter.
    """
    moments = [(use.ended_at, True) for use in recent if use.ended_at is not None]
    moments += [(use.since, False) for use in recent]
    moments += [(arrived, False) for arrived in arrivals]
    away: list[float] = []
    for moment, is_answer in sorted(moments, key=lambda one: (one[0], not one[1])):
        if is_answer:
            away.append(moment)
        elif away:
            away.pop()
    return away[-1] if away else -math.inf


def expected_wait_s(
    name: str, ahead: int, sequences: int, load_s: float, recent: Sequence[Use], *, is_ready: bool
) -> float | None:
    """A guess how long the next request for a model waits, behind so many others for it; None where nothing is known.

    The load, where it is not in memory, and as many services as come before it, each as long as the last ones took. It
    knows nothing of room that has to be made first.
    """
    before = ahead // sequences + is_ready  # ready, and yet it waits: all sequences are at work
    spans = [use.ended_at - use.began_at for use in recent if use.name == name and use.ended_at is not None]
    if before and not spans:
        return None
    return (0.0 if is_ready else load_s) + (before * sum(spans) / len(spans) if before else 0.0)
