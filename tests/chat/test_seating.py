from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from modelpipes.chat.seating import Seating
from modelpipes.chat.voices.loading import Arriving
from modelpipes.child import Child
from modelpipes.errors import DeadlineError, PeerError, PeerGone, UsageError
from modelpipes.pipe.room import Loading, Room
from modelpipes.values.deadline import Deadline
from tests.chat.conftest import ScriptedVoice, Seat, ask
from tests.commands.conftest import QUICK_ENGINE
from tests.peers import LIMIT_S, eventually
from tests.shell import TINY_CHAT, HeldEngine

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
    eventually(lambda: room.sitting("bob").state != "ready", "end of bob")
    seating.seat({"bob": ["--filter=cat"]})
    assert pid_of(room, "bob") != first


def test_a_member_that_has_left_its_seat_may_take_its_time_to_end(
    room: Room, seating: Seating, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A seat is free a moment before who sat there can be waited for: it was refused as seated already.
    seating.seat({"bob": ["--filter=cat"]})
    first = pid_of(room, "bob")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: room.sitting("bob").state != "ready", "end of bob")
    look, moment = Child.exit_code, iter([None])
    monkeypatch.setattr(Child, "exit_code", lambda child: next(moment, look(child)))
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
    with pytest.raises(DeadlineError, match="bob"):
        seating.bring_back("bob", LOST, Deadline.after(0))  # which no member that starts can beat


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeldEngine:
    engine = HeldEngine(tmp_path)
    monkeypatch.setenv("LLAMA_SERVER", str(engine.engine))
    return engine


MODEL = ["--model=tiny-chat", "--engine=llama-server", "--no-fit-check", *QUICK_ENGINE]


def test_while_a_model_loads_it_is_shown_which_and_how_far_it_is(room: Room, held: HeldEngine) -> None:
    shown: list[Arriving | None] = []
    looked_at: list[Loading | None] = []

    def show(arriving: Arriving | None) -> None:
        shown.append(arriving)
        if arriving and arriving.loading and not looked_at:  # its engine may go on
            looked_at.append(room.sitting(arriving.seat).loading)
            held.let_load()

    with Seating(room, show=show) as seating:
        seating.seat({"alice": ["--filter=cat"], "bob": MODEL})
        assert room.sitting("bob").state == "ready"
        assert room.sitting("bob").loading is None
    assert shown[-1] is None and shown.count(None) == 2
    told = next(each for each in shown if each and each.loading)
    assert (told.seat, told.number, told.count) == ("bob", 2, 2)
    assert told.loading and told.loading.done_bytes < told.loading.total_bytes == TINY_CHAT.stat().st_size
    assert looked_at == [told.loading]
    assert str(replace(told, elapsed_s=12.3)) == "loading bob (2 of 2): 0.0 of 1.6 MiB, 12 s"


def test_a_member_that_fails_while_it_loads_is_shown_no_more(room: Room) -> None:
    shown: list[Arriving | None] = []
    with pytest.raises(PeerGone), Seating(room, show=shown.append) as seating:
        seating.seat({"alice": ["--filter=no-such-program"]})
    assert shown[-1] is None


@pytest.mark.parametrize(
    ("arriving", "line"),
    [
        (
            Arriving("alice", 1, 2, 12.2, Loading(3_328_600_000, 5_046_586_573)),
            "loading alice (1 of 2): 3.1 of 4.7 GiB, 12 s",
        ),
        (Arriving("alice", 1, 1, 1.0, Loading(0, 900)), "loading alice: 0 of 900 B, 1 s"),
        (Arriving("alice", 0, 1, 83.0), "loading alice, 1 min 23 s"),
        (Arriving("alice", 2, 3, 59.6), "loading alice (2 of 3), 1 min 0 s"),
    ],
)
def test_how_far_a_member_is_in_words(arriving: Arriving, line: str) -> None:
    assert str(arriving) == line


def test_one_that_somebody_else_seated_is_waited_for(room: Room, seat: Seat, reports: list[str]) -> None:
    seat(ScriptedVoice(), "bob").end()

    def sit_again(line: str) -> None:
        reports.append(line)
        seat(ScriptedVoice(), "bob")

    with Seating(room, patience_s=LIMIT_S, report=sit_again) as seating:
        seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert room.sitting("bob").state == "ready"
    assert reports == [f"bob is lost; waiting {LIMIT_S:g} s for it"]


def test_patience_ends_with_what_was_lost(room: Room, seating: Seating) -> None:
    began_s = time.monotonic()
    with pytest.raises(PeerError, match="bob is lost"):
        seating.bring_back("bob", LOST, Deadline.after(LIMIT_S))
    assert time.monotonic() - began_s >= 0.3


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
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stops")
    assert ends(pid)
