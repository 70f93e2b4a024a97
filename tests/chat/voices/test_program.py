"""Programs as voices: real ones, from /bin and one-liners."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.chat.voices import Finish, Work
from modelpipes.chat.voices.program import ExecVoice, FilterVoice, split_command
from modelpipes.errors import DeadlineError, MessageError, ProgramError, UsageError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.pipe.message import Heard, Say
from modelpipes.values.deadline import Deadline
from tests.chat.voices.conformance import children_of_ours
from tests.chat.voices.conftest import Asked, prepared
from tests.peers import LIMIT_S, eventually, open_descriptors


def python(script: str) -> str:
    return shlex.join([sys.executable, "-S", "-c", script])


def sh(script: str) -> str:
    return shlex.join(["/bin/sh", "-c", script])


def run(command: str, text: str, silence_s: float | None = LIMIT_S) -> str:
    return Asked(ExecVoice(command, silence_s=silence_s), text).content


@contextlib.contextmanager
def filtering(command: str, silence_s: float | None = LIMIT_S) -> Iterator[FilterVoice]:
    voice = FilterVoice(command, silence_s=silence_s)
    try:
        prepared(voice)
        yield voice
    finally:
        voice.close()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- a program a message


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hello", "Hello"),
        ("", ""),
        ("two\nlines", "two\nlines"),
        ("\n\nblank lines before", "\n\nblank lines before"),
        ("spaces after  ", "spaces after  "),
        ("newlines after\n\n", "newlines after"),
        ("a\rb\0c\x1b[31m\u2028d", "a\rb\0c\x1b[31m\u2028d"),
        ("grüße 日本 👩‍👩‍👧 " * 20_000, "grüße 日本 👩‍👩‍👧 " * 20_000),
    ],
)
def test_what_a_program_reads_and_writes_is_exact_but_for_newlines_at_the_end(text: str, answer: str) -> None:
    assert run("cat", text) == answer


def test_a_program_reads_the_message_its_newline_and_the_end() -> None:
    assert run(python("import sys; print(ascii(sys.stdin.read()))"), "a\nb") == r"'a\nb\n'"


def test_newlines_inside_an_answer_stay_wherever_its_pieces_end() -> None:
    script = "import os, time\nfor c in b'a\\n\\nb\\n\\n': os.write(1, bytes([c])); time.sleep(0.002)"
    assert run(python(script), "x") == "a\n\nb"


def test_characters_split_across_reads_stay_whole() -> None:
    script = "import os, time\nfor c in '日本👩'.encode(): os.write(1, bytes([c])); time.sleep(0.002)"
    asked = Asked(ExecVoice(python(script)), "x")
    assert asked.content == "日本👩"
    assert len(asked.deltas) > 1


@pytest.mark.parametrize(
    ("rubbish", "answer"),
    [(r"\377\376ok\200", "\ufffd\ufffdok\ufffd"), (r"caf\303", "caf\ufffd"), (r"caf\303\n", "caf\ufffd")],
)
def test_what_is_no_text_becomes_replacement_characters(rubbish: str, answer: str) -> None:
    assert run(sh(f"printf '{rubbish}'"), "x") == answer


def test_half_a_character_after_newlines_keeps_them() -> None:
    assert run(sh(r"printf 'a\n\n\303'"), "x") == "a\n\n\ufffd"


def test_a_program_that_says_nothing_answers_with_nothing() -> None:
    asked = Asked(ExecVoice("true"), "x").join()
    assert (asked.content, asked.deltas, asked.finish) == ("", [], Finish())


def test_a_program_may_answer_without_reading() -> None:
    assert run("echo ok", "x" * 1_000_000) == "ok"
    assert run(sh("exec <&-; sleep 0.05; echo ok"), "x" * 1_000_000) == "ok"


def test_both_directions_full_at_once_do_not_deadlock() -> None:
    script = "import sys; sys.stdout.write('y' * (8 << 20)); sys.stdout.flush(); print(len(sys.stdin.read()))"
    answer = run(python(script), "x" * (8 << 20))
    assert answer == "y" * (8 << 20) + str((8 << 20) + 1)


def test_eight_mebibytes_come_back_whole() -> None:
    text = "".join(f"{number:07}\n" for number in range(1 << 20))
    assert run("cat", text) == text.rstrip("\n")


def test_more_than_can_travel_is_refused_at_once() -> None:
    with pytest.raises(MessageError, match="larger than"):
        run("yes", "x")


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo first >&2; echo 'no such key' >&2; echo; exit 3", "/bin/sh ended with 3: no such key"),
        ("printf 'the words\\n\\n' >&2; exit 1", "/bin/sh ended with 1: the words"),
        ("exit 7", "/bin/sh ended with 7: it said nothing"),
        ("kill -SEGV $$", "/bin/sh was killed by SIGSEGV: it said nothing"),
    ],
)
def test_a_failure_names_the_code_and_the_last_words(script: str, complaint: str) -> None:
    with pytest.raises(ProgramError) as caught:
        run(sh(script), "x")
    assert str(caught.value) == complaint


def test_words_before_a_failure_have_gone_out() -> None:
    asked = Asked(ExecVoice(sh("echo half; exit 1")), "x").join()
    assert "".join(asked.work.content) == "half"
    assert isinstance(asked.error, ProgramError)


def test_a_silent_program_ends_at_the_limit_with_a_hint() -> None:
    with pytest.raises(DeadlineError, match=r"sleep wrote nothing for 0\.05 s; .*stdbuf -oL"):
        run("sleep 100", "x", silence_s=0.05)


def test_a_program_that_speaks_now_and_then_is_not_silent() -> None:
    assert run(sh("for n in 1 2 3 4 5 6; do sleep 0.4; printf $n; done"), "x", silence_s=2) == "123456"


def test_a_program_that_closes_its_output_is_waited_for() -> None:
    with pytest.raises(ProgramError, match="ended with 4: too late"):
        run(sh("echo answer; exec >&-; sleep 0.1; echo too late >&2; exit 4"), "x")
    with pytest.raises(DeadlineError, match="wrote nothing"):
        run(sh("echo answer; exec >&-; sleep 100"), "x", silence_s=0.1)


@pytest.mark.parametrize("script", ["sleep 100 & echo done", "yes & exit 0", "sleep 100 >&2 & exit 0"])
def test_what_a_program_leaves_running_does_not_hold_the_answer(script: str) -> None:
    asked = Asked(ExecVoice(sh(script)), "x").join()
    assert asked.error is None


def test_a_cancel_ends_a_program_and_its_children(pid_file: Path) -> None:
    program = sh(f"trap '' TERM; sleep 100 & echo $! >> {pid_file}; echo $$ >> {pid_file}; echo begun; wait")
    asked = Asked(ExecVoice(program), "x")
    asked.await_words()
    asked.cancel()
    assert (asked.finish, asked.content) == (Finish(), "begun")
    for pid in pid_file.read_text().split():
        eventually(lambda pid=pid: not lives(int(pid)), "end of the program and what it started")  # type: ignore[misc]


def test_a_cancel_after_the_last_word_does_not_wait_for_the_end() -> None:
    asked = Asked(ExecVoice(sh("echo answer; exec >&-; sleep 100")), "x")
    asked.await_words()
    asked.cancel()
    assert asked.content == "answer"


def test_a_cancel_before_the_start_is_obeyed() -> None:
    work = Work(Say("1", "hub", "bob"), [Heard(0, "hub", "x")], lambda *_: None)
    work.cancel()
    assert ExecVoice("sleep 100").answer(work) == Finish()


@pytest.mark.parametrize("make", [ExecVoice, FilterVoice])
def test_a_missing_program_is_told_before_the_seat_is_ready(make: type[ExecVoice | FilterVoice]) -> None:
    with pytest.raises(ProgramError, match="no-such-program: no such program on PATH"):
        make("no-such-program x").prepare(Deadline.never())


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    assert run(f"echo $HOME '*' ; > {tmp_path}/x `id` | cat", "x") == f"$HOME * ; > {tmp_path}/x `id` | cat"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["", "  ", "echo 'open"])
def test_a_command_that_is_none_is_wrong_usage(command: str) -> None:
    with pytest.raises(UsageError):
        split_command(command)


def test_several_messages_are_answered_side_by_side(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # Each waits for the other at the ends of one FIFO.
    voice = ExecVoice(sh(f"read what; if [ $what = r ]; then cat {fifo}; else echo met > {fifo}; fi"), parallel=2)
    reader, writer = Asked(voice, "r"), Asked(voice, "w")
    assert (reader.content, writer.content) == ("met", "")


def test_fifty_answers_leave_no_descriptor_and_no_process() -> None:
    voice = ExecVoice(sh("cat; sleep 100 & exit 0"))
    assert Asked(voice, "x").content == "x"
    before = open_descriptors(), children_of_ours()
    for number in range(50):
        assert Asked(voice, str(number)).content == str(number)
    assert (open_descriptors(), children_of_ours()) == before


# -- a filter


def test_a_line_in_is_a_line_out_in_order() -> None:
    with filtering("stdbuf -oL tr a-z A-Z") as voice:
        for number in range(50):
            assert Asked(voice, f"line {number}").content == f"LINE {number}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\nc\rd", "a b c d"),
        ("a\n\nb\n", "a  b"),
        ("", ""),
        ("a\u2028b\x0bc\x85d", "a\u2028b\x0bc\x85d"),
        ("grüße 日本", "grüße 日本"),
    ],
)
def test_newlines_become_spaces_and_nothing_else_does(text: str, line: str) -> None:
    with filtering("cat") as voice:
        assert Asked(voice, text).content == line


def test_a_line_of_eight_mebibytes_comes_back() -> None:
    with filtering("cat") as voice:
        assert Asked(voice, "x" * (8 << 20)).content == "x" * (8 << 20)
        assert Asked(voice, "y").content == "y"


def test_lines_beyond_the_answer_are_kept_in_order() -> None:
    with filtering(python("for l in open(0): print(l.strip(), 1); print(l.strip(), 2, flush=True)")) as voice:
        assert [Asked(voice, text).content for text in "abc"] == ["a 1", "a 2", "b 1"]


def test_a_carriage_return_at_the_end_of_a_line_is_its_end() -> None:
    with filtering(python("for l in open(0): print(l.strip(), end='\\r\\n', flush=True)")) as voice:
        assert Asked(voice, "dos").content == "dos"


STUBBORN = "import time\nfor l in open(0):\n  time.sleep(100 if l == 'wait\\n' else 0); print(l, end='', flush=True)"


def test_after_a_cancel_the_next_answer_is_right() -> None:
    with filtering(python(STUBBORN)) as voice:
        assert Asked(voice, "one").content == "one"
        for _ in range(3):
            asked = Asked(voice, "wait")
            eventually(lambda asked=asked: asked.work.phase == "thinking", "work")  # type: ignore[misc]
            asked.cancel()
            assert (asked.error, asked.content) == (None, "")
            voice.tend()  # we ended it: nothing has died
            assert Asked(voice, "two").content == "two"


def test_after_a_silence_the_next_answer_is_right() -> None:
    # The late line would answer the next message.
    with filtering(python(STUBBORN.replace("100", "0.5")), silence_s=0.3) as voice:
        with pytest.raises(DeadlineError):
            _ = Asked(voice, "wait").content
        voice.tend()
        voice._silence_s = LIMIT_S
        assert Asked(voice, "two").content == "two"


def test_a_filter_that_buffers_ends_at_the_limit_with_a_hint() -> None:
    with filtering("tr a-z A-Z", silence_s=0.1) as voice, pytest.raises(DeadlineError, match="stdbuf -oL"):
        _ = Asked(voice, "x").content


def test_a_line_without_an_end_is_refused() -> None:
    with filtering(sh("read l; yes | tr -d '\\n'")) as voice:
        with pytest.raises(MessageError, match=f"more than {MAX_MESSAGE_BYTES} bytes without a newline"):
            _ = Asked(voice, "x").content
        voice.tend()


def test_a_filter_that_dies_idle_is_noticed() -> None:
    with filtering(sh("read l; echo $l; echo bad luck >&2; exit 5")) as voice:
        assert Asked(voice, "x").content == "x"
        child = voice._child
        assert child is not None
        child.wait(Deadline.after(LIMIT_S))
        with pytest.raises(ProgramError, match="ended with 5: bad luck"):
            voice.tend()


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("read l; printf half; echo 'bad luck' >&2; exit 5", "ended with 5: bad luck"),
        ("read l; kill -KILL $$", "was killed by SIGKILL: it said nothing"),
    ],
)
def test_a_filter_that_dies_in_work_names_code_and_last_words(script: str, complaint: str) -> None:
    with filtering(sh(script)) as voice:
        with pytest.raises(ProgramError, match=complaint):
            _ = Asked(voice, "x").content
        with pytest.raises(ProgramError, match=complaint):
            voice.tend()  # so that its member leaves


def test_a_filter_that_closes_its_output_and_lives_on_is_started_again() -> None:
    with filtering(sh("read l; test $l = bad || echo $l; exec >&-; exec sleep 100")) as voice:
        with pytest.raises(ProgramError, match="closed its output"):
            _ = Asked(voice, "bad").content
        assert Asked(voice, "good").content == "good"


def test_a_filter_is_ended_with_its_voice(pid_file: Path) -> None:
    with filtering(sh(f"sleep 100 & echo $! > {pid_file}; cat")) as voice:
        assert Asked(voice, "x").content == "x"
        grandchild = int(pid_file.read_text())
        os.kill(grandchild, 0)
    eventually(lambda: not lives(grandchild), "end of the grandchild")
    assert voice._child is None


def test_a_filter_that_was_stopped_is_silent() -> None:
    with filtering("cat", silence_s=0.1) as voice:
        child = voice._child
        assert child is not None
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            _ = Asked(voice, "x").content
        assert Asked(voice, "y").content == "y"
