"""Random faults under load: python -m tests.serving.test_faults --faults 100 --seed 7

Four clients ask three models, two of which fit, while engines are killed and stopped, models and flags broken, the
logs' folder taken away and the daemon itself killed. Every request is answered or fails with one clear error; after
each fault every model answers again; at the end only what is resident is left, and once that is unloaded nothing.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from modelpipes.values.deadline import Deadline
from tests.drill.processes import descendants, living
from tests.peers import eventually, holds_in_time
from tests.serving.daemons import LIMIT_S, NAMES, Refusal, Served, predicted_bytes, words_of, write_models

FAULTS = 12
CLIENTS = 4
WORDS = "This is {}: " + " ".join(str(number) for number in range(1, 41))
PAUSE_S = 0.02  # of a client that was refused
STALL_S = 1.0  # of an engine that is stopped, and goes on
HANG_S = 45.0  # until one that does not is found out, and a little: see the limits of `Pulse`
# What a request may be told: its engine died, or its model cannot be loaded now.
CLEAR = {(502, "engine_lost"), (503, "model_load_failed")}


class Clients:
    """Four of them that ask for models at random until told to stop."""

    def __init__(self, served: Served, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.longest_s = 0.0
        self.changes = 0  # deaths and births of the daemon; odd: it is down, and who asks is told by the connection
        self._served = served
        self._has_ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(seed * CLIENTS + n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *given: object) -> None:
        self._has_ended.set()
        for thread in self._threads:
            thread.join()

    def _work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._has_ended.is_set():
            name, is_streamed = chance.choice(NAMES), chance.random() < 0.5
            changes, began = self.changes, time.monotonic()
            try:
                outcome = self._ask(name, is_streamed)
            except Refusal as refused:
                outcome = f"refused: {refused.status} {refused.code}"
                if (refused.status, refused.code) not in CLEAR:
                    self._complain(f"{name}: {refused}")
            except (OSError, http.client.HTTPException) as error:
                outcome = "cut off with the daemon"
                if self.changes == changes and changes % 2 == 0:
                    self._complain(f"{name}: {type(error).__name__}: {error}")
            with self._lock:
                self.outcomes[outcome] += 1
                self.longest_s = max(self.longest_s, time.monotonic() - began)
            if outcome != "answered":
                self._has_ended.wait(PAUSE_S)

    def _ask(self, name: str, is_streamed: bool) -> str:
        if not is_streamed:
            words = self._served.ask(name)
        else:
            events = list(self._served.stream(name))
            if events and '"error"' in events[-1]:
                if "engine_lost" not in events[-1]:
                    self._complain(f"{name}: {events[-1]}")
                return "broken off, and told"
            words = words_of(events)
        if words != WORDS.format(name):
            self._complain(f"{name} answers {words!r}")
        return "answered"

    def _complain(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)


class Faults:
    """What can go wrong, and that it is well again afterwards."""

    def __init__(self, served: Served, clients: Clients, files: dict[str, Path], chance: random.Random) -> None:
        self.served = served
        self.clients = clients
        self.files = files
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.kinds: list[Callable[[], None]] = [
            self.an_engine_is_killed,
            self.an_engine_stalls,
            self.a_start_is_refused,
            self.a_file_is_broken,
            self.the_logs_have_no_place,
            self.a_configuration_is_wrong,
            self.the_daemon_is_killed,
        ]

    def commit(self, count: int, *, hangs: int = 0) -> None:
        kinds = [self.kinds[n % len(self.kinds)] for n in range(count - hangs)] + [self.an_engine_hangs] * hangs
        self.chance.shuffle(kinds)
        self.see_all_answer()
        for kind in kinds:
            kind()
            self.done[kind.__name__.replace("_", " ")] += 1
            self.see_all_answer()

    def see_all_answer(self) -> None:
        """Every model answers, at the latest after a reload: that forgives failures."""
        for name in NAMES:
            try:
                self.served.ask(name)
            except Refusal as refused:
                assert (refused.status, refused.code) in CLEAR, refused
                self.served.reload()
                assert self.served.ask(name) == WORDS.format(name)

    def an_engine_is_killed(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._engine(), signal.SIGKILL)

    def an_engine_stalls(self) -> None:
        engine = self._engine()
        with suppress(ProcessLookupError), _stopped(engine) as pidfd:
            served_before = sum(self.clients.outcomes.values())
            deadline = Deadline.after(STALL_S)
            holds_in_time(lambda: sum(self.clients.outcomes.values()) > served_before + 2 * CLIENTS, deadline)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)

    def an_engine_hangs(self) -> None:
        engine = self._engine()
        with suppress(ProcessLookupError), _stopped(engine) as pidfd:
            eventually(lambda: _has_ended(pidfd), "end of an engine that hangs", HANG_S)

    def a_start_is_refused(self) -> None:
        name = self.chance.choice(NAMES)
        self.write({name: 'engine_args = ["--no-such-flag"]'})
        self.served.reload()
        self._see_refused(name)
        self.write()
        self.served.reload()

    def a_file_is_broken(self) -> None:
        name = self.chance.choice(NAMES)
        file = self.files[name]
        whole = file.with_suffix(".whole")
        file.rename(whole)
        file.write_bytes(b"GGUF" + os.urandom(256))
        try:
            with suppress(Refusal):  # it is being loaded, and fails
                self.served.post(f"/models/{name}/unload")
            self._see_refused(name)
        finally:
            whole.rename(file)
        self.served.reload()

    def the_logs_have_no_place(self) -> None:
        logs = Path(self.served.env["HOME"]) / ".cache" / "modelpipes" / "serve"
        aside = logs.with_name("aside")
        logs.rename(aside)
        logs.write_text("in the way")
        try:
            for name in NAMES:
                with suppress(Refusal):
                    self.served.post(f"/models/{name}/unload")
            self.see_all_answer()
        finally:
            logs.unlink()
            aside.rename(logs)

    def a_configuration_is_wrong(self) -> None:
        self.served.config.write_text("[models]\nalpha = 1\n")
        assert "nothing was changed" in self.served.reload("models.alpha")
        self.write()
        self.served.reload()

    def the_daemon_is_killed(self) -> None:
        family = self.served.family()
        self.clients.changes += 1
        assert self.served.end(signal.SIGKILL) == -signal.SIGKILL
        self.served.restart()
        self.clients.changes += 1
        eventually(lambda: not living(family), "end of the engines of a daemon that was killed")

    def write(self, more: dict[str, str] | None = None) -> None:
        """The configuration, with room for two models."""
        room = f"budget = {predicted_bytes(self.files['alpha']) * 5 // 2}\nmax_wait_s = 1"
        self.served.write(self.files, more, memory=room)

    def _see_refused(self, name: str) -> None:
        """Return once a request for this model is refused for a load that failed: the old engine may answer first."""

        def is_refused() -> bool:
            try:
                self.served.ask(name)
            except Refusal as refused:
                return refused.code == "model_load_failed"
            return False

        eventually(is_refused, f"refusal of {name}, which cannot be loaded")

    def _engine(self) -> int:
        """The pid of one that runs now."""
        found: list[int] = []

        def look() -> bool:
            found[:] = self.served.engines().values()
            return bool(found)

        eventually(look, "engine that runs")
        return self.chance.choice(found)


@contextmanager
def _stopped(pid: int) -> Iterator[int]:
    """A process that was stopped, as a descriptor; ProcessLookupError where it is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
        yield descriptor
    finally:
        os.close(descriptor)


def _has_ended(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def see_nothing_lost(served: Served) -> None:
    """What is charged is what is resident, what runs is what is resident, and nothing once that is unloaded."""

    def is_at_rest() -> bool:
        now = served.residency()
        return not now["waiting"] and all(one["state"] == "ready" and not one["busy"] for one in now["resident"])

    assert holds_in_time(is_at_rest, Deadline.after(LIMIT_S)), served.residency()
    now = served.residency()
    assert now["used_bytes"] == sum(one["bytes"] for one in now["resident"]) <= now["budget_bytes"]
    assert served.engines().keys() == {one["name"] for one in now["resident"]}
    for name in NAMES:
        served.post(f"/models/{name}/unload")
    now = served.residency()
    assert (now["used_bytes"], now["host_used_bytes"], now["resident"]) == (0, 0, [])
    left = descendants(served.process.pid)
    assert not left, f"{len(left)} processes are left, of them {len(left - living(left))} zombies"


def drill(folder: Path, faults: int, seed: int, *, hangs: int = 0) -> tuple[Counter[str], Clients]:
    """The faults that were committed, and what the clients saw of them; AssertionError."""
    with Served(folder / "place") as served:
        files = write_models(served.cwd, words=WORDS)
        clients = Clients(served, seed)
        made = Faults(served, clients, files, random.Random(seed))
        made.write()
        served.start()
        try:
            with clients:
                made.commit(faults, hangs=hangs)
            see_nothing_lost(served)
        except AssertionError:
            print("\n".join(served.said.lines[-60:]))
            raise
        assert not clients.violations, clients.violations
        assert clients.outcomes["answered"] > faults
        return made.done, clients


@pytest.mark.parametrize("seed", [1])
def test_faults_under_load_cost_only_the_requests_that_they_hit(tmp_path: Path, seed: int) -> None:
    drill(tmp_path, FAULTS, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--hangs", type=int, default=3, help="of these, engines that stop for good: half a minute each")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done, clients = drill(Path(folder), given.faults, given.seed, hangs=given.hangs)
    print(f"seed {given.seed}: {done.total()} faults in {time.monotonic() - began:.0f} s")
    for counts in (done, clients.outcomes):
        print("\n".join(f"{count:6} {what}" for what, count in counts.most_common()))
    print(f"the longest request took {clients.longest_s:.1f} s")


if __name__ == "__main__":
    main()
