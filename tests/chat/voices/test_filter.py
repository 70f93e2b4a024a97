"""Programs that are kept running as voices: real ones, from /bin and one-liners."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpipes.chat.voices.filter import FilterVoice
from modelpipes.errors import DeadlineError, MessageError, ProgramError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.values.deadline import Deadline
from tests.chat.voices.conftest import Asked, lives, prepared, python, sh
from tests.peers import LIMIT_S, eventually


@contextlib.contextmanager
def filtering(
    command: str, silence_s: float | None = LIMIT_S, report: Callable[[str], None] = print
) -> Iterator[FilterVoice]:
    voice = FilterVoice(command, silence_s=silence_s, report=report)
    try:
        prepared(voice)
        yield voice
    finally:
        voice.close()


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


ECHO = "import sys\nfor l in sys.stdin: print('answer to', l.strip(), flush=True)"
SLOW = """
import time
for line in open(0):
    print(line.strip(), 1, flush=True)
    time.sleep(0.05)
    print(line.strip(), 2, flush=True)
"""
# Reads its input as node and ssh do, which wait in poll(2).
POLLS = """
import os, select, sys, time
poll = select.poll()
poll.register(0)
while poll.poll():
    line = os.read(0, 4096).decode().strip()
    if not line:
        break
    print(line, 1, flush=True)
    time.sleep(0.003)
    print(line, 2, flush=True)
"""


@pytest.mark.parametrize(
    "banner",
    [
        "print('Welcome to tool 1.0', flush=True)",
        "print('Welcome to tool 1.0', '', 'Have fun', sep='\\n', flush=True)",
        "import time; time.sleep(0.1); print('Welcome to tool 1.0', flush=True)",  # asked before it is said
        "import os; os.write(1, b'Welcome '); os.write(1, b'to tool 1.0\\n')",
    ],
)
def test_a_banner_is_no_answer_and_is_told(banner: str) -> None:
    # Each answer was that of the question before, exit 0, without a word.
    told: list[str] = []
    with filtering(python(f"{banner}\n{ECHO}"), report=told.append) as voice:
        assert [Asked(voice, text).content for text in ("one", "two", "three")] == [
            f"answer to {text}" for text in ("one", "two", "three")
        ]
    assert len(told) == 1
    assert "said before it was asked: 'Welcome" in told[0]


def test_a_prompt_is_no_answer() -> None:
    told: list[str] = []
    script = "print('> ', end='', flush=True)\nfor l in open(0): print(l.strip(), '> ', sep='\\n', end='', flush=True)"
    with filtering(python(script), report=told.append) as voice:
        assert [Asked(voice, text).content for text in "abc"] == ["a", "b", "c"]
    assert ["'>'" in line for line in told] == [True, True]


def test_what_an_idle_program_says_is_told_without_a_question() -> None:
    told: list[str] = []
    with filtering(sh("echo Welcome; exec cat"), report=told.append) as voice:

        def has_told() -> bool:
            voice.tend()
            return bool(told)

        eventually(has_told, "word of the banner")
        assert Asked(voice, "x").content == "x"
    assert told == ["/bin/sh said before it was asked: 'Welcome'; dropped"]


@pytest.mark.parametrize(
    "script",
    [
        "for l in open(0): print(l.strip(), 1); print(l.strip(), 2, flush=True)",
        "for l in open(0): print(l.strip(), 1, flush=True); print(l.strip(), 2, flush=True)",
        SLOW,
        POLLS,
    ],
)
def test_the_first_line_answers_and_the_others_answer_nothing_however_fast_it_is_asked(script: str) -> None:
    told: list[str] = []
    with filtering(python(script), report=told.append) as voice:
        assert [Asked(voice, str(number)).content for number in range(20)] == [f"{number} 1" for number in range(20)]
    assert "said beyond its answer: '0 2'; dropped; an answer is one line" in told[0]


def test_what_is_said_in_vain_again_and_again_is_told_now_and_then() -> None:
    told: list[str] = []
    with filtering(sh("while read l; do echo $l; echo; echo more; done"), report=told.append) as voice:
        for number in range(11):
            assert Asked(voice, str(number)).content == str(number)
    assert len(told) == 4
    assert "(so 8 times now)" in told[3]


def test_a_program_that_never_stops_talking_is_not_read_for_ever() -> None:
    told: list[str] = []
    with filtering("yes", report=told.append) as voice:
        assert Asked(voice, "x").content == "y"
        voice.tend()
    assert "more lines; dropped" in told[0]


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
