"""How soon it is noticed that something ends: members, askers and leaders that are killed or hang, and engines ready.

    python -m tests.bench.ends [--runs 20] [--json]

Milliseconds, the median and the longest of the runs. The engine is the one that `attach-model` would take
($LLAMA_SERVER).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelpipes.engine.lifecycle import Engine
from modelpipes.errors import DeadlineError, PeerGone
from modelpipes.pipe.asker import Asker
from modelpipes.pipe.message import Say, new_id
from modelpipes.pipe.room import HUB, Room, star
from modelpipes.values.deadline import Deadline
from tests.commands.conftest import Commands
from tests.drill.processes import descendants, living
from tests.models import scripted_model
from tests.peers import LIMIT_S, eventually, peer

HANG_S = 0.5
PROMPT_BYTES = 6000
ONE_THREAD = ("--threads", "1")
MEMBERS = ("--model", "alice=tiny-chat", "--filter", "bob=cat", "--rounds", "1000000")


def until(holds: Callable[[], object], what: str) -> float:
    """Milliseconds from now until it holds."""
    began_s = time.perf_counter()
    eventually(holds, what)
    return (time.perf_counter() - began_s) * 1000


def ends_ms(room: Room, silence_s: float | None, signum: signal.Signals) -> float:
    """From the signal to a member that thinks, to the error of who asked it."""
    with peer("thinker", room) as bob, Asker(room, HUB, "bob", silence_s=silence_s, limit=Deadline.never()) as asker:
        answers = asker.ask(Say(new_id(), HUB, "bob", "Hello"))
        next(answers)
        bob.process.send_signal(signum)
        began_s = time.perf_counter()
        with contextlib.suppress(PeerGone, DeadlineError):
            next(answers)
        return (time.perf_counter() - began_s) * 1000


def member_killed_ms(folder: Path) -> float:
    return ends_ms(a_room(folder), LIMIT_S, signal.SIGKILL)


def member_hangs_ms(folder: Path) -> float:
    return ends_ms(a_room(folder), HANG_S, signal.SIGSTOP) - HANG_S * 1000


def leader_killed_ms(folder: Path) -> float:
    """From the end of a leader to the end of all that it started: an engine, members, their guards."""
    run = Commands(folder)
    try:
        leader = run.start("chat", *MEMBERS, stdin=subprocess.DEVNULL)
        assert leader.stdout
        while not leader.stdout.readline().startswith(b"bob: "):
            pass
        family = descendants(leader.pid)
        leader.kill()
        leader.wait()
        return until(lambda: not living(family), "end of all")
    finally:
        run.close()


def asker_killed_ms(folder: Path, *, is_reading: bool) -> float:
    """From the end of an asker to an engine without work, which read its prompt or wrote its answer."""
    model = scripted_model(folder / "m.gguf", " on and on", endless=True, pad_mib=32 if is_reading else 0)
    run = Commands(folder)
    with Engine(str(model), ctx_size=16384, engine_args=ONE_THREAD) as engine:
        try:
            engine.be_ready(Deadline.after(LIMIT_S))
            run.attach("bob", "--server", engine.base_url)
            asking = run.start("ask", "bob", "x" * PROMPT_BYTES if is_reading else "x")
            assert asking.stdout
            if is_reading:
                eventually(lambda: is_busy(engine), "work")
            else:
                asking.stdout.read(1)
            asking.kill()
            return until(lambda: not is_busy(engine), "free slot")
        finally:
            run.close()


def is_busy(engine: Engine) -> bool:
    return any(slot["is_processing"] for slot in engine.client().get("/slots"))


def ready_ms(folder: Path) -> float:
    """From an engine's first good word about its health to its being ready, one token included."""
    healthy_s: list[float] = []
    is_over = threading.Event()
    engine = Engine("tiny-chat", ctx_size=1024)

    def look() -> None:
        # As often as can be: a connection is refused at once until there is a server.
        while not is_over.is_set():
            if (port := engine.status().port) and is_healthy(port):
                healthy_s.append(time.perf_counter())
                return

    looking = threading.Thread(target=look)
    with engine:
        looking.start()
        try:
            engine.be_ready(Deadline.after(LIMIT_S))
            ready_s = time.perf_counter()
        finally:
            is_over.set()
            looking.join()
    return (ready_s - healthy_s[0]) * 1000 if healthy_s else 0.0


def is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.25) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def a_room(folder: Path) -> Room:
    room = Room.make(os.path.join(folder, "room"))
    room.make_pipes(star(HUB, ["bob"]))
    return room


MEASURES: dict[str, Callable[[Path], float]] = {
    "a member that was killed is known after": member_killed_ms,
    "a member that hangs: later than its deadline": member_hangs_ms,
    "leader killed: all that it started is gone after": leader_killed_ms,
    "asker killed while its answer is generated: engine idle after": lambda at: asker_killed_ms(at, is_reading=False),
    "asker killed while its prompt is read: engine idle after": lambda at: asker_killed_ms(at, is_reading=True),
    "an engine that is healthy is ready after": ready_ms,
}


def measure(runs: int) -> Iterator[dict[str, Any]]:
    for what, measure_ms in MEASURES.items():
        taken = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as folder:
                taken.append(measure_ms(Path(folder)))
        yield {"what": what, "median_ms": statistics.median(taken), "longest_ms": max(taken), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="counted runs of each")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for figures in measure(given.runs):
        if given.json:
            print(json.dumps(figures), flush=True)
        else:
            print("{what:62}{median_ms:9.2f} ms, at most {longest_ms:.2f} of {runs}".format(**figures), flush=True)


if __name__ == "__main__":
    main()
