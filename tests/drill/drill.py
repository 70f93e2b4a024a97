"""The kill drill: SIGKILL at every system-call boundary of a turn and at random moments, then look.

    python -m tests.drill --kills 50 --seed 7        # each victim, so often at boundaries and at random
    python -m tests.drill --every --only leader      # at each boundary of a turn once

Victims are a member, its engine, an asker and the leader. Two seats talk; their model server is in our
hand (server.py), so that we know where everybody stands when the blow falls, and every prompt is seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from modelpipes.engine.locate import find_engine
from modelpipes.errors import DeadlineError
from modelpipes.pipe.room import Room, Sitting
from modelpipes.values.deadline import Deadline
from tests.drill.checks import Book, Violation
from tests.drill.processes import Id, Process, command_line, descendants, living, marked, wait_for_end
from tests.drill.ptrace import Tracer, why_not
from tests.drill.server import Asked, Server
from tests.peers import holds_in_time

SURVIVAL_S = 2.0  # what a killed process owned must be gone by then
GO_ON_S = 30.0  # for a conversation to go on after a kill, engines loaded anew, on a busy machine
LEAVE_S = 10.0  # for everybody to be gone at an orderly end
OPENING = "Let the drill begin."
MODERATOR = r"sed -u 's/.*Who should speak next: \([a-z]*\).*/\1/'"  # lets speak who is named first of those who may
LARGE_CONTEXT = "4000000"  # of the model server in our hand: nothing is dropped before the history holds its 2 MiB
ENGINE_TURNS = 30  # of a talk with tiny-chat, which was trained for 1024 tokens: nothing is dropped there either
EVERY = -1  # as the number of kills: each boundary once


@dataclass(frozen=True)
class Victim:
    """Who is killed, and how the conversation around it is made."""

    name: str
    kind: str  # member, engine, leader, start (a leader before its first turn) or asker
    is_seated: bool = False  # the leader seats the members; else they are attached beforehand
    engine: str = ""  # alice has an engine of her own: recorded (seen by a proxy) or bare
    is_moderated: bool = False  # a third seat says who speaks next
    is_large: bool = False  # answers that no pipe holds: lines are written in parts, and cut by a death
    turns_a_talk: int = 80  # then a new one begins: histories, and what is to be checked, grow


VICTIMS = (
    Victim("member, attached", "member"),
    Victim("member, seated by the leader", "member", is_seated=True),
    Victim("member with an engine", "member", is_seated=True, engine="recorded", turns_a_talk=ENGINE_TURNS),
    Victim("engine behind a recorder", "engine", is_seated=True, engine="recorded", turns_a_talk=ENGINE_TURNS),
    Victim("engine, bare", "engine", is_seated=True, engine="bare", turns_a_talk=ENGINE_TURNS),
    Victim("leader of attached members", "leader"),
    Victim("leader that seats its members", "leader", is_seated=True),
    Victim("leader of an engine, three deep", "leader", is_seated=True, engine="recorded", turns_a_talk=ENGINE_TURNS),
    Victim("leader with a moderator", "leader", is_seated=True, is_moderated=True),
    Victim("leader that is starting", "start", is_seated=True, engine="bare", turns_a_talk=ENGINE_TURNS),
    Victim("asker", "asker"),
    Victim("member, large words", "member", is_large=True, turns_a_talk=10),
    Victim("leader, large words", "leader", is_large=True, turns_a_talk=10),
    Victim("asker, large words", "asker", is_large=True, turns_a_talk=10),
)


@dataclass
class Figures:
    """What came of killing one victim in one manner."""

    victim: str
    manner: str
    boundaries: int = 0  # of one turn, where they were counted
    kills: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        each_s = self.seconds / max(1, self.kills)
        counted = f" of {self.boundaries}" if self.boundaries else ""
        return (
            f"{self.victim:32} {self.manner:12} {self.kills:4} kills{counted:9} "
            f"{len(self.violations):3} violations {each_s:6.2f} s a kill"
        )


class Place:
    """A folder with a room and a transcript in it, and every process that was started there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.room = str(root / "room")
        self.transcript = str(root / "talk.jsonl")
        self.record = str(root / "record.jsonl")
        self._mark = f"MODELPIPES_DRILL={root}"
        self.env = {key: value for key, value in os.environ.items() if key not in ("PIPE_DIR", "OPENAI_API_KEY")}
        self.env |= {"MODELPIPES_DRILL": str(root), "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(self, verb: str, *arguments: str, is_stopped: bool = False) -> Process:
        argv = [sys.executable, "-P", "-m", "modelpipes", verb, "-d", self.room, *arguments]
        return Process(argv, self.env, str(self.root / f"{verb}.log"), is_stopped=is_stopped)

    def run(self, verb: str, *arguments: str) -> None:
        """Violation where the command does not end with 0."""
        process = self.start(verb, *arguments)
        if (code := process.wait(Deadline.after(GO_ON_S))) != 0:
            raise Violation(f"{verb} {' '.join(arguments)} ended with {code}: {process.said()}")

    def sitting(self, seat: str) -> Sitting:
        return Room(self.room).sitting(seat)

    def use_recorder(self) -> None:
        """Let members find, as their llama-server, the real engine behind a proxy that writes prompts down."""
        script = self.root / "llama-server"
        recorder = Path(__file__).with_name("recorder.py")
        engine = " ".join(f"'{word}'" for word in find_engine().argv)
        script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P '{recorder}' '{self.record}' {engine} -- \"$@\"\n")
        script.chmod(0o700)
        self.env["LLAMA_SERVER"] = str(script)

    def clean_up(self) -> None:
        self.run("cleanup", "-f")
        if os.path.lexists(self.room):
            raise Violation(f"cleanup-pipes -f left {sorted(os.listdir(self.room))}")

    def check_left(self) -> None:
        """Nobody whom we or ours started is left."""
        if not holds_in_time(lambda: not marked(self._mark), Deadline.after(SURVIVAL_S)):
            raise Violation(f"left over: {_named(marked(self._mark))}")

    def end(self) -> None:
        """Kill what should not be there any more."""
        for one in marked(self._mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)


def check_gone(family: set[Id], whose: str) -> None:
    """Violation where what a killed process had started outlives it."""
    if not holds_in_time(lambda: not living(family), Deadline.after(SURVIVAL_S)):
        raise Violation(f"the {whose} was killed, and left {_named(living(family))}")


def _named(family: set[Id]) -> str:
    return "; ".join(f"{one.pid} {' '.join(command_line(one.pid))[:120]}" for one in family)


class Talk:
    """One conversation of alice and bob, in which somebody is killed again and again.

    Whenever we look, a request waits at the model server: of bob, where a member or engine is the victim
    (which is alice's, then idle), of any of the two, where it is the leader (who then waits for the answer).
    """

    def __init__(self, victim: Victim, place: Place, server: Server) -> None:
        self.victim = victim
        self.place = place
        self.server = server
        self.book = Book(place.transcript, lambda turn: ("hub", "alice", "bob")[0 if turn == 0 else 2 - turn % 2])
        self._leader: Process | None = None
        self._attached: dict[str, Process] = {}
        self._seen = len(server.asked)
        self._answers: dict[str, int] = {}  # whole answers of the server, and the turns asked for
        self._recorded_bytes = 0
        self.turn_s = 0.0

    def begin(self) -> None:
        self.server.release_all()
        self.server.holds = {"alice", "bob"} if self.victim.kind == "leader" else {"bob"}
        if self.victim.engine == "recorded":
            self.place.use_recorder()
        if not self.victim.is_seated:
            self.place.run("setup", "alice", "bob")
            for seat in ("alice", "bob"):
                self._attach(seat)
        self._leader = self._lead()
        self._go_on()

    def _attach(self, seat: str) -> None:
        self._attached[seat] = self.place.start(
            "attach", seat, "--server", self.server.url(seat), "--ctx-size", LARGE_CONTEXT
        )

    def _lead(self, *, is_stopped: bool = False) -> Process:
        arguments = ["--transcript", self.place.transcript, "--resume", "--opening", OPENING, "--rounds", "1000000"]
        arguments += ["--timeout", "20", "--patience", "20"]
        if self.victim.is_moderated:
            arguments += ["--turns", "moderator", "--moderator", "mod", "--filter", f"mod={MODERATOR}"]
        if not self.victim.is_seated:
            arguments += ["alice", "bob"]
        elif self.victim.engine:
            arguments += ["--model", "alice=tiny-chat", "--max-tokens", "alice=12"]
        else:
            arguments += ["--server", f"alice={self.server.url('alice')}"]
        if self.victim.is_seated:
            arguments += ["--server", f"bob={self.server.url('bob')}", "--ctx-size", f"bob={LARGE_CONTEXT}"]
            if not self.victim.engine:
                arguments += ["--ctx-size", f"alice={LARGE_CONTEXT}"]
        return self.place.start("chat", *arguments, is_stopped=is_stopped)

    def _target(self) -> int:
        """The pid to strike; 0 where alice died after her turn, and is only brought back for the next."""
        assert self._leader
        if self.victim.kind in ("leader", "start"):
            return self._leader.pid
        who = self.place.sitting("alice")
        if who.state not in ("ready", "busy") or who.pid is None:
            return 0
        alice = who.pid
        if self.victim.kind == "member":
            return alice
        engines = [one.pid for one in descendants(alice) if "--model" in command_line(one.pid)]
        return max(engines, default=0)  # of recorder and engine, the one that was started last

    def measure(self) -> int:
        """The system calls of the victim from one wait to the next: one turn, or both where it hears both."""
        held, pid = self._wait_for_target()
        began_s = time.monotonic()
        self._step(held)
        self.turn_s = time.monotonic() - began_s
        if self.victim.kind == "start":
            return self._measure_start()
        held, pid = self._wait_for_target()
        with Tracer(pid) as tracer:
            self._step(held)
            return tracer.count

    def _measure_start(self) -> int:
        self._end_leader()
        began_s = time.monotonic()
        self._leader = self._lead(is_stopped=True)
        with Tracer(self._leader.pid, begin_at_path=str(self.place.root)) as tracer:
            self._leader.kill(signal.SIGCONT)
            self._go_on()
            self.turn_s = time.monotonic() - began_s
            return tracer.count

    def _end_leader(self) -> None:
        """Kill the leader, for another to start."""
        assert self._leader
        family = descendants(self._leader.pid)
        self._leader.kill()
        self._leader.wait(Deadline.after(SURVIVAL_S))
        check_gone(family, "leader")
        self.server.release_all()

    def _wait_for_target(self) -> tuple[Asked, int]:
        """The request that waits, and the pid to strike when it is let go on."""
        while True:
            held = self.server.wait_held(Deadline.after(GO_ON_S))
            if pid := self._target():
                return held, pid
            self._step(held)

    def _step(self, held: Asked) -> None:
        """Let the conversation go on until the next request waits."""
        self.server.release(held)
        self._go_on()
        self._check()

    def strike_at(self, boundary: int) -> bool:
        """Kill before this system call of a turn; False where the turn had fewer."""
        family: set[Id] = set()
        if self.victim.kind == "start":
            self._end_leader()
            self._leader = self._lead(is_stopped=True)
            let_go, pid = partial(self._leader.kill, signal.SIGCONT), self._leader.pid
        else:
            held, pid = self._wait_for_target()
            let_go = partial(self.server.release, held)
        with Tracer(
            pid,
            kill_at=boundary,
            begin_at_path=str(self.place.root) if self.victim.kind == "start" else None,
            before_kill=lambda: family.update(self._family(pid)),
            notify=self._notify,
        ) as tracer:
            let_go()
            with self.server.news:
                self.server.news.wait_for(lambda: tracer.has_ended() or self.server.held(), GO_ON_S)
        if tracer.status is not None:
            self._reap(pid, tracer.status)
        self._recover(family, is_dead=tracer.status is not None)
        return tracer.has_killed

    def strike_after(self, seconds: float) -> bool:
        """Kill so long after the conversation was let go on, or when the turn is over."""
        if self.victim.kind == "start":
            self._end_leader()
            self._leader = self._lead()
            pid = self._leader.pid
        else:
            held, pid = self._wait_for_target()
            self.server.release(held)
        pidfd = os.pidfd_open(pid)
        try:
            with self.server.news:
                self.server.news.wait_for(lambda: self.server.held(), seconds)
            family = self._family(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            wait_for_end(pidfd, Deadline.after(SURVIVAL_S))
        finally:
            os.close(pidfd)
        self._recover(family, is_dead=True)
        return True

    def _family(self, pid: int) -> set[Id]:
        """What must be gone once the victim is: what it started; where it is an engine, its member too."""
        alice = self.place.sitting("alice").pid if self.victim.kind == "engine" else None
        return descendants(alice or pid)

    def _notify(self) -> None:
        with self.server.news:
            self.server.news.notify_all()

    def _reap(self, pid: int, status: int) -> None:
        for process in (self._leader, *self._attached.values()):
            if process and process.pid == pid:
                process.was_reaped(status)

    def _recover(self, family: set[Id], *, is_dead: bool) -> None:
        """Start again what was killed, see the conversation go on, and look at everything."""
        if is_dead:
            check_gone(family, self.victim.kind)
            if self.victim.kind in ("leader", "start"):
                self.server.release_all()
                assert self._leader
                self._leader.wait(Deadline.after(SURVIVAL_S))
                if self.victim.is_seated:
                    self.place.clean_up()
                self._leader = self._lead()
            elif not self.victim.is_seated:
                self._attached["alice"].wait(Deadline.after(SURVIVAL_S))
                self._attach("alice")
        self._go_on()
        self._check()

    def _go_on(self) -> None:
        """Return when a request waits at the server; Violation where the conversation does not come so far."""
        assert self._leader
        deadline = Deadline.after(GO_ON_S)
        while True:
            with contextlib.suppress(DeadlineError):
                self.server.wait_held(Deadline.after(0.1))
                return
            if self._leader.has_ended():
                raise Violation(f"the leader ended with {self._leader.wait(deadline)}: {self._leader.said()}")
            if deadline.has_passed():
                raise Violation(f"the conversation does not go on; the leader said: {self._leader.said()}")

    def _check(self) -> None:
        """Transcript and prompts, as far as they have come."""
        before = len(self.book.turns)
        self.book.read()
        new = self.server.asked[self._seen :]
        self._seen += len(new)
        for asked in new:
            self._answers[" ".join(asked.answer)] = self.book.check_prompt(asked.seat, asked.messages)
        for turn in self.book.turns[before:]:
            if turn["turn"] and not (self.victim.engine and turn["from"] == "alice"):
                # Popped: no answer may become two turns.
                asked_for = self._answers.pop(turn["content"], None)
                if asked_for != turn["turn"]:
                    raise Violation(f"the words of turn {turn['turn']} were answered as turn {asked_for}")
        self._check_record()

    def _check_record(self) -> None:
        """What the recorder in front of alice's engine saw."""
        if self.victim.engine != "recorded":
            return
        with open(self.place.record, "rb") as file:
            file.seek(self._recorded_bytes)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._recorded_bytes += len(data)
        for line in data.splitlines():
            messages = json.loads(line)["messages"]
            if [message["content"] for message in messages] != ["Hello."]:  # the proof that the engine works
                self.book.check_prompt("alice", messages)

    def end(self) -> None:
        """End it in an orderly way, and see that nothing is left."""
        if self.victim.kind == "member":
            self._wait_for_target()  # who is still loading may say that its room is gone, and fail
        assert self._leader
        family = descendants(self._leader.pid)
        for process in self._attached.values():
            family |= descendants(process.pid)
        self.server.holds = set()
        self._leader.kill(signal.SIGTERM)
        self.server.release_all()
        if (code := self._leader.wait(Deadline.after(LEAVE_S))) not in (143, -signal.SIGTERM):  # it may just begin
            raise Violation(f"the leader ended with {code} after SIGTERM: {self._leader.said()}")
        self.place.clean_up()
        for seat, process in self._attached.items():
            if (code := process.wait(Deadline.after(LEAVE_S))) != 0:
                raise Violation(f"{seat} ended with {code} when its seat was gone: {process.said()}")
        check_gone(family, "whole conversation")
        self.place.check_left()
        self.book.read()


class Questions:
    """An asker that continues a transcript, killed and started again, question after question."""

    def __init__(self, place: Place, server: Server, rng: random.Random) -> None:
        self.place = place
        self.server = server
        self.rng = rng
        self.book = Book(place.transcript, lambda turn: ("hub", "bob")[turn % 2])
        self._bob: Process | None = None
        self._seen = len(server.asked)
        self._asked: list[str] = []
        self.turn_s = 0.0

    def begin(self) -> None:
        self.server.holds = set()
        self.place.run("setup", "bob")
        self._bob = self.place.start("attach", "bob", "--server", self.server.url("bob"), "--ctx-size", LARGE_CONTEXT)
        self.place.run("seats", "--wait", "bob", "--timeout", "30")

    def measure(self) -> int:
        """The system calls of an asker, from its first look at the room to its end."""
        self._ask_until_answered(self._new_question())
        self._check()
        began_s = time.monotonic()
        self._ask_until_answered(self._new_question())
        self.turn_s = time.monotonic() - began_s
        self._check()
        process = self._start(self._new_question(), is_stopped=True)
        with Tracer(process.pid, begin_at_path=self.place.room) as tracer:
            process.kill(signal.SIGCONT)
            tracer.wait(Deadline.after(GO_ON_S))
        assert tracer.status is not None
        process.was_reaped(tracer.status)
        self._check()
        return tracer.count

    def _new_question(self) -> str:
        self._asked.append(" ".join(f"question{len(self._asked)}.{i}" for i in range(4)))
        return self._asked[-1]

    def _start(self, question: str, *, is_stopped: bool = False) -> Process:
        return self.place.start(
            "ask", "bob", "--transcript", self.place.transcript, "--timeout", "20", question, is_stopped=is_stopped
        )

    def strike_at(self, boundary: int) -> bool:
        question, family = self._new_question(), set[Id]()
        process = self._start(question, is_stopped=True)
        with Tracer(
            process.pid,
            kill_at=boundary,
            begin_at_path=self.place.room,
            before_kill=lambda: family.update(descendants(process.pid)),
        ) as tracer:
            process.kill(signal.SIGCONT)
            if not tracer.wait(Deadline.after(GO_ON_S)):
                raise Violation(f"the asker does not end: {process.said()}")
        assert tracer.status is not None
        process.was_reaped(tracer.status)
        self._recover(question, family)
        return tracer.has_killed

    def strike_after(self, seconds: float) -> bool:
        question = self._new_question()
        process = self._start(question)
        if process.wait(Deadline.after(seconds)) is None:
            family = descendants(process.pid)
            process.kill()
            process.wait(Deadline.after(SURVIVAL_S))
            self._recover(question, family)
            return True
        self._recover(question, set())
        return False

    def _recover(self, question: str, family: set[Id]) -> None:
        check_gone(family, "asker")
        self.book.read()
        if not any(turn["content"] == question for turn in self.book.turns) or len(self.book.turns) % 2:
            self._ask_until_answered(question)
        self._check()

    def _ask_until_answered(self, question: str) -> None:
        process = self._start(question)
        if (code := process.wait(Deadline.after(GO_ON_S))) != 0:
            raise Violation(f"asked again, ask-model ended with {code}: {process.said()}")

    def _check(self) -> None:
        """Every question once, each answered by what the server said to the turns so far."""
        self.book.read()
        questions = [turn["content"] for turn in self.book.turns[::2]]
        if questions != self._asked:
            raise Violation(f"{len(self._asked)} questions were asked, the transcript has {questions[-3:]} at its end")
        new = self.server.asked[self._seen :]
        self._seen += len(new)
        answers = {" ".join(asked.answer): self.book.check_prompt(asked.seat, asked.messages) for asked in new}
        last = self.book.turns[-1]
        if answers.get(last["content"]) != last["turn"]:
            raise Violation(f"the words of turn {last['turn']} are no answer to it: {last['content'][:60]!r}")

    def end(self) -> None:
        assert self._bob
        self.place.clean_up()
        if (code := self._bob.wait(Deadline.after(LEAVE_S))) != 0:
            raise Violation(f"bob ended with {code} when its seat was gone: {self._bob.said()}")
        self.place.check_left()


def kill_at_boundaries(victim: Victim, kills: int, rng: random.Random, keep: bool = False) -> Figures:
    """Kill so often at system-call boundaries, spread over a turn; EVERY: at each one once."""
    figures = Figures(victim.name, "boundary")
    wanted: list[int] = []

    def strike(talk: Talk | Questions) -> bool:
        if not figures.boundaries:
            figures.boundaries = talk.measure()
            count = figures.boundaries if kills == EVERY else kills
            # One in each part of a turn; all, and then again from the first, where there are fewer.
            parts = max(1.0, figures.boundaries / count)
            wanted.extend(1 + int((i + rng.random()) * parts) % figures.boundaries for i in range(count))
        boundary = wanted[figures.kills]
        for _ in range(3):  # threads make the number of calls vary
            if talk.strike_at(boundary):
                return True
            boundary = rng.randint(1, boundary)
        return False

    return _kill(victim, figures, lambda: not wanted or figures.kills < len(wanted), strike, rng, keep)


def kill_at_random(victim: Victim, kills: int, rng: random.Random, keep: bool = False) -> Figures:
    """Kill so often at random moments of a turn."""
    figures = Figures(victim.name, "random")

    def strike(talk: Talk | Questions) -> bool:
        if not talk.turn_s:
            talk.measure()
        return talk.strike_after(rng.uniform(0, talk.turn_s))

    return _kill(victim, figures, lambda: figures.kills < kills, strike, rng, keep)


def _kill(
    victim: Victim,
    figures: Figures,
    goes_on: Callable[[], bool],
    strike: Callable[[Talk | Questions], bool],
    rng: random.Random,
    keep: bool,
) -> Figures:
    began_s = time.monotonic()
    while goes_on():
        with _place(keep) as place, Server(is_large=victim.is_large) as server:
            is_asker = victim.kind == "asker"
            talk = Questions(place, server, rng) if is_asker else Talk(victim, place, server)
            try:
                talk.begin()
                while goes_on() and len(talk.book.turns) < victim.turns_a_talk:
                    figures.kills += strike(talk)
                talk.end()
            except (Violation, DeadlineError) as error:
                figures.kills += 1
                figures.violations.append(
                    f"{victim.name}, {figures.manner}, kill {figures.kills}, {place.root}: {error}"
                )
                print(figures.violations[-1], file=sys.stderr, flush=True)
            finally:
                server.holds = set()
                place.end()
    figures.seconds = time.monotonic() - began_s
    return figures


@contextlib.contextmanager
def _place(keep: bool) -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        yield Place(root)
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each victim in each manner [50]")
    parser.add_argument("--every", action="store_true", help="at each system-call boundary once")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), metavar="S")
    parser.add_argument("--only", default="", metavar="TEXT", help="victims with this in their name")
    parser.add_argument("--manner", choices=["boundary", "random"], help="only this manner")
    parser.add_argument("--keep", action="store_true", help="keep the folders, to look into")
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # not before all is tidied up
    reason = why_not()
    if reason:
        print(f"no kills at system-call boundaries: {reason}", file=sys.stderr)
    found: list[Figures] = []
    for victim in VICTIMS:
        if given.only not in victim.name:
            continue
        # A seed of its own for each: --only repeats exactly what happened in the whole run.
        if given.manner != "random" and not reason:
            rng = random.Random(f"{given.seed} {victim.name} boundary")
            found.append(kill_at_boundaries(victim, EVERY if given.every else given.kills, rng, given.keep))
            print(found[-1], flush=True)
        if given.manner != "boundary":
            rng = random.Random(f"{given.seed} {victim.name} random")
            found.append(kill_at_random(victim, given.kills, rng, given.keep))
            print(found[-1], flush=True)
    violations = [line for figures in found for line in figures.violations]
    print(f"{sum(figures.kills for figures in found)} kills, {len(violations)} violations, seed {given.seed}")
    return 1 if violations else 0
