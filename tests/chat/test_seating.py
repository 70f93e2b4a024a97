from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.chat.seating import Seating
from modelpipes.errors import DeadlineError, PeerError, PeerGone, UsageError
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline
from tests.chat.conftest import LIMIT_S, ScriptedVoice, Seat, ask, wait_until

LOST = PeerGone("bob is lost")


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def seating(room: Room, reports: list[str]) -> Iterator[Seating]:
    with Seating(room, patience_s=0.3, report=reports.append) as seating:
        yield seating


def pid_of(room: Room, seat: str) -> int:
    pid = room.sitting(seat).pid
    assert pid is not None
    return pid


def ends(pid: int) -> bool:
    """Has the process ended, and been waited for?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_members_sit_and_answer_until_the_seating_ends(room: Room) -> None:
    with Seating(room, patience_s=0, report=print) as seating:
        seating.seat({"bob": ["--filter=cat"], "alice": ["--exec=cat"]})
        assert [room.sitting(seat).state for seat in ("alice", "bob")] == ["ready", "ready"]
        assert ask(room, "Hello")[-1].content == "Hello"  # type: ignore[union-attr]  # the last is the reply
        pids = [pid_of(room, seat) for seat in ("alice", "bob")]
    assert all(map(ends, pids))
    assert room.sitting("bob").state == "free"


def test_a_seat_is_seated_once_and_again_when_its_member_is_gone(room: Room, seating: Seating) -> None:
    seating.seat({"bob": ["--filter=cat"]})
    first = pid_of(room, "bob")
    with pytest.raises(UsageError, match=f"bob is seated already, by process {first}"):
        seating.seat({"bob": ["--filter=cat"]})
    assert pid_of(room, "bob") == first
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # its lock is free a moment before it has ended
    seating.seat({"bob": ["--filter=cat"]})
    assert pid_of(room, "bob") != first


def test_a_member_that_cannot_sit_is_named_with_its_last_words_and_the_others_end(room: Room) -> None:
    with (
        pytest.raises(PeerGone, match=r"^alice ended with 1: no-such-program: no such program on PATH$"),
        Seating(room, patience_s=0, report=print) as seating,
    ):
        seating.seat({"bob": ["--filter=cat"], "alice": ["--filter=no-such-program"]})
    assert room.sitting("bob").state == "free"


def test_a_seat_taken_by_somebody_else_is_said(room: Room, seat: Seat, seating: Seating) -> None:
    seat(ScriptedVoice(), "bob")
    with pytest.raises(PeerGone, match=rf"^bob ended with 1: .*the seat is taken by bob \(pid {os.getpid()}"):
        seating.seat({"bob": ["--filter=cat"]})


def test_a_member_that_was_killed_is_seated_again(room: Room, seating: Seating, reports: list[str]) -> None:
    seating.seat({"bob": ["--filter=cat"]})
    pid = pid_of(room, "bob")
    os.kill(pid, signal.SIGKILL)
    seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert room.sitting("bob").state == "ready"
    assert pid_of(room, "bob") != pid
    assert reports == ["bob was killed by signal 9; seating it again"]


def test_a_member_that_left_is_seated_again(room: Room, seating: Seating, reports: list[str]) -> None:
    seating.seat({"bob": ["--filter=cat"]})
    os.kill(pid_of(room, "bob"), signal.SIGTERM)
    seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert room.sitting("bob").state == "ready"
    assert reports == ["bob ended with 143: it said nothing; seating it again"]


def test_one_that_cannot_be_seated_again_is_named(room: Room, seating: Seating, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec cat\n")
    program.chmod(0o755)
    seating.seat({"bob": [f"--filter={program}"]})
    program.unlink()
    os.kill(pid_of(room, "bob"), signal.SIGKILL)
    with pytest.raises(PeerGone, match=r"^bob ended with 1: .*program: no such program on PATH$"):
        seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))


def test_one_that_loads_too_long_is_not_waited_for_beyond_the_limit(room: Room, seating: Seating) -> None:
    seating.seat({"bob": ["--filter=cat"]})
    os.kill(pid_of(room, "bob"), signal.SIGKILL)
    began_s = time.monotonic()
    with pytest.raises(DeadlineError, match="bob"):
        seating.bring_back("bob", LOST, Deadline.after(0))  # which no member that starts can beat
    assert time.monotonic() - began_s < 1.0


def test_one_that_somebody_else_seated_is_waited_for(room: Room, seat: Seat, reports: list[str]) -> None:
    seat(ScriptedVoice(), "bob").end()

    def sit_again(line: str) -> None:
        reports.append(line)
        seat(ScriptedVoice(), "bob")

    with Seating(room, patience_s=LIMIT_S, report=sit_again) as seating:
        seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert room.sitting("bob").state == "ready"
    assert reports == ["bob is lost; waiting 20 s for it"]


def test_patience_ends_with_what_was_lost(room: Room, seating: Seating) -> None:
    began_s = time.monotonic()
    with pytest.raises(PeerError, match="bob is lost"):
        seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert 0.3 <= time.monotonic() - began_s < 0.3 * 1.05 + 0.05


def test_without_patience_it_fails_at_once_saying_nothing_else(room: Room, reports: list[str]) -> None:
    with (
        pytest.raises(PeerError, match="bob is lost"),
        Seating(room, patience_s=0, report=reports.append) as seating,
    ):
        seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert reports == []


def test_a_stopped_member_is_ended_all_the_same(room: Room) -> None:
    with Seating(room, patience_s=0, report=print) as seating:
        seating.seat({"bob": ["--filter=cat"]})
        pid = pid_of(room, "bob")
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stops")
    assert ends(pid)
