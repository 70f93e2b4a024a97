"""A serve-models of our own, for as long as a conversation lasts."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Collection, Iterator

from modelpipes.child import Child
from modelpipes.engine.client import Client
from modelpipes.errors import DeadlineError, EngineError
from modelpipes.gateway.record import running
from modelpipes.values.deadline import Deadline

START_S = 60.0  # to read every model's header; it answers before any engine starts
LOOK_S = 0.02
PREFIX = "modelpipes_pool_"
COSTS = ("load_seconds_count", "load_seconds_sum", 'decisions_total{action="stop"}')


class PrivateDaemon:
    """Where it listens, the file with its key, empty where it has none, and what swapping has cost."""

    def __init__(self, url: str, key: str, key_file: str) -> None:
        self.url = url
        self.key_file = key_file
        self._client = Client(url, api_key=key or None)

    def models(self) -> list[str]:
        """The names of the models that it serves."""
        return self._client.models()

    def swaps(self) -> str:
        """How often models were loaded and ended, and how long the loads took, in words; empty where it has gone."""
        try:
            text = self._client.metrics()
        except (EngineError, DeadlineError):
            return ""
        told = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(PREFIX))
        loads, seconds, stops = (float(told.get(PREFIX + name, 0)) for name in COSTS)
        return f"{loads:.0f} loads in {seconds:.2f} s, {stops:.0f} models swapped out"


@contextlib.contextmanager
def serving(config: str, variables: Collection[str]) -> Iterator[PrivateDaemon]:
    """Run one with this configuration. EngineError with its last words where it does not start.

    `variables` are those that our own configuration put into the environment: they are none of its business.
    """
    argv = [
        sys.executable,
        "-P",
        "-m",
        "modelpipes",
        "serve",
        "--listen=127.0.0.1:0",
        "--private",
        f"--config={config}",
    ]
    env = {name: value for name, value in os.environ.items() if name not in variables}
    with Child(argv, name="serve-models", env=env) as child:
        deadline = Deadline.after(START_S)
        poll = select.poll()
        poll.register(child.pidfd, select.POLLIN)
        while not (found := [one for one in running() if one.pid == child.pid]):
            if poll.poll(LOOK_S * 1000):
                said = child.last_lines(1)
                raise EngineError(said[0].removeprefix("modelpipes serve: ") if said else "serve-models ended")
            if deadline.has_passed():
                raise DeadlineError(f"serve-models has not started after {START_S:g} s")
        # In a file in memory: a command line is shown to everybody, an environment is inherited by programs, and a
        # file on the disk outlives us where we are killed.
        with open(os.memfd_create("key"), "w") as key_file:
            key_file.write(found[0].key)
            key_file.flush()
            path = f"/proc/{os.getpid()}/fd/{key_file.fileno()}"
            yield PrivateDaemon(f"http://{found[0].listen}", found[0].key, path if found[0].key else "")
