"""Each rival carries what it is given: its two ends compare what comes with what was sent."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from modelpipes.errors import DeadlineError, ProgramError
from modelpipes.pipe.framing import encode
from modelpipes.values.deadline import Deadline
from tests.bench import transport
from tests.bench.record import Record
from tests.bench.rivals import Task, content, piece, question
from tests.bench.rivals.carrier import Carrier
from tests.bench.talker import Talker
from tests.drill.processes import descendants, living
from tests.peers import eventually, open_descriptors

TASKS = [
    Task.make("round_trip", 64, 20),
    Task.make("one_way", 64, 2000),
    Task.make("one_way_single", 64, 2000),
    Task.make("round_trip", 1 << 20, 3),
    Task.make("one_way", 4096, 200),
    Task.make("round_trip", 65536, 5),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    record = Record(rounds=1, is_quick=True, cpu=-1)
    return transport.find_programs(record, str(tmp_path_factory.mktemp("programs")))


@pytest.mark.parametrize("rival", transport.ROWS)
def test_what_a_rival_carries_arrives(rival: str, programs: dict[str, list[str]], tmp_path: Path) -> None:
    if rival not in programs:
        pytest.skip("it needs what is not here")
    before, strangers = open_descriptors(), descendants(os.getpid())
    with transport.pairs({rival: programs[rival]}, -1, str(tmp_path)) as talkers:
        for task in TASKS:
            if not transport.can(rival, task.kind):
                continue
            if rival == "processes":
                task = task._replace(messages=2)
            taken_ns = transport.ask(talkers[rival], task)
            assert len(taken_ns) == (task.messages if task.kind == "round_trip" else 1)
            assert all(taken > 0 for taken in taken_ns)
        family = descendants(os.getpid()) - strangers
    assert len(family) >= 2
    eventually(lambda: not living(family), "end of the family")
    assert open_descriptors() == before


def test_both_processes_are_pinned_to_the_core_that_is_named(programs: dict[str, list[str]], tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    there = {rival: program for rival, program in programs.items() if rival in ("blocking", "ping")}
    with transport.pairs(there, cpu, str(tmp_path)) as talkers:
        for talker in talkers.values():
            transport.ask(talker, Task.make("round_trip", 64, 1))
            pair = {talker.pid, *(one.pid for one in descendants(talker.pid))}
            assert len(pair) >= 2
            # But for the process that multiprocessing starts to keep its books.
            assert sum(os.sched_getaffinity(pid) == {cpu} for pid in pair) >= 2


@pytest.mark.parametrize("kind", ["round_trip", "one_way"])
@pytest.mark.parametrize("size", [1, 64, 4096, 1 << 20])
def test_a_task_is_of_its_size_and_travels_as_a_line(kind: str, size: int) -> None:
    task = Task.make(kind, size, 7)
    assert Task.parse(task.line()) == task
    assert len(content(size)) == size
    make = question if kind == "round_trip" else piece
    assert task.line_bytes == len(encode(make(12345, content(size))))  # the same for every number


class _Loopback(Carrier):
    """Both ends in one, which spoils what it carries."""

    def __init__(self, spoil: Any) -> None:
        self.spoil = spoil
        self.carried: list[Any] = []

    def send(self, message: Any) -> None:
        self.carried.append(message)

    def receive(self) -> Any:
        return self.spoil(self.answer_to(self.carried.pop(0)))


def test_an_answer_with_another_content_is_noticed() -> None:
    from msgspec.structs import replace

    task = Task.make("round_trip", 64, 3)
    assert len(_Loopback(lambda pong: pong).ask(task)) == 3
    for change in ({"content": "other"}, {"reply_to": "0"}):
        with pytest.raises(AssertionError, match="is no answer"):
            _Loopback(lambda pong, change=change: replace(pong, **change)).ask(task)


def test_without_a_compiler_there_is_no_c_and_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    record = Record(rounds=1, is_quick=True, cpu=-1)
    programs = transport.find_programs(record, str(tmp_path))
    assert {"blocking", "poll", "processes"}.isdisjoint(programs)
    whys = {skipped.what: skipped.why for skipped in record.skipped}
    assert "no C compiler" in whys[transport.C_BLOCKING]
    assert "neither perl nor sh" in whys["a process a message"]


class TestTalker:
    def test_who_dies_is_named_with_its_last_words(self) -> None:
        with (
            Talker([sys.executable, "-c", "import sys; sys.exit('no more')"], "the quitter") as talker,
            pytest.raises(ProgramError, match=r"the quitter ended: no more"),
        ):
            talker.hear(Deadline.after(20))

    def test_who_says_nothing_is_waited_for_no_longer_than_the_deadline(self) -> None:
        with Talker(["cat"], "cat") as talker:
            talker.tell("one")
            assert talker.hear(Deadline.after(20)) == "one"
            with pytest.raises(DeadlineError, match="cat"):
                talker.hear(Deadline.after(0.01))

    def test_lines_that_come_together_are_heard_one_by_one(self) -> None:
        with ExitStack() as stack:
            talker = stack.enter_context(Talker(["printf", r"a\nbb\n\nc\n"], "printf"))
            assert [talker.hear(Deadline.after(20)) for _ in range(4)] == ["a", "bb", "", "c"]
