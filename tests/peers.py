"""Processes at the other end of a pipe, for the tests; and how to start, hear and end them.

    with peer("echo", room, "bob") as bob:
        …

`python -m tests.peers KIND ROOM SEAT …` is such a process; it says "ready" when it sits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from modelpipes.lockfile import Lock
from modelpipes.pipe.endpoint import Arrival, Endpoint, Lost
from modelpipes.pipe.message import Bye, Delta, Progress, Reply, Say, new_id
from modelpipes.pipe.room import Room, Sitting
from modelpipes.values.deadline import Deadline

LIMIT_S = 30.0  # for anything that should take no time, on a machine that does other things as well
LOOK_S = 0.001  # between looks at what tells of no change
ROOT = Path(__file__).parents[1]


class Peer:
    """A process of ours that answers in lines."""

    def __init__(self, *command: str, **options: object) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'pipes'}"}
        self.process = subprocess.Popen(  # type: ignore[call-overload]  # of the options there are many
            command, bufsize=0, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=environment, cwd=ROOT, **options
        )  # unbuffered: a line that was read ahead is none for `select`
        self.pid: int = self.process.pid

    def line(self) -> str:
        """The next line that it says."""
        readable, _, _ = select.select([self.process.stdout], [], [], LIMIT_S)
        assert readable, "the peer said nothing before the deadline"
        line: bytes = self.process.stdout.readline()
        return line.decode().rstrip("\n")

    def tell(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it with SIGKILL, and return when it has ended."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def stop(self) -> None:
        """Stop it with SIGSTOP, and return when it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "stop")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(LIMIT_S)
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


@contextlib.contextmanager
def peer(kind: str, room: Room, seat: str = "bob", *args: object) -> Iterator[Peer]:
    """A process of this module that sits; it is ended with the block."""
    process = Peer(sys.executable, "-m", "tests.peers", kind, room.path, seat, *map(str, args))
    try:
        assert process.line() == "ready"
        yield process
    finally:
        process.close()


def modelpipes(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: modelpipes("setup", "alice", PIPE_DIR="…"); nothing is inherited that it reads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPE_")} | variables
    command = [sys.executable, "-P", "-m", "modelpipes", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False
    )


def eventually(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Return when it holds; DeadlineError, which names `what`, where it does not in time.

    For what no descriptor and no lock tells: it looks again and again.
    """
    deadline = Deadline.after(limit_s)
    if not holds_in_time(holds, deadline):
        deadline.check(what)


def holds_in_time(holds: Callable[[], object], deadline: Deadline) -> bool:
    """Whether it comes to hold before the deadline."""
    while not holds():
        if deadline.has_passed():
            return False
        time.sleep(LOOK_S)
    return True


async def eventually_beside(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """`eventually` in a loop of events, which goes on meanwhile."""
    deadline = Deadline.after(limit_s)
    while not holds():
        deadline.check(what)
        await asyncio.sleep(LOOK_S)


def open_descriptors() -> dict[str, str]:
    """What each open descriptor of ours leads to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


# -- what runs in the process


def say_line(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def heard_line() -> str:
    return sys.stdin.readline().rstrip("\n")


@contextlib.contextmanager
def seated(room: Room, seat: str) -> Iterator[tuple[Endpoint, Lock]]:
    with room.take_seat(seat) as lock, Endpoint(room, seat) as endpoint:
        who = Sitting(seat, "ready", os.getpid(), command="a peer of the tests")
        lock.write(msgspec.json.encode(who) + b"\n")
        for sender in room.senders_to(seat):
            endpoint.listen(sender)
        yield endpoint, lock
        lock.clear()


def says(endpoint: Endpoint) -> Iterator[Say]:
    while True:
        event = endpoint.receive(Deadline.after(LIMIT_S))
        if isinstance(event, Arrival) and isinstance(event.item, Say):
            endpoint.connect(event.sender, Deadline.after(LIMIT_S))
            yield event.item
        elif event is None:
            return


def reply_to(say: Say, content: str) -> Reply:
    return Reply(new_id(), say.id, say.to, say.sender, content, "end")


def echo(room: Room, seat: str) -> None:
    """Says back what it is told: in two deltas, and whole."""
    with seated(room, seat) as (endpoint, _):
        say_line("ready")
        for say in says(endpoint):
            half = len(say.content) // 2
            for part in (say.content[:half], say.content[half:]):
                endpoint.send(say.sender, Delta(say.id, seat, say.sender, part), Deadline.after(LIMIT_S))
            endpoint.send(say.sender, reply_to(say, say.content), Deadline.after(LIMIT_S))


def thinker(room: Room, seat: str) -> None:
    """Begins to answer, never ends; tells when its asker has gone."""
    with seated(room, seat) as (endpoint, _):
        say_line("ready")
        for say in says(endpoint):
            endpoint.send(say.sender, Progress(say.id, seat, say.sender, "thinking"), Deadline.after(LIMIT_S))
            while not isinstance(endpoint.receive(Deadline.after(LIMIT_S)), Lost):
                pass
            say_line("alone")


def stutterer(room: Room, seat: str) -> None:
    """Answers with more and more deltas, as fast as they go, and without an end."""
    with seated(room, seat) as (endpoint, _):
        say_line("ready")
        for say in says(endpoint):
            while endpoint.is_connected(say.sender):
                if endpoint.unsent_bytes(say.sender) < 100_000:
                    endpoint.post(say.sender, Delta(say.id, seat, say.sender, "again "))
                else:
                    endpoint.receive(Deadline.after(0.001))


def leaver(room: Room, seat: str) -> None:
    """Says goodbye instead of answering."""
    with seated(room, seat) as (endpoint, _):
        say_line("ready")
        for say in says(endpoint):
            endpoint.send(say.sender, Bye(seat, say.sender), Deadline.after(LIMIT_S))
            return


def sitter(room: Room, seat: str) -> None:
    """Holds the seat and its pipes, and reads nothing."""
    with seated(room, seat):
        say_line("ready")
        heard_line()


def trader(room: Room, seat: str, other: str, size: str) -> None:
    """Sends one large message before it reads what the other sent; then says how much that was."""
    with Endpoint(room, seat) as endpoint:
        endpoint.listen(other)
        say_line("ready")
        endpoint.connect(other, Deadline.after(LIMIT_S))
        endpoint.send(other, Say(new_id(), seat, other, "x" * int(size)), Deadline.after(LIMIT_S))
        event = endpoint.receive(Deadline.after(LIMIT_S))
        assert isinstance(event, Arrival) and isinstance(event.item, Say)
        say_line(str(len(event.item.content)))
        heard_line()


def asker(room: Room, seat: str, to: str) -> None:
    """Holds the lock of an asker until it is told to end."""
    from modelpipes.pipe.asker import Asker

    with Asker(room, seat, to, silence_s=LIMIT_S, limit=Deadline.never()):
        say_line("ready")
        heard_line()


def asking(room: Room, seat: str, to: str) -> None:
    """Asks a seat that may not be taken yet, and says the answer."""
    from modelpipes.pipe.asker import Asker

    say_line("ready")
    with Asker(room, seat, to, silence_s=LIMIT_S, limit=Deadline.never()) as one:
        *_, reply = one.ask(Say(new_id(), seat, to, "Hello"))
        assert isinstance(reply, Reply)
        say_line(reply.content)
    heard_line()


if __name__ == "__main__":
    globals()[sys.argv[1]](Room(sys.argv[2]), *sys.argv[3:])
