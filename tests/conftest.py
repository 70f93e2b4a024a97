"""What the tests of the pipe side share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from modelpipes.pipe.room import HUB, Room, star
from tests.peers import open_descriptors

# What whoever runs the tests has configured is not what they are about.
os.environ["XDG_CONFIG_HOME"] = "/nonexistent/config"
for name in ("MODELPIPES_CONFIG", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)

# Nor is what it had ignored: `nohup`, or a script's `&`. A signal that is ignored stays so in what we start; one that
# is handled is there as the system has it, whoever starts it, and we pass over it as before.
for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, lambda *_: None)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _one_process(send: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """To one process or group only: the pid of an engine that is not there is -1, which to kill(2) is everything."""

    def send_to_one(pid: int, signum: int) -> None:
        assert pid > 1, f"signal {signum} for pid {pid}: what was to be ended is not there"
        send(pid, signum)

    return send_to_one


os.kill = _one_process(os.kill)
os.killpg = _one_process(os.killpg)

# How long an example of a property takes is the machine's matter.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A room with a hub and two seats."""
    room = Room.make(str(tmp_path / "room"))
    room.make_pipes(star(HUB, ["alice", "bob"]))
    return room


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before
