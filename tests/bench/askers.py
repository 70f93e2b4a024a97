"""One asker of many: asks a member again and again, each time as a new exchange.

    python -m tests.bench.askers ROOM SEAT TO

says `ready`; each line on its stdin is when to begin and when to stop, on the monotonic clock, and is
answered with one line of JSON: {"taken_ms": […], "lost": 0, "why": ""}.
"""

from __future__ import annotations

import sys
import time

import msgspec

from modelpipes.errors import PipesError
from modelpipes.pipe.asker import Asker
from modelpipes.pipe.message import Reply, Say, new_id
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline

SILENCE_S = 30.0  # far longer than a turn among 64; who waits so long was passed over


class Asked(msgspec.Struct):
    """How it went."""

    taken_ms: list[float] = msgspec.field(default_factory=list)
    lost: int = 0
    why: str = ""


def ask_until(room: Room, seat: str, to: str, end_s: float) -> Asked:
    """Ask until that moment; what was begun by then is heard out."""
    asked = Asked()
    while time.monotonic() < end_s:
        began_s = time.monotonic()
        text = f"{seat} {len(asked.taken_ms)}"
        try:
            with Asker(room, seat, to, silence_s=SILENCE_S, limit=Deadline.after(SILENCE_S)) as asker:
                *_, reply = asker.ask(Say(new_id(), seat, to, text))
        except PipesError as e:
            asked.lost, asked.why = asked.lost + 1, str(e)
            continue
        if isinstance(reply, Reply) and reply.content.strip() == text:
            asked.taken_ms.append((time.monotonic() - began_s) * 1000)
        else:
            asked.lost, asked.why = asked.lost + 1, f"{reply} came instead of an echo of {text!r}"
    return asked


def main() -> None:
    room, seat, to = sys.argv[1:]
    print("ready", flush=True)
    for line in sys.stdin:
        begin_s, end_s = map(float, line.split())
        time.sleep(max(0.0, begin_s - time.monotonic()))
        print(msgspec.json.encode(ask_until(Room(room), seat, to, end_s)).decode(), flush=True)


if __name__ == "__main__":
    main()
