"""The person at a terminal: what they type, stop and see while others speak, on a real one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import QUICK_ENGINE, Commands
from tests.peers import eventually
from tests.screen import (
    ALT_ENTER,
    BACKSPACE,
    CTRL_C,
    CTRL_D,
    CTRL_R,
    CTRL_Z,
    ENTER,
    HOME,
    LEFT,
    UP,
    Screen,
    pasted,
)
from tests.screen import LIMIT_S as SCREEN_LIMIT_S

SIZES = [(80, 24), (40, 20)]


# Each answer is what is written to a FIFO of its own, so that no words are another answer's.
SPEAKER = "n=$(cat number); echo $((n + 1)) >number; exec cat words$n\n"
MOST_ANSWERS = 4


class Speaker:
    """A member who says what the test has it say, when."""

    def __init__(self, folder: Path) -> None:
        (folder / "speaker").write_text(SPEAKER)
        (folder / "number").write_text("1\n")
        for number in range(1, MOST_ANSWERS + 1):
            os.mkfifo(folder / f"words{number}")
        self._folder = folder
        self._number = 0
        self._fd = -1

    def begin(self, text: str) -> None:
        """Begin an answer, once it is asked for."""
        self._number += 1
        eventually(self._open, "an answer to be asked for", SCREEN_LIMIT_S)
        self.say(text)

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._folder / f"words{self._number}", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody reads yet
            return False
        os.set_blocking(self._fd, True)
        return True

    def say(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self, text: str = "") -> None:
        if text:
            self.say(text)
        os.close(self._fd)
        self._fd = -1


@pytest.fixture
def bob(run: Commands) -> Speaker:
    return Speaker(run.cwd)


def turns(path: Path, count: int) -> list[tuple[str, str, str | None]]:
    """Who said what, and how it ended, once there are so many turns: a turn is shown before it is written."""

    def found() -> list[dict[str, str]]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [turn for turn in map(json.loads, lines) if "turn" in turn and "from" in turn]

    eventually(lambda: len(found()) >= count, f"{count} turns in {path}", SCREEN_LIMIT_S)
    return [(turn["from"], turn["content"], turn.get("stop")) for turn in found()]


def chat(run: Commands, *more: str, columns: int = 80, rows: int = 24, **env: str) -> Screen:
    words = ["--exec", "bob=sh speaker", "--transcript", "talk.jsonl"]
    argv = run.command("chat", "me", *words, *more)
    return Screen(argv, run, columns=columns, rows=rows, **env)


@pytest.fixture(params=SIZES, ids=["80x24", "40x20"])
def screen(run: Commands, bob: Speaker, request: pytest.FixtureRequest) -> Iterator[Screen]:
    columns, rows = request.param
    with chat(run, columns=columns, rows=rows) as screen:
        screen.wait_for("^me>")
        yield screen


def test_what_is_typed_stands_there_once_and_opens_the_talk(screen: Screen, bob: Speaker, run: Commands) -> None:
    screen.press("Good morning" + ENTER)
    bob.begin("Hello.\n")
    bob.end()
    screen.wait_for("^bob: Hello.\n\n?me>")
    assert screen.text.count("Good morning") == 1
    assert turns(run.cwd / "talk.jsonl", 2) == [("me", "Good morning", "end"), ("bob", "Hello.", "end")]
    screen.press(CTRL_D)
    assert screen.end() == 0
    assert screen.text.endswith("ended by: me left")
    assert "me>" not in screen.text


def test_the_line_stays_below_what_streams_and_can_be_typed_in(screen: Screen, bob: Speaker, run: Commands) -> None:
    screen.press("begin" + ENTER)
    bob.begin("one two three ")
    screen.wait_for("^bob: one two three\n+me>")
    screen.press("I type")
    screen.wait_for("^bob: one two three\n+me> I type$")
    bob.say("four five six seven eight nine ten eleven twelve ")
    screen.wait_for("twelve\n+me> I type$")
    screen.press(" meanwhile" + ENTER)
    screen.wait_for("me, next: I type meanwhile\nme>$")
    bob.end("and the end.\n")
    bob.begin("again\n")  # asked for the next: the message was told by itself
    bob.end()
    screen.wait_for("^me: I type meanwhile\nbob: again")
    said = [content for _, content, _ in turns(run.cwd / "talk.jsonl", 4)]
    assert said[2:] == ["I type meanwhile", "again"]
    assert screen.text.count("I type meanwhile") == 1


def test_words_are_broken_at_spaces_and_speakers_are_coloured(screen: Screen, bob: Speaker) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    screen.press("begin" + ENTER)
    bob.begin(words + "\n")
    bob.end()
    screen.wait_for("word59\n+me>", everywhere=True)
    said = screen.text[screen.text.index("bob: ") : screen.text.rindex("me>")]
    assert said.split() == ["bob:", *words.split()]
    assert all(len(line) <= screen.columns for line in said.split("\n"))
    assert screen.colours


def test_lines_pasted_are_one_message(screen: Screen, bob: Speaker, run: Commands) -> None:
    lines = "\n".join(f"line {number}" for number in range(200))
    screen.press(pasted(lines))
    screen.wait_for("line 199")
    screen.press(ENTER)
    bob.begin("ok\n")
    bob.end()
    screen.wait_for("^bob: ok\n+me>")
    assert turns(run.cwd / "talk.jsonl", 1)[0][1] == lines


def test_a_hundred_kilobytes_in_one_line_are_one_message(screen: Screen, bob: Speaker, run: Commands) -> None:
    text = "x" * 100_000
    screen.press(pasted(text) + " end" + ENTER)
    bob.begin("ok\n")
    bob.end()
    screen.wait_for("^bob: ok\n+me>")
    assert turns(run.cwd / "talk.jsonl", 1)[0][1] == f"{text} end"


def test_arrows_edit_and_bring_back_what_was_typed(screen: Screen, bob: Speaker, run: Commands) -> None:
    screen.press("good mrning" + LEFT * 5 + "o" + HOME + BACKSPACE + "A " + ENTER)
    bob.begin("ok\n")
    bob.end()
    screen.wait_for("^me: A good morning\nbob: ok\n+me>$")
    screen.press(UP + "!" + ENTER)
    bob.begin("yes\n")
    bob.end()
    screen.wait_for("^bob: yes\n+me>$")
    assert turns(run.cwd / "talk.jsonl", 3)[2][1] == "A good morning!"


def test_ctrl_r_finds_what_was_typed_another_time(run: Commands, bob: Speaker) -> None:
    with chat(run) as first:
        first.wait_for("^me>")
        first.press("a rare word" + ENTER)
        bob.begin("ok\n")
        bob.end()
        first.wait_for("^bob: ok\n+me>")
        first.press("/bye" + ENTER)
        assert first.end() == 0
    os.unlink(run.cwd / "talk.jsonl")
    kept = Path(run.env["HOME"]) / ".local" / "state" / "modelpipes" / "typed.jsonl"
    assert kept.stat().st_mode & 0o777 == 0o600
    with chat(run) as second:
        second.wait_for("^me>")
        second.press(CTRL_R + "rare")
        second.wait_for("me> a rare word")
        second.press(ENTER)  # takes it
        second.press(ENTER)
        bob.begin("ok\n")
        bob.end()
        second.wait_for("^me: a rare word\nbob: ok")


def test_several_lines_are_typed_with_alt_enter_or_between_quotes(screen: Screen, bob: Speaker, run: Commands) -> None:
    for keys in ("one" + ALT_ENTER + "two" + ENTER, '"""' + ENTER + "one" + ENTER + 'two"""' + ENTER):
        screen.press(keys)
        bob.begin("ok\n")
        bob.end()
        screen.wait_for("^bob: ok\n+me>$")
    assert [content for who, content, _ in turns(run.cwd / "talk.jsonl", 4) if who == "me"] == ["one\ntwo"] * 2


def test_ctrl_c_stops_the_answer_and_what_was_said_stays(screen: Screen, bob: Speaker, run: Commands) -> None:
    screen.press("begin" + ENTER)
    bob.begin("half an ")
    screen.wait_for("^bob: half an")
    screen.press(CTRL_C)
    screen.wait_for("^bob: half an\n.*bob was stopped\n+me>")
    assert turns(run.cwd / "talk.jsonl", 2)[1] == ("bob", "half an ", "cancelled")
    bob.end()
    screen.press("once more" + ENTER)
    bob.begin("whole\n")
    bob.end()
    screen.wait_for("^me: once more\nbob: whole\n+me>")


def test_stopping_before_the_first_word_leaves_no_turn(screen: Screen, bob: Speaker, run: Commands) -> None:
    screen.press("begin" + ENTER)
    bob.begin("")  # it is asked
    screen.press("/stop" + ENTER)
    screen.wait_for(r"bob was stopped before its\s+first word")
    bob.end()
    screen.press("rather this" + ENTER)
    bob.begin("yes\n")
    bob.end()
    screen.wait_for("^me: rather this\nbob: yes")
    assert [who for who, _, _ in turns(run.cwd / "talk.jsonl", 3)] == ["me", "me", "bob"]


@pytest.mark.parametrize("keys", [CTRL_C + CTRL_C, CTRL_D, "/bye" + ENTER], ids=["twice", "ctrl-d", "bye"])
@pytest.mark.parametrize("is_answering", [False, True], ids=["at the prompt", "in an answer"])
def test_the_talk_is_ended(run: Commands, bob: Speaker, keys: str, is_answering: bool) -> None:
    with chat(run) as screen:
        screen.wait_for("^me>")
        if is_answering:
            screen.press("begin" + ENTER)
            bob.begin("half an ")
            screen.wait_for("half an")
        screen.press(keys)
        assert screen.end() == 0
        assert screen.text.endswith("ended by: me left")
        assert screen.is_cooked()
    if is_answering:
        assert turns(run.cwd / "talk.jsonl", 2)[1] == ("bob", "half an ", "cancelled")
        bob.end()


def test_ctrl_c_at_a_line_with_text_drops_the_text(screen: Screen) -> None:
    screen.press("not this")
    screen.wait_for("^me> not this$")
    screen.press(CTRL_C)
    screen.wait_for("^me>$")
    screen.press(CTRL_C)  # so soon after the other it would end the talk, had that not dropped something
    screen.wait_for("Ctrl-C once more")
    screen.press("this")
    screen.wait_for("^me> this$")


def test_a_stop_of_the_job_gives_the_shell_its_terminal_and_fg_goes_on(run: Commands, bob: Speaker) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is not on this machine")
    with Screen(["bash", "--norc", "--noprofile", "-i"], run, PS1="$ ") as screen:
        screen.wait_for(r"\$")
        line = " ".join(run.command("chat", "me", "--exec", "'bob=sh speaker'", "--transcript", "talk.jsonl"))
        screen.press(f"{line}\n")
        screen.wait_for("^me>")
        screen.press("begin" + ENTER)
        bob.begin("half an ")
        screen.wait_for("^bob: half an\n+me>")
        screen.press("I was" + CTRL_Z)
        screen.wait_for(r"Stopped.*\$$")
        screen.press("echo sh''ell; stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo | tr -d '\\n'\n")
        screen.wait_for("^shell\nicanonecho")
        bob.say("answer of ")
        screen.press("fg\n")
        screen.wait_for("half an answer of\n+me> I was$")
        bob.end("words.\n")
        screen.press(" here" + ENTER)
        bob.begin("ok\n")
        bob.end()
        screen.wait_for("answer of words.\nme: I was here\nbob: ok\n+me>$")
        screen.press(CTRL_D)
        screen.wait_for(r"ended by: me left\n\$")
        screen.press("exit\n")
        assert screen.end() == 0


def test_a_new_size_holds_for_what_comes(run: Commands, bob: Speaker) -> None:
    words = [f"word{number}" for number in range(40)]
    with chat(run, columns=80) as screen:
        screen.wait_for("^me>")
        screen.press("begin" + ENTER)
        bob.begin("Now.\n")
        screen.wait_for("^bob: Now.")
        screen.resize(40, 20)
        bob.say(" ".join(words) + "\n")
        bob.end("end\n")
        screen.wait_for("end\n+me>$")
        said = screen.text[screen.text.index("Now.") :].split("\n")
        assert all(len(line) <= 40 for line in said)
        assert any(len(line) > 30 for line in said)
        screen.press("x" * 50)
        screen.wait_for("^me> x{36}\n {4}x{14}$")


def test_retry_has_the_answer_given_again_and_save_writes_the_talk(run: Commands, bob: Speaker) -> None:
    with chat(run) as screen:
        screen.wait_for("^me>")
        screen.press("/retry" + ENTER)
        screen.wait_for("there is no answer yet")
        screen.press("begin" + ENTER)
        for text in ("first", "second"):
            bob.begin(f"{text}\n")
            bob.end()
            screen.wait_for(f"^bob: {text}\n+me>")
            screen.press(("/retry" if text == "first" else "/save saved.jsonl") + ENTER)
        screen.wait_for("saved.jsonl: 3 turns saved")
        screen.press("/save saved.jsonl" + ENTER)
        screen.wait_for("saved.jsonl: there is a conversation in it")
        screen.press("/save" + ENTER + "/nonsense" + ENTER)
        screen.wait_for("/save wants a FILE\n/nonsense: no such command; /help lists them")
        screen.press("/help" + ENTER)
        screen.wait_for("^/system TEXT")
        screen.press("//etc" + ENTER)
        bob.begin("ok\n")
        bob.end()
        screen.wait_for("^me: /etc\nbob: ok")
    assert [content for _, content, _ in turns(run.cwd / "saved.jsonl", 3)] == ["begin", "first", "second"]


def test_what_is_had_again_is_told_without_what_it_replaces(run: Commands) -> None:
    argv = run.command("chat", "me", "--model", "alice=tiny-chat", "--exec", "count=wc -c", *QUICK_ENGINE)
    with Screen([*argv, "--temperature", "0", "--transcript", "talk.jsonl"], run) as screen:
        screen.wait_for("^me>")
        screen.press("What is 3 and 4?" + ENTER)
        screen.wait_for("^count: .*\n+me>")
        screen.press("/system alice=You are zoe." + ENTER)
        screen.wait_for("alice is told so first")
        screen.press("What is your name?" + ENTER)
        screen.wait_for("name is zoe.*count: .*\n+me>")
        screen.press("/retry" + ENTER)
        said = turns(run.cwd / "talk.jsonl", 8)
    assert [who for who, _, _ in said] == ["me", "alice", "count", "me", "alice", "count", "alice", "count"]
    lines = [json.loads(line) for line in (run.cwd / "talk.jsonl").read_text().splitlines()]
    prompts = [line["usage"]["prompt_tokens"] for line in lines if "usage" in line]
    assert prompts[1] == prompts[2]


def test_a_message_too_long_for_the_context_is_refused_and_the_talk_goes_on(run: Commands) -> None:
    argv = run.command("chat", "me", "--model", "alice=tiny-chat", "--engine-arg=--threads", "--engine-arg=1")
    with Screen([*argv, "--ctx-size", "256"], run) as screen:
        screen.wait_for("^me>")
        screen.press(pasted("word " * 2000) + ENTER)
        screen.wait_for("your last message is taken back\n+me>$")
        screen.press("What is 3 and 4?" + ENTER)
        screen.wait_for("^me: What is 3 and 4\\?\nalice: .*7.*\n+me>$")


def test_a_terminal_that_goes_away_ends_the_talk_and_leaves_nothing(run: Commands, bob: Speaker) -> None:
    with chat(run) as screen:
        screen.wait_for("^me>")
        screen.press("begin" + ENTER)
        bob.begin("half an ")
        screen.wait_for("half an")
        screen.hang_up()
        assert screen.process.wait(30) in (0, 1, 128 + signal.SIGHUP)  # whatever it learns of first: no traceback
    assert run.left_processes() == []
    assert not list(run.runtime.glob("modelpipes/*"))
    bob.end()


@pytest.mark.parametrize("name", ["TERM", "INT", "KILL"])
def test_signals_end_it_and_give_the_terminal_back(run: Commands, bob: Speaker, name: str) -> None:
    with chat(run) as screen:
        screen.wait_for("^me>")
        screen.process.send_signal(signal.Signals[f"SIG{name}"])
        screen.end()
        assert name == "KILL" or screen.is_cooked()
    eventually(lambda: run.left_processes() == [], "all to end")


def test_a_quiet_sign_tells_of_a_wait_and_goes(run: Commands, bob: Speaker) -> None:
    with chat(run) as screen:
        screen.wait_for("^me>")
        screen.press("begin" + ENTER)
        bob.begin("")
        screen.wait_for("^bob is thinking … [0-9]+ s\nme>")
        bob.say("There. ")
        screen.wait_for("^bob: There.\n+me>")
        bob.end("\n")
        screen.wait_for("^bob: There.\n+me>")
        assert "thinking" not in screen.text


# -- where nobody types, and where nobody looks


def test_who_only_watches_sees_colours_wrapped_words_and_the_sign(run: Commands, bob: Speaker) -> None:
    argv = run.command("chat", "--exec", "bob=sh speaker", "--filter", "al=cat", "--rounds", "1")
    with Screen(argv, run, columns=40) as screen:
        screen.wait_for("^bob is thinking … [0-9]+ s$")
        bob.begin(" ".join(["word"] * 20) + "\n")
        bob.end()
        assert screen.end() == 0
        assert "thinking" not in screen.text
        assert {"cyan", "green"} <= screen.colours
        assert f"bob: {' '.join(['word'] * 7)}\n{' '.join(['word'] * 8)}\n" in screen.text


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_plain_is_as_in_a_pipe(run: Commands, env: dict[str, str]) -> None:
    words = " ".join(["word"] * 40)
    argv = run.command("chat", "--filter", "al=cat", "--filter", "bob=cat", "--rounds", "1", "--opening", words)
    with Screen(["env", *(f"{name}={value}" for name, value in env.items()), *argv], run) as screen:
        assert screen.end() == 0
        plain = run(*argv[4:])
        assert screen.raw.replace(b"\r\n", b"\n").startswith(plain.stdout.encode())
        assert b"\x1b" not in screen.raw


def test_a_dumb_terminal_gives_lines(run: Commands, bob: Speaker) -> None:
    with chat(run, TERM="dumb") as screen:
        screen.wait_for("^me>")
        screen.press("Hello\n")
        bob.begin("Hi.\n")
        bob.end()
        screen.wait_for("^bob: Hi.")
        screen.press(CTRL_D)
        assert screen.end() == 0
        assert b"\x1b" not in screen.raw


def test_what_is_said_goes_to_a_file_as_ever_while_the_person_types(run: Commands, bob: Speaker) -> None:
    with open(run.cwd / "said", "wb") as said:
        argv = run.command("chat", "me", "--exec", "bob=sh speaker")
        with Screen(argv, run, stdout=said) as screen:
            screen.wait_for("^me>")
            screen.press("Hello" + ENTER)
            bob.begin("word " * 30 + "\n")
            bob.end()
            eventually(lambda: "bob: " in (run.cwd / "said").read_text(), "the answer to be written")
            screen.press(CTRL_D)
            assert screen.end() == 0
    assert (run.cwd / "said").read_text() == f"me: Hello\nbob: {'word ' * 30}\n"


def test_where_a_program_reads_what_is_said_the_terminal_is_left_to_it(run: Commands) -> None:
    chat = shlex.join(run.command("chat", "me", "--filter", "bob=cat"))
    with Screen(["sh", "-c", f"{chat} | tee said"], run) as screen:
        screen.wait_for("^me>")
        screen.press("Hello\n")
        screen.wait_for("bob: Hello$")  # behind the next prompt, where that is faster than tee
        screen.press(CTRL_D)
        assert screen.end() == 0
        assert b"\x1b" not in screen.raw
    assert (run.cwd / "said").read_text() == "me: Hello\nbob: Hello\n"
