"""Faults that the drill found, each by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest

from modelpipes.chat.voices import Finish, Work
from modelpipes.errors import EngineError, PeerFailed
from modelpipes.pipe.room import Room
from tests.chat.conftest import ScriptedVoice, Seat, ask, room, seat
from tests.peers import LIMIT_S

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


def test_a_member_whose_room_goes_while_it_looks_leaves_with_0(
    room: Room, seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean-up between its look at the room and the list of the pipes in it ended it with 1."""
    seated = seat(ScriptedVoice())
    list_senders = room.senders_to

    def clean_up_and_list(to: str) -> list[str]:
        shutil.rmtree(room.path, ignore_errors=True)
        return list_senders(to)

    monkeypatch.setattr(room, "senders_to", clean_up_and_list)
    seated.join()
    assert (seated.exit_code, seated.error) == (0, None)


def test_a_pipe_that_goes_while_a_member_looks_is_no_fault(
    room: Room, seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    seated = seat(ScriptedVoice())
    list_senders, looks = room.senders_to, threading.Semaphore(0)

    def list_one_too_many(to: str) -> list[str]:
        looks.release()
        return [*list_senders(to), "ghost"]

    monkeypatch.setattr(room, "senders_to", list_one_too_many)
    for _ in range(2):
        assert looks.acquire(timeout=LIMIT_S)  # the second look tells that the first was survived
    monkeypatch.undo()
    seated.end()
    assert (seated.exit_code, seated.error) == (0, None)
