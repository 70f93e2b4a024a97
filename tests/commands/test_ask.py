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
    assert [answer.get("content") for answer in answers] == ["a\x0cb", "c\u2028d", None, "e"]


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
    assert [(answer["line"], answer["question"]) for answer in answers] == [(1, "a"), (2, "b"), (3, "c")]


# -- line by line


def test_each_line_is_asked_as_it_comes(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    asking = run.start("ask", "bob", "--each-line", stdin=subprocess.PIPE)
    assert asking.stdin and asking.stdout
    for word in (b"hi\n", b"yo\n"):
        asking.stdin.write(word)
        asking.stdin.flush()
        assert asking.stdout.readline() == word
        eventually(lambda: not run.room.is_asked("hub", "bob"), "the seat is free for others between two lines")
    asking.stdin.close()
    assert asking.wait(LIMIT_S) == 0


def test_a_seat_may_be_an_asker_of_another_seat(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    run("setup", "far")
    line = " ".join(run.command("ask", "bob", "--each-line"))
    run.attach("far", "--filter", line, PIPE_DIR=run.room.path)
    assert run("ask", "far", "one").stdout == "one\n"
    assert run("ask", "far", "two").stdout == "two\n"


@pytest.mark.parametrize("parallel", [(), ("--parallel", "4")])
def test_input_and_output_stay_aligned(run: Commands, parallel: tuple[str, ...]) -> None:
    script = "read l; case $l in bad) echo no >&2; exit 3;; two) echo a; echo b;; *) echo $l;; esac"
    run.attach("bob", "--exec", f"sh -c '{script}'", "--parallel", "4")
    asked = run("ask", "bob", "--each-line", *parallel, typed="one\n\nbad\ntwo\n \nlast")
    assert asked.stdout.split("\n") == ["one", "", "", "a b", "", "last", ""]
    assert (asked.code, asked.stderr) == (1, "ask-model: line 3: bob: sh ended with 3: no\n")


def test_the_lines_of_a_member_that_left_are_told_of_and_no_more_are_asked(run: Commands) -> None:
    run.attach("bob", "--filter", "cat", "--once")
    asked = run("ask", "bob", "--each-line", "--json", "--timeout", "1", typed="a\nb\nc\n")
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert asked.code in (1, 124)
    assert [answer.get("content") or answer.get("reason") for answer in answers] == ["a", "leaving", "leaving"]


GATE = "read l; echo $$ > here.$l; while ! test -e go.$l; do sleep 0.01; done; echo $l"


def test_so_many_are_asked_at_a_time_and_answers_keep_their_order(run: Commands) -> None:
    run.attach("bob", "--exec", f"sh -c '{GATE}'", "--parallel", "2")
    asking = run.start("ask", "bob", "--each-line", "--parallel", "3", stdin=subprocess.PIPE)
    assert asking.stdin and asking.stdout
    asking.stdin.write(b"a\nb\nc\n")
    asking.stdin.flush()
    eventually(lambda: (run.cwd / "here.a").exists() and (run.cwd / "here.b").exists(), "two at once")
    assert not (run.cwd / "here.c").exists()
    for name in ("b", "c", "a"):
        eventually((run.cwd / f"here.{name}").exists, name)
        (run.cwd / f"go.{name}").touch()
    asking.stdin.close()
    assert asking.stdout.read() == b"a\nb\nc\n"
    assert asking.wait(LIMIT_S) == 0


def test_answers_may_be_printed_as_they_come(run: Commands) -> None:
    run.attach("bob", "--exec", f"sh -c '{GATE}'", "--parallel", "2")
    asking = run.start(
        "ask", "bob", "--each-line", "--parallel", "2", "--as-they-come", "--json", stdin=subprocess.PIPE
    )
    assert asking.stdin and asking.stdout
    asking.stdin.write(b"a\nb\n")
    asking.stdin.flush()
    for name in ("b", "a"):
        (run.cwd / f"go.{name}").touch()
        answer = json.loads(asking.stdout.readline())
        assert (answer["content"], answer["line"]) == (name, "ab".index(name) + 1)
    asking.stdin.close()
    assert asking.wait(LIMIT_S) == 0


def test_lines_that_come_while_others_are_answered_join_them(run: Commands) -> None:
    run.attach("bob", "--exec", f"sh -c '{GATE}'", "--parallel", "2")
    asking = run.start("ask", "bob", "--each-line", "--parallel", "2", stdin=subprocess.PIPE)
    assert asking.stdin and asking.stdout
    for name in ("a", "b"):
        asking.stdin.write(f"{name}\n".encode())
        asking.stdin.flush()
        eventually((run.cwd / f"here.{name}").exists, name)
    for name in ("a", "b"):
        (run.cwd / f"go.{name}").touch()
    asking.stdin.close()
    assert asking.stdout.read() == b"a\nb\n"


def test_a_signal_amid_many_lines_stops_them_all(run: Commands) -> None:
    run.attach("bob", "--exec", f"sh -c '{GATE}'", "--parallel", "2")
    asking = run.start("ask", "bob", "--each-line", "--parallel", "2", stdin=subprocess.PIPE)
    assert asking.stdin
    asking.stdin.write(b"a\nb\n")
    asking.stdin.flush()
    eventually(lambda: (run.cwd / "here.a").exists() and (run.cwd / "here.b").exists(), "two at once")
    asking.terminate()
    assert asking.wait(LIMIT_S) == 143
    eventually(lambda: run.room.sitting("bob").state == "ready", "bob is free again")


def test_many_lines_are_a_conversation_with_a_transcript(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    talk = run.cwd / "talk.jsonl"
    assert run("ask", "bob", "--each-line", "--transcript", str(talk), typed="a\n\nb\n").stdout == "a\n\nb\n"
    assert [turn["content"] for turn in lines_of(talk)[1:]] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["x", "--parallel", "2"], "--parallel goes with --each-line"),
        (["x", "--as-they-come"], "--as-they-come goes with --each-line"),
        (["--each-line", "--parallel", "2", "--transcript", "t.jsonl"], "leave out --transcript"),
        (["--each-line", "--parallel", "0"], "--parallel"),
        (["x", "--schema", "none.json"], "none.json: cannot be read"),
        (["x", "--schema", "list.json"], "a JSON schema is an object"),
        (["x", "--schema", "text.json"], "is no JSON"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Commands, options: list[str], said: str) -> None:
    run("setup", "bob")
    (run.cwd / "list.json").write_text("[1]")
    (run.cwd / "text.json").write_text("{")
    refused = run("ask", "bob", *options)
    assert refused.code == 2
    assert said in refused.stderr


UNFIT = r"printf 'a\n\377\nb'"


@pytest.mark.parametrize("options", ["", "--parallel 3", "--transcript talk.jsonl"])
def test_a_line_that_is_no_text_leaves_a_line_and_its_neighbours_are_asked(run: Commands, options: str) -> None:
    run.attach("bob", "--filter", "cat")
    asked = run.run(["sh", "-c", f"{UNFIT} | {' '.join(run.command('ask', 'bob', '--each-line'))} {options}"])
    assert (asked.code, asked.stdout) == (1, "a\n\nb\n")
    assert asked.stderr == "ask-model: line 2: it is not UTF-8 text: its byte 0 cannot be read\n"


def test_a_line_that_grows_too_large_as_a_message_leaves_a_line_in_a_conversation_too(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    batch = f"a\n{chr(92) * 9_000_000}\nb\n"
    asked = run("ask", "bob", "--each-line", "--transcript", "talk.jsonl", typed=batch)
    assert (asked.code, asked.stdout) == (1, "a\n\nb\n")
    assert "line 2: the message is 18000" in asked.stderr
    assert [turn["content"] for turn in lines_of(run.cwd / "talk.jsonl")[1:]] == ["a", "a", "b", "b"]


def test_lines_that_a_deadline_leaves_behind_are_told_as_silence(run: Commands) -> None:
    member = run.attach("bob", "--filter", "cat")
    member.send_signal(signal.SIGSTOP)
    try:
        asked = run("ask", "bob", "--each-line", "--json", "--timeout", "300ms", typed="a\nb\n")
    finally:
        member.send_signal(signal.SIGCONT)
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert asked.code == 124
    assert [(answer["line"], answer["reason"]) for answer in answers] == [(1, "silent"), (2, "silent")]


def test_two_askers_of_more_than_a_member_lets_wait_both_have_all_their_answers(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    run("setup", "bob", "--hub", "carol")
    batch = "".join(f"{n}\n" for n in range(300))
    script = " & ".join(
        f"{' '.join(run.command('ask', 'bob', '--from', who, '--each-line', '--parallel', '64'))} <batch >{who}"
        for who in ("hub", "carol")
    )
    (run.cwd / "batch").write_text(batch)
    assert run.run(["sh", "-c", f"{script} & wait"]).stderr == ""
    assert [(run.cwd / who).read_text() for who in ("hub", "carol")] == [batch, batch]


@pytest.mark.parametrize("parallel", [(), ("--parallel", "8")])
def test_a_closed_stdout_ends_a_batch_quietly(run: Commands, parallel: tuple[str, ...]) -> None:
    run.attach("bob", "--filter", "cat")
    ask = " ".join(run.command("ask", "bob", "--each-line", *parallel))
    asked = run.run(["sh", "-c", f"yes hi | {{ {ask}; echo $? >&2; }} | head -1"])
    assert (asked.stdout, asked.stderr) == ("hi\n", "0\n")
    assert run("ask", "bob", "still there?").stdout == "still there?\n"


def test_a_member_killed_amid_a_batch_leaves_a_line_for_each_question_and_the_next_one_answers(run: Commands) -> None:
    member = run.attach("bob", "--exec", f"sh -c '{GATE}'", "--parallel", "2")
    (run.cwd / "go.a").touch()
    asking = run.start("ask", "bob", "--each-line", "--parallel", "2", "--json", stdin=subprocess.PIPE)
    assert asking.stdin and asking.stdout
    asking.stdin.write(b"a\nb\nc\nd\n")
    asking.stdin.close()
    eventually(lambda: (run.cwd / "here.b").exists() and (run.cwd / "here.c").exists(), "two at once")
    member.kill()
    answers = [json.loads(line) for line in asking.stdout.read().splitlines()]
    assert asking.wait(LIMIT_S) == 1
    assert [answer.get("content") or answer["reason"] for answer in answers] == ["a", *["leaving"] * 3]
    run.attach("bob", "--filter", "cat")
    assert run("ask", "bob", "--each-line", "--parallel", "2", typed="e\nf\n").stdout == "e\nf\n"


def test_an_asker_killed_amid_a_batch_leaves_the_member_free_for_the_next_one(run: Commands) -> None:
    run.attach("bob", "--exec", f"sh -c '{GATE}'", "--parallel", "2")
    asking = run.start("ask", "bob", "--each-line", "--parallel", "4", stdin=subprocess.PIPE)
    assert asking.stdin
    asking.stdin.write(b"a\nb\nc\nd\n")
    asking.stdin.flush()
    eventually(lambda: (run.cwd / "here.a").exists() and (run.cwd / "here.b").exists(), "two at once")
    asking.kill()
    asking.wait(LIMIT_S)
    (run.cwd / "go.e").touch()
    assert run("ask", "bob", "e").stdout == "e\n"
    assert not (run.cwd / "here.c").exists(), "what nobody wants any more was asked"


def test_a_batch_goes_through_pipes_named_directly(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    pipes = ("--to-pipe", run.room.pipe("hub", "bob"), "--from-pipe", run.room.pipe("bob", "hub"))
    run.env.pop("PIPE_DIR")
    assert run("ask", *pipes, "--each-line", "--parallel", "2", typed="a\n\nb\n").stdout == "a\n\nb\n"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": NaN}', "is no JSON: it has NaN"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ("", "is no JSON"),
        ("7", "a JSON schema is an object"),
    ],
)
def test_a_file_that_is_no_schema_is_told_in_a_line(run: Commands, schema: str, said: str) -> None:
    run("setup", "bob")
    (run.cwd / "schema.json").write_text(schema)
    refused = run("ask", "bob", "x", "--schema", "schema.json")
    assert (refused.code, refused.stderr.count("\n")) == (2, 1)
    assert "--schema schema.json: " in refused.stderr and said in refused.stderr


@pytest.mark.parametrize(
    "option",
    ["--temperature=nan", "--top-p=nan", "--min-p=nan", "--temperature=inf", "--temperature=-1", f"--seed={2**32}",
     f"--top-k={10**20}", f"--max-tokens={2**31}", "--max-tokens=0", "--stop="],
)  # fmt: skip
def test_what_no_engine_takes_is_wrong_usage(run: Commands, option: str) -> None:
    run("setup", "bob")
    for arguments in (("ask", "bob", "x"), ("attach", "bob", "--model", "tiny-chat")):
        refused = run(*arguments, option)
        assert (refused.code, refused.stderr.count("\n")) == (2, 1)
        assert option.partition("=")[0] in refused.stderr


def test_a_schema_that_a_server_does_not_take_is_told_and_never_left_out(run: Commands) -> None:
    server = Scripted()
    error = {"error": {"message": "response_format is not supported", "param": "response_format"}}
    server.status, server.body = 400, [json.dumps(error).encode()]
    (run.cwd / "schema.json").write_text("\ufeff{}")  # as some editors begin a file
    try:
        run.attach("bob", "--server", server.url)
        for _ in range(2):
            asked = run("ask", "bob", "x", "--schema", "schema.json")
            assert (asked.code, asked.stdout) == (1, "")
            assert asked.stderr.endswith("refuses: response_format is not supported\n")
        assert all(body["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": {}}
                   for body in server.asked)  # fmt: skip
    finally:
        server.close()


def test_how_words_are_chosen_and_a_schema_reach_the_server(run: Commands) -> None:
    server = Scripted()
    server.say(piece("stop", content='{"sea": "blue"}'), b"[DONE]")
    (run.cwd / "schema.json").write_text('{"type": "object"}')
    try:
        run.attach("bob", "--server", server.url, "--temperature", "0.1", "--top-k", "9")
        asked = run("ask", "bob", "x", "--schema", "schema.json", "--temperature", "0.5", "--min-p", "0.2",
                    "--stop", "a", "--stop", "b", "--max-tokens", "7")  # fmt: skip
        assert asked.stdout == '{"sea": "blue"}\n'
        body = server.asked[0]
    finally:
        server.close()
    assert {name: body[name] for name in ("temperature", "top_k", "min_p", "stop", "max_tokens")} == {
        "temperature": 0.5, "top_k": 9, "min_p": 0.2, "stop": ["a", "b"], "max_tokens": 7,
    }  # fmt: skip
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_an_engine_answers_by_a_schema(run: Commands) -> None:
    (run.cwd / "schema.json").write_text('{"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"]}')
    run.attach("bob", "--model", "tiny-chat", "--threads", "1")
    answer = run("ask", "bob", "What is 3 and 4?", "--schema", "schema.json", "--temperature", "0")
    assert json.loads(answer.stdout) == {"n": 7}


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
