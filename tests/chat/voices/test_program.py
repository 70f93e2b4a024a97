"""Programs as voices: real ones, from /bin and one-liners."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.chat.voices import Finish, Work
from modelpipes.chat.voices.program import ExecVoice
from modelpipes.errors import DeadlineError, MessageError, ProgramError
from modelpipes.pipe.message import Heard, Say
from tests.chat.voices.conformance import children_of_ours
from tests.chat.voices.conftest import Asked, lives, python, sh
from tests.peers import LIMIT_S, eventually, open_descriptors


def run(command: str, text: str, silence_s: float | None = LIMIT_S) -> str:
    return Asked(ExecVoice(command, silence_s=silence_s), text).content


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
