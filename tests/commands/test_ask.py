from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.commands.conftest import LIMIT_S, Commands
from tests.peers import eventually
from tests.server import Scripted, piece
from tests.shell import UNMEASURED


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_answer_goes_to_stdout_and_nothing_else_does(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    asked = run("ask", "bob", "Hello", "you", "-v")
    assert (asked.code, asked.stdout) == (0, "Hello you\n")
    assert asked.stderr.startswith("round trip ")


def test_the_message_comes_from_stdin_where_there_is_no_text_or_a_dash(run: Commands) -> None:
    run.attach("bob", "--exec", "cat")
    assert run("ask", "bob", typed="two\nlines\n").stdout == "two\nlines\n"
    assert run("ask", "bob", "-", typed="dash").stdout == "dash\n"


def test_a_loop_that_reads_lines_asks_every_one_of_them(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    script = f'while read l; do {" ".join(run.command("ask", "bob"))} "$l"; done'
    assert run.run(["sh", "-c", script], typed="a\nb\nc\n").stdout == "a\nb\nc\n"


def test_a_pipeline_of_two_askers_of_one_member_does_not_deadlock(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    ask = " ".join(run.command("ask", "bob"))
    assert run.run(["sh", "-c", f"{ask} x | {ask} | {ask}"]).stdout == "x\n"


def test_each_line_is_a_message_and_the_answers_keep_their_order(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    batch = "".join(f"line {n}\n" for n in range(50))
    assert run("ask", "bob", "--each-line", typed=batch).stdout == batch
    answers = [json.loads(line) for line in run("ask", "bob", "--each-line", "--json", typed=batch).stdout.splitlines()]
    assert [answer["content"] for answer in answers] == batch.splitlines()


def test_json_is_one_exact_object_with_units_in_its_keys(run: Commands) -> None:
    run.attach("bob", "--exec", "printf 'a\\033[31mred'")
    answer = json.loads(run("ask", "bob", "x", "--json").stdout)
    assert (answer["from"], answer["content"], answer["stop"]) == ("bob", "a\x1b[31mred", "end")
    assert {"queued_ms", "first_token_ms", "total_ms", "tokens_per_second"} == set(answer["timing"])


def test_escape_sequences_of_an_answer_never_reach_the_terminal(run: Commands) -> None:
    script = "printf 'a\\033'; sleep 0.05; printf '[31mb\\033]0;ti'; sleep 0.05; printf 'tle\\007c\\033[2Jd'"
    run.attach("bob", "--exec", f'sh -c "{script}"')
    assert run("ask", "bob", "x").stdout == "abcd\n"
    assert run("ask", "bob", "x", "--whole").stdout == "abcd\n"


def test_any_unicode_passes_whole(run: Commands) -> None:
    run.attach("bob", "--exec", "cat")
    text = "Grüße\t🙂\u2028\u0301 ภาษา\n\n  end"
    assert run("ask", "bob", typed=text).stdout == text + "\n"


def test_a_message_of_many_megabytes_passes_and_one_too_large_is_refused_before_it_is_sent(run: Commands) -> None:
    run.attach("bob", "--exec", "wc -c")
    assert run("ask", "bob", typed="x" * (16 * 1024 * 1024 - 200)).stdout.strip() == str(16 * 1024 * 1024 - 199)
    refused = run("ask", "bob", typed="x" * (16 * 1024 * 1024))
    assert (refused.code, refused.stdout) == (1, "")
    assert "at most 16777216 can travel" in refused.stderr
    assert run("ask", "bob", "still there?").code == 0


@pytest.mark.parametrize(
    ("arguments", "typed", "said"),
    [
        ([], "", "name the seat to ask"),
        (["bob"], "", "the message is empty"),
        (["bob", "x", "--each-line"], "", "--each-line reads its messages from stdin"),
        (["b_b", "x"], "", "cannot be a seat"),
        (["carol", "x"], "", "no seat 'carol'; its seats are bob, hub"),
        (["bob", "x", "--timeout", "0"], "", "--timeout"),
        (["bob", "x", "--to-pipe", "p"], "", "--to-pipe and --from-pipe go together"),
        (["bob", "x", "--nonsense"], "", "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_says_what_is_wrong(
    run: Commands, arguments: list[str], typed: str, said: str
) -> None:
    run("setup", "bob")
    asked = run("ask", *arguments, typed=typed)
    assert asked.code == (1 if "carol" in arguments else 2)
    assert asked.stdout == ""
    assert said in asked.stderr
    assert asked.stderr.count("\n") == 1


def test_stdin_that_is_no_text_is_told(run: Commands) -> None:
    run("setup", "bob")
    script = f"printf 'ab\\377' | {' '.join(run.command('ask', 'bob'))}"
    asked = run.run(["sh", "-c", script])
    assert (asked.code, asked.stderr) == (1, "modelpipes ask: stdin is not UTF-8 text: byte 2 cannot be read\n")


def test_a_missing_room_is_told(run: Commands) -> None:
    asked = run("ask", "bob", "x")
    assert asked.code == 1
    assert asked.stderr == (
        f"modelpipes ask: {run.room.path}: no room there; run setup-pipes first, or name the room with -d\n"
    )


def test_a_seat_that_nobody_ever_took_is_waited_for_until_the_deadline(run: Commands) -> None:
    run("setup", "bob")
    asked = run("ask", "bob", "x", "--timeout", "200ms")
    assert asked.code == 124
    assert "bob" in asked.stderr


def test_a_seat_that_is_taken_meanwhile_answers(run: Commands) -> None:
    run("setup", "bob")
    asking = run.start("ask", "bob", "early", "--timeout", "20")
    run.attach("bob", "--filter", "cat")
    stdout, _ = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, stdout) == (0, b"early\n")


def test_a_dead_member_is_known_at_once_and_named(run: Commands) -> None:
    member = run.attach("bob", "--filter", "cat")
    member.kill()
    member.wait(LIMIT_S)
    asked = run("ask", "bob", "x", "--timeout", "none", "--max-seconds", "none")
    assert asked.code == 1
    assert f"bob (pid {member.pid}" in asked.stderr


def test_a_member_that_dies_while_it_answers_is_known_at_once(run: Commands) -> None:
    member = run.attach("bob", "--exec", "sh -c 'echo begun; exec sleep 1000'")
    asking = run.start("ask", "bob", "x", "--timeout", "none")
    assert _first(asking) == b"begun"
    member.kill()
    assert asking.wait(LIMIT_S) == 1


def test_a_stopped_member_ends_in_124(run: Commands) -> None:
    member = run.attach("bob", "--filter", "cat")
    member.send_signal(signal.SIGSTOP)
    try:
        asked = run("ask", "bob", "x", "--timeout", "300ms")
    finally:
        member.send_signal(signal.SIGCONT)
    assert asked.code == 124
    assert "bob showed no life for 0.3 s (--timeout)" in asked.stderr


SLOWLY = "sh -c 'while :; do echo y; sleep 0.01; done'"


def test_max_seconds_bounds_an_answer_that_never_ends(run: Commands) -> None:
    run.attach("bob", "--exec", SLOWLY)
    for _ in range(2):  # the second is asked in vain unless the first one's work was stopped
        asked = run("ask", "bob", "x", "--max-seconds", "2s")
        assert (asked.code, asked.stdout[:4]) == (124, "y\ny\n")
        assert "--max-seconds" in asked.stderr


def test_an_answer_that_never_ends_fails_before_it_fills_the_memory(run: Commands) -> None:
    member = run.attach("bob", "--exec", "yes")
    asked = run("ask", "bob", "x", "--whole")
    assert (asked.code, asked.stdout) == (1, "")
    assert "larger than the 16777216 bytes that can travel" in asked.stderr
    peak_kb = Path(f"/proc/{member.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak_kb) < 200_000


def test_a_closed_stdout_ends_it_quietly_and_stops_the_work(run: Commands) -> None:
    run.attach("bob", "--exec", SLOWLY)
    for _ in range(2):
        script = f"{{ {' '.join(run.command('ask', 'bob', 'x'))}; echo $? >&2; }} | head -1"
        asked = run.run(["sh", "-c", script])
        assert (asked.stdout, asked.stderr) == ("y\n", "0\n")


def _first(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    return os.read(process.stdout.fileno(), 100)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_with_its_own_code(run: Commands, signum: int, code: int) -> None:
    run.attach("bob", "--exec", "sh -c 'echo begun; exec sleep 1000'")
    asking = run.start("ask", "bob", "x", "--timeout", "none")
    assert _first(asking) == b"begun"
    asking.send_signal(signum)
    assert asking.wait(LIMIT_S) == code
    assert asking.stderr and asking.stderr.read() == b""


def test_nohup_keeps_it_alive_and_a_scripts_background_does_not_make_it_deaf_to_ctrl_c(run: Commands) -> None:
    script = f"trap '' HUP INT; exec {' '.join(run.command('ask', 'late', 'x', '--timeout', 'none'))}"
    run("setup", "late")
    process = subprocess.Popen(["sh", "-c", script], env=run.env, cwd=run.cwd, stderr=subprocess.PIPE)
    try:
        eventually(lambda: run.room.is_asked("hub", "late"), "asker")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 130
    finally:
        process.kill()
        process.wait(LIMIT_S)
        assert process.stderr
        process.stderr.close()


def test_a_transcript_gives_the_shell_a_memory(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    talk = run.cwd / "talk.jsonl"
    for word in ("one", "two", "three"):
        assert run("ask", "bob", word, "--transcript", str(talk)).stdout == f"{word}\n"
    header, *turns = lines_of(talk)
    assert header["members"] == ["hub", "bob"]
    assert [(turn["turn"], turn["from"], turn["content"]) for turn in turns] == [
        (n, ("hub", "bob")[n % 2], ("one", "two", "three")[n // 2]) for n in range(6)
    ]


def test_each_line_ends_at_a_newline_alone(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    batch = "a\x0cb\nc\u2028d\n\ne\r\n"
    answers = [
        json.loads(line) for line in run("ask", "bob", "--each-line", "--json", typed=batch).stdout.split("\n") if line
    ]
    assert [answer["content"] for answer in answers] == ["a\x0cb", "c\u2028d", "e"]


def test_who_asks_is_who_was_named_also_where_the_shell_names_the_hubs_pipes(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    run("setup", "bob", "--hub", "carol")
    pipes = {"PIPE_TO_BOB": run.room.pipe("hub", "bob"), "PIPE_FROM_BOB": run.room.pipe("bob", "hub")}
    assert json.loads(run("ask", "bob", "--from", "carol", "--json", "x", **pipes).stdout)["to"] == "carol"


def test_max_seconds_bounds_the_reading_of_stdin_as_well(run: Commands) -> None:
    run("setup", "bob")
    asking = run.start("ask", "bob", "--max-seconds", "200ms", stdin=subprocess.PIPE)
    assert asking.wait(LIMIT_S) == 124
    assert asking.stderr and b"stdin did not end" in asking.stderr.read()


def test_pipes_can_be_named_directly(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    to, back = run.room.pipe("hub", "bob"), run.room.pipe("bob", "hub")
    assert run("ask", "hi", "--to-pipe", to, "--from-pipe", back).stdout == "hi\n"
    run.env.pop("PIPE_DIR")
    assert run("ask", "bob", "hello", PIPE_TO_BOB=to, PIPE_FROM_BOB=back).stdout == "hello\n"


def test_a_failing_program_is_a_failure_that_says_why(run: Commands) -> None:
    run.attach("bob", "--exec", "sh -c 'echo oops >&2; exit 3'")
    asked = run("ask", "bob", "x")
    assert (asked.code, asked.stderr) == (1, "modelpipes ask: bob: sh ended with 3: oops\n")


def test_one_failure_of_a_batch_does_not_end_the_others(run: Commands) -> None:
    run.attach("bob", "--exec", "sh -c 'read l; test $l != b && echo $l'")
    asked = run("ask", "bob", "--each-line", "--json", typed="a\nb\nc\n")
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert asked.code == 1
    assert [answer.get("content") or answer["reason"] for answer in answers] == ["a", "voice", "c"]


def test_thoughts_go_to_stderr_and_only_if_asked_for(run: Commands) -> None:
    from tests.models import THINKING_TEMPLATE, scripted_model

    model = scripted_model(run.cwd / "thinker.gguf", ["hm", "</think>", "Answer"], template=THINKING_TEMPLATE)
    run.attach("bob", "--model", str(model), "--engine-arg=--threads", "--engine-arg=1")
    silent = run("ask", "bob", "x")
    assert (silent.stdout, silent.stderr) == ("Answer\n", "")
    shown = run("ask", "bob", "x", "--show-thinking")
    assert (shown.stdout, shown.stderr) == ("Answer\n", "hm\n")


def test_words_that_turn_out_to_be_thoughts_end_with_their_line_and_the_answer_follows(run: Commands) -> None:
    server = Scripted()
    server.say(
        piece(content="The user asks."), piece(content="\n</think>\n\nBlue"), piece("stop", content="."), b"[DONE]"
    )
    server.step = threading.Semaphore(1)
    try:
        run.attach("bob", "--server", server.url)
        asked = run.start("ask", "bob", "x")
        assert asked.stdout
        began = asked.stdout.read(3)
        server.step.release(9)
        assert began + asked.stdout.read() == b"The user asks.\nBlue.\n"
        server.step = None
        again = run("ask", "bob", "x", "--show-thinking")
        assert (again.stdout, again.stderr) == ("Blue.\n", "The user asks.\n\n")
        assert json.loads(run("ask", "bob", "x", "--json").stdout)["thinking"] == "The user asks.\n"
    finally:
        server.close()


def test_a_full_disk_under_the_transcript_is_one_clear_line_and_loses_no_turn(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    talk = run.cwd / "talk.jsonl"
    assert run("ask", "bob", "first", "--transcript", str(talk)).code == 0
    before = talk.read_bytes()
    limit = f"ulimit -f 1; exec {' '.join(run.command('ask', 'bob', '-', '--transcript', str(talk)))}"
    asked = run.run(["bash", "-c", limit], typed="x" * 5000, env=UNMEASURED)
    assert asked.code == 1
    assert asked.stderr.count("\n") == 1 and "cannot write" in asked.stderr
    assert talk.read_bytes() == before
    assert os.path.getsize(talk) < 1024


def test_each_exchange_is_two_lines_of_the_log_without_the_words(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    assert run("ask", "bob", "--each-line", "--log", "log", typed="first\nsecond\n").code == 0
    assert run("ask", "bob", "third", LOG_FILE="log", LOG_CONTENT="1").code == 0
    lines = (run.cwd / "log").read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [["hub", "asked"], ["hub", "heard"]] * 3
    assert " to=bob bytes=5" in lines[0] and " by=bob stop=end bytes=5 ms=" in lines[1]
    assert [line.endswith('content="third"') for line in lines] == [False] * 4 + [True] * 2


def test_an_exchange_that_fails_or_is_broken_off_is_in_the_log_with_the_reason(run: Commands) -> None:
    run.attach("bob", "--exec", "false")
    assert run("ask", "bob", "x", "--log", "log").code == 1
    assert run("ask", "alice", "x", "--log", "log").code == 1  # nobody was asked
    _, failed = (run.cwd / "log").read_text().splitlines()
    assert " hub failed " in failed and 'why="bob: false ended with 1: it said nothing"' in failed


def test_a_log_that_cannot_be_written_is_said_before_anything_is_asked(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    asked = run("ask", "bob", "x", "--log", "none/log")
    assert (asked.code, asked.stdout) == (1, "")
    assert asked.stderr == "modelpipes ask: none/log: the log cannot be written: no such file or directory\n"


def test_a_disk_that_fills_up_costs_the_log_and_not_the_answer(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    asked = run("ask", "bob", "Hello", "--log", "/dev/full")
    assert (asked.code, asked.stdout) == (0, "Hello\n")
    assert asked.stderr.splitlines() == [
        "/dev/full: the log has gaps from here on: no space left on device; all else goes on"
    ]
