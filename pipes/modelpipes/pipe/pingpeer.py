"""The peer of `ping-pipes --self`: a process of its own, in a fresh room.

`python -m modelpipes.pipe.pingpeer ROOM [CPU]` is that process. Its endpoint answers pings; it counts deltas, and
answers a `say` with what it counted since the last one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import msgspec

from modelpipes.child import Child
from modelpipes.errors import PeerGone, ProgramError
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.endpoint import Arrival, Endpoint
from modelpipes.pipe.fifo import RETRY_S
from modelpipes.pipe.message import Delta, Reply, Say, new_id
from modelpipes.pipe.ping import Flow
from modelpipes.pipe.room import HUB, Room, Sitting, star
from modelpipes.values.deadline import Deadline

PEER = "peer"  # its seat
START_S = 30.0  # it takes a tenth of a second; a machine that takes this long is of no use to measure on


@contextlib.contextmanager
def seated_peer(cpu: int | None = None) -> Iterator[Room]:
    """A fresh room with a peer in the seat PEER, both gone afterwards; pinned to a CPU if one is named.

    Raises ProgramError where it cannot be started, PeerGone where it dies within.
    """
    for orphan in Room.orphans():
        clean_up(orphan)
    room = Room.make_fresh()
    pairs = star(HUB, [PEER])
    argv = [sys.executable, "-P", "-m", "modelpipes.pipe.pingpeer", room.path, *([] if cpu is None else [str(cpu)])]
    try:
        room.make_pipes(pairs)
        with Child(argv, name="the peer") as child:
            _wait_until_ready(room, child)
            try:
                yield room
            except PeerGone:
                raise PeerGone(f"the peer that we started (pid {child.pid}) died; try again") from None
    finally:
        clean_up(room, pairs, force=True)


def _wait_until_ready(room: Room, child: Child) -> None:
    deadline = Deadline.after(START_S)
    while room.sitting(PEER).state != "ready":
        if child.exit_code() is not None:
            raise ProgramError(f"the peer (pid {child.pid}) ended at its start: {' '.join(child.last_lines(1))}")
        deadline.check("peer")
        time.sleep(RETRY_S)


def run(room: Room) -> None:
    """Sit in the seat PEER until we are ended."""
    flow, began_ns, last_ns = Flow(), 0, 0
    with room.take_seat(PEER) as lock, Endpoint(room, PEER) as endpoint:
        endpoint.listen(HUB)
        lock.write(msgspec.json.encode(Sitting(PEER, "ready", os.getpid(), command="ping-pipes --self")))
        while True:
            event = endpoint.receive(Deadline.never())  # our guard ends us, whatever becomes of who started us
            item = event.item if type(event) is Arrival else None
            if type(item) is Delta:
                last_ns = time.perf_counter_ns()
                began_ns = began_ns or last_ns
                flow.messages += 1
                flow.content_bytes += len(item.content)
            elif type(item) is Say and endpoint.try_connect(HUB):
                flow.seconds = (last_ns - began_ns) / 1e9
                content = msgspec.json.encode(flow).decode()
                endpoint.post(HUB, Reply(new_id(), item.id, PEER, HUB, content, "end"))
                flow, began_ns = Flow(), 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    run(Room(sys.argv[1]))
