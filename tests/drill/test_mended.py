"""Faults that the drill found, each by itself."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from modelpipes.chat.voices import Finish, Work
from modelpipes.errors import EngineError, PeerFailed
from modelpipes.room import Room
from tests.chat.conftest import ScriptedVoice, Seat, ask, room, seat

__all__ = ["room", "seat"]  # fixtures

CLOSES_BEFORE_S = 0.05  # a killed engine's connections end before it can be waited for


class DyingVoice(ScriptedVoice):
    """Its engine is killed amid an answer: the connection ends, and a moment later the process."""

    def __init__(self, engine: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self.engine = engine
        self.pidfd = os.pidfd_open(engine.pid)

    def answer(self, work: Work) -> Finish:
        work.emit("Half an ")
        threading.Timer(CLOSES_BEFORE_S, self.engine.kill).start()
        raise EngineError("the server closed the connection amid its answer")

    def death_fd(self) -> int:
        return self.pidfd

    def last_words(self) -> str:
        return "the engine was killed"


@pytest.fixture
def engine() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_an_answer_lost_with_its_engine_says_that_the_member_leaves(
    room: Room, seat: Seat, engine: subprocess.Popen[bytes]
) -> None:
    """It said that the voice failed: a leader asked again at once, and spent its tries on a member that was ending."""
    voice = DyingVoice(engine)
    seated = seat(voice)
    with pytest.raises(PeerFailed, match="the engine was killed") as failed:
        ask(room, "Hello")
    assert failed.value.reason == "leaving"
    seated.join()
    assert "the engine was killed" in str(seated.error)
    os.close(voice.pidfd)
