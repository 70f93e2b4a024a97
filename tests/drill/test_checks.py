"""The drill sees what it is there to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.values.deadline import Deadline
from tests.drill import ptrace
from tests.drill.checks import Book, Violation
from tests.drill.processes import descendants, living
from tests.drill.ptrace import Tracer
from tests.peers import LIMIT_S, eventually

HEADER = {"type": "conversation", "version": 1, "id": "1", "members": ["alice", "bob"]}
CALLS = 40
# Asks for its parent's pid so often, then writes a file and asks once more.
PROGRAM = (
    f"import os, sys\nos.write(1, b'.')\nos.read(0, 1)\nfor _ in range({CALLS}): os.getppid()\n"
    "os.close(os.open(sys.argv[1], os.O_CREAT))\nos.getppid()\nos._exit(7)"
)


@pytest.fixture
def tracing() -> None:
    if reason := ptrace.why_not():
        pytest.skip(f"processes cannot be traced here: {reason}")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Waits for a byte before it begins."""
    argv = [sys.executable, "-S", "-c", PROGRAM, str(tmp_path / "file")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.read(1)
        yield process
        process.kill()


def begin(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin
    program.stdin.write(b"1")
    program.stdin.flush()


def end(program: subprocess.Popen[bytes], tracer: Tracer) -> int:
    assert tracer.wait(Deadline.after(LIMIT_S))
    assert tracer.status is not None
    program.returncode = os.waitstatus_to_exitcode(tracer.status)
    return program.returncode


@pytest.mark.usefixtures("tracing")
def test_every_system_call_is_counted_and_the_exit_code_is_the_programs_own(program: subprocess.Popen[bytes]) -> None:
    with Tracer(program.pid) as tracer:
        begin(program)
        assert end(program, tracer) == 7
    assert CALLS < tracer.count < CALLS + 20


@pytest.mark.usefixtures("tracing")
def test_a_process_is_killed_before_the_call_that_was_named(program: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with Tracer(program.pid, kill_at=1, begin_at_path=str(tmp_path)) as tracer:
        begin(program)
        assert end(program, tracer) == -9
    assert tracer.has_killed and not (tmp_path / "file").exists()


@pytest.mark.usefixtures("tracing")
def test_a_process_is_killed_after_the_call_before(program: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with Tracer(program.pid, kill_at=2, begin_at_path=str(tmp_path)) as tracer:
        begin(program)
        assert end(program, tracer) == -9
    assert (tmp_path / "file").exists()


@pytest.mark.usefixtures("tracing")
def test_a_process_that_was_let_go_runs_on(program: subprocess.Popen[bytes]) -> None:
    for _ in range(3):
        with Tracer(program.pid):
            pass
    begin(program)
    assert program.wait(LIMIT_S) == 7


def test_a_grandchild_that_outlives_its_parent_is_seen() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & read line"], stdin=subprocess.PIPE) as process:
        eventually(lambda: len(descendants(process.pid)) == 1, "the child")
        family = descendants(process.pid)
        process.kill()
        process.wait(LIMIT_S)
    assert living(family) == family
    os.kill(next(iter(family)).pid, signal.SIGKILL)
    eventually(lambda: not living(family), "end of the family")


def book(path: Path, *lines: object) -> Book:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Book(str(path), lambda turn: ("hub", "alice", "bob")[0 if turn == 0 else 2 - turn % 2])
    found.read()
    return found


TURNS = (
    {"turn": 0, "from": "hub", "content": "Begin now."},
    {"turn": 1, "from": "alice", "content": "One two."},
    {"turn": 2, "from": "bob", "content": "Three."},
)


def test_a_transcript_with_a_turn_twice_or_missing_or_changed_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    with pytest.raises(Violation, match="turn 1 stands where turn 2 should"):
        book(path, HEADER, *TURNS[:2], TURNS[1])
    with pytest.raises(Violation, match="turn 2 stands where turn 1 should"):
        book(path, HEADER, TURNS[0], TURNS[2])
    with pytest.raises(Violation, match="is of bob, not of alice"):
        book(path, HEADER, TURNS[0], TURNS[2] | {"turn": 1})
    whole = book(path, HEADER, *TURNS)
    path.write_text(path.read_text().replace("One", "Eno"))
    with pytest.raises(Violation, match="has changed"):
        whole.read()


def test_a_line_that_is_still_being_written_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    found = book(path, HEADER, *TURNS[:2])
    with path.open("a") as file:
        file.write('{"turn":2,"fr')
    found.read()
    assert len(found.turns) == 2


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "Begin now."), ("assistant", "One two."), ("user", "Three. Three.")],
        [("user", "Begin now."), ("assistant", "One two.")],
        [("user", "Begin now."), ("assistant", "One"), ("user", "Three.")],
        [("user", "Begin now. One two."), ("user", "Three.")],
        [("user", "Three."), ("assistant", "One two."), ("user", "Begin now.")],
        [("user", "Begin now."), ("assistant", "One two."), ("user", "Three."), ("user", "Four.")],
    ],
)
def test_a_prompt_that_is_not_every_turn_once_is_seen(tmp_path: Path, messages: list[tuple[str, str]]) -> None:
    found = book(tmp_path / "talk.jsonl", HEADER, *TURNS)
    with pytest.raises(Violation, match="is not the turns so far"):
        found.check_prompt("alice", [{"role": role, "content": content} for role, content in messages])


def test_a_prompt_of_every_turn_tells_which_turn_it_asks_for(tmp_path: Path) -> None:
    found = book(tmp_path / "talk.jsonl", HEADER, *TURNS)
    said = [("user", "Begin now."), ("assistant", "One two."), ("user", "Three.")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert found.check_prompt("alice", messages) == 3
    assert found.check_prompt("bob", [{"role": "user", "content": "Begin now.\nOne two."}]) == 2
