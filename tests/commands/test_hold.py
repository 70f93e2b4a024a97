"""modelpipes hold: a seat for a program that opens the FIFOs itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, Commands
from tests.peers import eventually

# Answers each message with its words and its number; opens its pipe as a shell does.
MEMBER = """
import json, os, sys
print("reads", flush=True)
with open(os.environ["PIPE_FROM_HUB"]) as pipe:
    for number, line in enumerate(line for line in pipe if line.startswith("{")):
        say = json.loads(line)
        if say["content"] == "leave":
            sys.exit(7)
        reply = {"type": "reply", "id": str(number), "reply_to": say["id"], "from": "bob", "to": "hub", "stop": "end",
                 "content": f"{number} {say['content']}"}
        end = os.open(os.environ["PIPE_TO_HUB"], os.O_RDWR)
        os.write(end, json.dumps(reply).encode() + b"\\n")
        os.close(end)
print("its pipe has ended", file=sys.stderr)
"""


def hold(run: Commands, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    assert run("setup", "bob").code == 0
    return run.start("hold", "bob", "--", *command, stdin=stdin)


@pytest.fixture
def member(run: Commands) -> subprocess.Popen[bytes]:
    process = hold(run, sys.executable, "-c", MEMBER)
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    return process


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    stderr = process.communicate(timeout=LIMIT_S)[1]
    return process.returncode, stderr.decode()


def test_its_seat_is_known_to_all_commands_and_answers_one_asker_after_the_other(
    run: Commands, member: subprocess.Popen[bytes]
) -> None:
    (seat,) = json.loads(run("seats", "bob", "--json").stdout)
    assert (seat["state"], seat["pid"]) == ("ready", member.pid)
    assert seat["voice"].startswith(f"hold {sys.executable} -c ")
    # Without us the pipe would end for the program with each of them.
    assert [run("ask", "bob", word).stdout for word in ("a", "b", "c")] == ["0 a\n", "1 b\n", "2 c\n"]
    second = run("attach", "bob", "--filter", "cat")
    assert (second.code, "the seat is taken by bob (pid" in second.stderr) == (1, True)


def test_it_is_loading_until_the_program_reads(run: Commands) -> None:
    ours, theirs = os.pipe()
    process = hold(run, "sh", "-c", 'read go; read -r line <"$PIPE_FROM_HUB"', stdin=ours)
    os.close(ours)
    eventually(lambda: run.room.sitting("bob").pid == process.pid, "the seat")
    waited = run("seats", "--wait", "bob", "--timeout", "50ms", "--max-seconds", "100ms")
    assert (waited.code, run.room.sitting("bob").state) == (124, "loading")
    os.write(theirs, b"go\n")
    os.close(theirs)
    assert run("seats", "--wait", "bob").code == 0


def test_a_program_that_opens_its_pipe_for_each_line_hears_all_of_them(run: Commands) -> None:
    script = 'while read -r line <"$PIPE_FROM_HUB"; do [ -z "$line" ] || echo "$line"; [ "$line" != 3 ] || exit 0; done'
    process = hold(run, "bash", "-c", script)
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    with open(run.room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"1\n2\n")
    with open(run.room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"3\n")
    stdout, _ = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout) == (0, b"1\n2\n3\n")
    assert run.room.sitting("bob").state == "free"


def test_the_program_finds_its_seat_its_room_and_the_pipes_of_every_neighbour(run: Commands) -> None:
    assert run("setup", "alice.b", "bob", "--mesh").code == 0
    told = run("hold", "bob", "--", "env")
    variables = dict(line.split("=", 1) for line in told.lines)
    assert (told.code, variables["MODELPIPES_SEAT"], variables["PIPE_DIR"]) == (0, "bob", run.room.path)
    for name, seat in {"HUB": "hub", "ALICE_B": "alice.b"}.items():
        assert variables[f"PIPE_TO_{name}"] == run.room.pipe("bob", seat)
        assert variables[f"PIPE_FROM_{name}"] == run.room.pipe(seat, "bob")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_it_ends_with_the_exit_code_of_its_program(run: Commands, script: str, code: int) -> None:
    assert end_of(hold(run, "sh", "-c", script)) == (code, "")
    assert run.room.sitting("bob").state == ("died" if code else "free")


def test_who_asks_learns_at_once_that_the_program_died(run: Commands, member: subprocess.Popen[bytes]) -> None:
    asked = run("ask", "bob", "leave")
    assert (asked.code, "seat it again" in asked.stderr) == (1, True), asked.stderr
    assert end_of(member) == (7, "")


def test_the_streams_of_the_program_are_ours(run: Commands) -> None:
    assert run("setup", "bob").code == 0
    held = run("hold", "bob", "--", "sh", "-c", "cat; echo aside >&2", typed="words\n")
    assert (held.code, held.stdout, held.stderr) == (0, "words\n", "aside\n")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_all_that_it_started(run: Commands, signum: int, code: int) -> None:
    process = hold(run, "sh", "-c", 'sleep 100 & cat "$PIPE_FROM_HUB"')
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    process.send_signal(signum)
    assert end_of(process) == (code, "")
    assert run.left_processes() == []
    assert run.room.sitting("bob").state == "free"


def test_its_own_death_ends_the_program_too(run: Commands, member: subprocess.Popen[bytes]) -> None:
    member.kill()
    member.wait(LIMIT_S)
    assert run.left_processes() == []
    assert run.room.sitting("bob").state == "died"


def test_a_seat_that_is_removed_ends_it_quietly(run: Commands, member: subprocess.Popen[bytes]) -> None:
    assert run("cleanup", "-f").code == 0
    assert end_of(member)[0] == 0
    assert not Path(run.room.path).exists()


def test_pipes_that_are_replaced_are_held_again(run: Commands) -> None:
    process = hold(run, "sh", "-c", 'while :; do read -r line <"$PIPE_FROM_HUB" && echo "$line"; done')
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    os.unlink(run.room.pipe("hub", "bob"))
    assert run("setup", "bob").code == 0
    with open(run.room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"again\n")
    assert process.stdout and process.stdout.readline() == b"again\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'SEAT'"),
        (["bob"], 2, "Missing argument 'COMMAND...'"),
        (["b_b", "--", "cat"], 2, "'b_b' cannot be a seat"),
        (["carol", "--", "cat"], 1, "no seat 'carol'; its seats are bob, hub"),
        (["bob", "--", "no-such-program"], 1, "there is no program 'no-such-program'"),
        (["bob", "--", "/etc/passwd"], 1, "'/etc/passwd' may not be executed"),
        (["bob", "--", ""], 1, "there is no program ''"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_the_seat_free(
    run: Commands, arguments: list[str], code: int, said: str
) -> None:
    assert run("setup", "bob").code == 0
    held = run("hold", *arguments)
    assert (held.code, held.stdout, held.stderr.count("\n")) == (code, "", 1)
    assert said in held.stderr
    assert run.room.sitting("bob").state == "free"


def test_seats_whose_pipes_would_share_a_variable_are_told(run: Commands) -> None:
    assert run("setup", "a-b", "a.b", "bob", "--mesh").code == 0
    held = run("hold", "bob", "--", "cat")
    assert held.code == 2
    assert held.stderr == "modelpipes hold: a-b and a.b would both be PIPE_TO_A_B; rename one\n"
