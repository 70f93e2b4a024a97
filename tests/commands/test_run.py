"""One model, without a room: a prompt, or a talk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.commands.conftest import LIMIT_S, QUICK_ENGINE, Commands
from tests.peers import eventually
from tests.screen import CTRL_C, CTRL_D, ENTER, Screen
from tests.server import Scripted, piece, usage

TINY = ("tiny-chat", *QUICK_ENGINE, "--temperature", "0")


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    scripted.say(piece(content="Hello "), piece(content="there."), piece("stop"), usage(7, 3), b"[DONE]")
    yield scripted
    scripted.close()


def is_left_nothing(run: Commands) -> bool:
    return run.left_processes() == [] and run.left_files() == []


# -- a prompt


def test_a_prompt_is_answered_on_stdout_and_nothing_is_left(run: Commands) -> None:
    asked = run("run", *TINY, "What is 3 and 4?", typed="nobody reads this")
    assert (asked.code, asked.stdout, asked.stderr) == (0, "It is 7.\n", "")
    assert is_left_nothing(run)


def test_the_words_of_a_prompt_need_no_quotes(run: Commands) -> None:
    assert run("run", *TINY, "Say", "the", "word", "lantern.").stdout.lower().count("lantern") >= 1


@pytest.mark.parametrize("words", [(), ("-",)])
def test_without_a_prompt_stdin_is_asked(run: Commands, words: tuple[str, ...]) -> None:
    assert run("run", *TINY, *words, typed="What is 3 and 4?\n").stdout == "It is 7.\n"


def test_with_a_dash_behind_the_prompt_stdin_follows_it(run: Commands, server: Scripted) -> None:
    assert run("run", "m", "--server", server.url, "Sum up:", "-", typed="one\ntwo\n").code == 0
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Sum up:\n\none\ntwo"}]


@pytest.mark.parametrize("typed", ["", "\n", "  \n"])
def test_nothing_to_ask_is_wrong_usage(run: Commands, typed: str) -> None:
    asked = run("run", *TINY, typed=typed)
    assert (asked.code, asked.stdout) == (2, "")
    assert asked.stderr == "modelpipes run: the message is empty (see modelpipes run --help)\n" or (
        asked.stderr == "modelpipes run: the message is empty\n"
    )


def test_a_system_text_is_told_and_none_is_made_up(run: Commands, server: Scripted) -> None:
    assert run("run", "m", "--server", server.url, "Hi").code == 0
    assert run("run", "m", "--server", server.url, "--system", "Be brief.", "Hi").code == 0
    assert [asked["messages"][0]["role"] for asked in server.asked] == ["user", "system"]
    assert server.asked[1]["messages"][0]["content"] == "Be brief."


def test_the_name_is_that_of_the_servers_model_and_settings_are_passed_on(run: Commands, server: Scripted) -> None:
    settings = ("--max-tokens", "9", "--temperature", "0.5", "--top-p", "0.9", "--seed", "4")
    asked = run("run", "qwen", "--server", server.url, *settings, "Hi")
    assert asked.stdout == "Hello there.\n"
    (body,) = server.asked
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("qwen", 9, 0.5)
    assert (body["top_p"], body["seed"]) == (0.9, 4)


def test_json_has_latency_first_token_tokens_and_rate(run: Commands) -> None:
    asked = run("run", *TINY, "What is 3 and 4?", "--json")
    answer = json.loads(asked.stdout)
    assert (answer["from"], answer["to"], answer["content"], answer["stop"]) == ("tiny-chat", "me", "It is 7.", "end")
    assert answer["usage"]["prompt_tokens"] > 0 and answer["usage"]["completion_tokens"] > 0
    timing = answer["timing"]
    assert 0 < timing["first_token_ms"] <= timing["total_ms"] <= answer["round_trip_ms"]
    assert timing["tokens_per_second"] > 0


def test_figures_go_to_stderr(run: Commands) -> None:
    asked = run("run", *TINY, "What is 3 and 4?", "-v")
    assert asked.stdout == "It is 7.\n"
    assert "first token" in asked.stderr and " tokens/s, " in asked.stderr


def test_thoughts_are_shown_on_stderr_where_they_are_wanted(run: Commands, server: Scripted) -> None:
    server.say(piece(reasoning_content="Hmm."), piece(content="Yes."), piece("stop"), b"[DONE]")
    assert run("run", "m", "--server", server.url, "Hi").stderr == ""
    shown = run("run", "m", "--server", server.url, "Hi", "--show-thinking")
    assert (shown.stdout, shown.stderr) == ("Yes.\n", "Hmm.\n")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["none.gguf", "Hi"], 1, "none.gguf"),
        (["m", "Hi", "--server", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1"),
        (["m", "Hi", "--server", "nonsense:"], 2, "--server"),
        (["m", "Hi", "--server", "http://127.0.0.1:1", "--threads", "2"], 2, "--threads is for an engine of ours"),
        (["tiny-chat", "Hi", "--model-name", "x"], 2, "--model-name is for --server"),
        ([], 2, "FILE|NAME"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(run: Commands, words: list[str], code: int, why: str) -> None:
    asked = run("run", *words)
    assert (asked.code, asked.stdout) == (code, "")
    assert asked.stderr.startswith("modelpipes run: ") and why in asked.stderr and asked.stderr.count("\n") == 1


def test_an_answer_that_takes_too_long_ends_with_124_and_what_was_said(run: Commands, server: Scripted) -> None:
    server.say(piece(content="half an"))
    server.hold = True
    asked = run("run", "m", "--server", server.url, "Hi", "--max-seconds", "500ms")
    assert (asked.code, asked.stdout) == (124, "half an\n")
    assert asked.stderr == "modelpipes run: m did not finish within the time allowed (--max-seconds)\n"


def test_a_server_that_falls_silent_ends_it_with_124(run: Commands, server: Scripted) -> None:
    server.say(piece(content="half an"))
    server.hold = True
    asked = run("run", "m", "--server", server.url, "Hi", "--timeout", "300ms")
    assert (asked.code, asked.stdout) == (124, "half an\n")
    assert "was silent for 0.3 s" in asked.stderr


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143), ("KILL", -9)])
def test_signals_leave_no_engine(run: Commands, name: str, code: int) -> None:
    process = run.start("run", "tiny-chat", stdin=subprocess.PIPE)  # waits for its prompt
    eventually(lambda: _catches_signals(process.pid), "the command to wait")
    assert process.stdin
    process.stdin.write(b"Tell me of the sea.\n")
    process.stdin.close()
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.wait(LIMIT_S) in (code, 0)  # or it was faster
    eventually(lambda: is_left_nothing(run), "its engine to end")


def _catches_signals(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    return bool(caught >> signal.SIGTERM - 1 & 1)


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_a_signal_amid_the_answer_ends_all(run: Commands, server: Scripted, name: str) -> None:
    server.say(piece(content="half an"))
    server.hold = True
    process = run.start("run", "m", "--server", server.url, "Hi")
    assert process.stdout and os.read(process.stdout.fileno(), 100) == b"half an"
    process.send_signal(signal.Signals[f"SIG{name}"])
    process.wait(LIMIT_S)
    assert is_left_nothing(run)


# -- a talk


def test_without_a_prompt_a_person_talks_with_it(run: Commands) -> None:
    with Screen(run.command("run", *TINY), run) as screen:
        screen.wait_for("^me>")
        screen.press("What is 3 and 4?" + ENTER)
        screen.wait_for("^me: What is 3 and 4\\?\ntiny-chat: It is 7.\n+me>")
        screen.press("/system You are zoe." + ENTER)
        screen.wait_for("tiny-chat is told so first")
        screen.press("What is your name?" + ENTER)
        screen.wait_for("name is zoe.*\n+me>")
        screen.press("/retry" + ENTER)
        screen.wait_for("name is zoe.*\ntiny-chat: .*name is zoe.*\n+me>")
        screen.press("/save talk.jsonl" + ENTER)
        screen.wait_for("4 turns saved")
        screen.press(CTRL_D)
        assert screen.end() == 0
    assert run("show", "talk.jsonl").stdout.count("zoe") == 1
    assert is_left_nothing(run)


def test_a_talk_remembers_what_was_said(run: Commands, server: Scripted) -> None:
    with Screen(run.command("run", "m", "--server", server.url), run, columns=40, rows=20) as screen:
        screen.wait_for("^me>")
        for text in ("one", "two"):
            screen.press(text + ENTER)
            screen.wait_for(f"^me: {text}\nm: Hello there.\n+me>")
        screen.press("/bye" + ENTER)
        assert screen.end() == 0
    assert [message["content"] for message in server.asked[1]["messages"]] == ["one", "Hello there.", "two"]


def test_ctrl_c_stops_an_answer_and_twice_ends_the_talk(run: Commands, server: Scripted) -> None:
    whole, server.hold = list(server.body), True
    server.say(piece(content="half an"))
    with Screen(run.command("run", "m", "--server", server.url), run) as screen:
        screen.wait_for("^me>")
        screen.press("Hi" + ENTER)
        screen.wait_for("^m: half an\n+me>")
        screen.press(CTRL_C)
        screen.wait_for("m was stopped")
        server.hold, server.body = False, whole
        screen.press("again" + ENTER)
        screen.wait_for("^m: Hello there.")
        assert [message["content"] for message in server.asked[1]["messages"]] == ["Hi", "half an", "again"]
        screen.press(CTRL_C + CTRL_C)
        assert screen.end() == 0
        assert screen.text.endswith("ended by: me left")


def test_a_message_too_long_is_refused_and_a_fault_of_the_server_is_not_the_end(
    run: Commands, server: Scripted
) -> None:
    server.be_llama_server(64)
    with Screen(run.command("run", "m", "--server", server.url), run) as screen:
        screen.wait_for("^me>")
        screen.press("x" * 200 + ENTER)
        screen.wait_for("your last\\s+message\\s+is\\s+taken\\s+back")
        server.answers = [(500, [b'{"error":{"message":"out of luck"}}'])]
        screen.press("Hi" + ENTER)
        screen.wait_for("out of luck")
        screen.press("/retry" + ENTER)
        screen.wait_for("^m: Hello there.")


def test_a_dumb_terminal_gives_lines(run: Commands, server: Scripted) -> None:
    with Screen(run.command("run", "m", "--server", server.url), run, TERM="dumb") as screen:
        screen.wait_for("^me>")
        screen.press("Hi\n")
        screen.wait_for("^m: Hello there.")
        screen.press(CTRL_D)
        assert screen.end() == 0
        assert b"\x1b" not in screen.raw


def test_a_bound_in_time_is_for_a_prompt(run: Commands) -> None:
    with Screen(run.command("run", *TINY, "--max-seconds", "5"), run) as screen:
        assert screen.end() == 2
        assert "--max-seconds is for a PROMPT" in screen.text


def test_a_quiet_sign_tells_that_it_thinks(run: Commands, server: Scripted) -> None:
    server.say(piece(reasoning_content="Hmm."))
    server.hold = True
    with Screen(run.command("run", "m", "--server", server.url, "Hi"), run) as screen:
        screen.wait_for("^m is thinking … [0-9]+ s$")
        screen.process.send_signal(signal.SIGINT)
        screen.end()
        assert "thinking" not in screen.text
