from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from modelpipes.terminal.waiting import BAR_COLUMNS, draw_share
from tests.peers import LIMIT_S
from tests.shell import UNMEASURED
from tests.terminal.test_output import PACKAGE_DIR

SAY = """
from modelpipes.terminal import output, waiting
output.PROGRESS_S = 0
waiting.FIRST_S, waiting.AGAIN_S = {first}, {again}
with waiting.Waiting() as line:
    line.show("loading a", 0.25)
    line.show("loading b", 0.5, may_wipe={may_wipe})
    line.done()
    line.show("loading c")
output.say("ready")
"""
# A session with the terminal on its stderr, in the foreground of it or, as a group of its own, not.
AT_THE_TERMINAL = "import os, fcntl, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n"
IN_THE_BACKGROUND = AT_THE_TERMINAL + "import subprocess; subprocess.run({command}, process_group=0, check=True)"


def say(first: float = 0, again: float = 0, may_wipe: bool = True) -> str:
    return SAY.format(first=first, again=again, may_wipe=may_wipe)


def in_a_pipe(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, timeout=LIMIT_S, check=True)
    return done.stderr.decode().splitlines()


ENV = os.environ | UNMEASURED | {"PYTHONPATH": PACKAGE_DIR, "TERM": "xterm"}


def at_a_terminal(code: str, columns: int = 80, **env: str) -> str:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], env=ENV | env, stderr=slave)
    os.close(slave)
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while piece := os.read(master, 65536):
            said += piece
    os.close(master)
    assert process.wait(LIMIT_S) == 0, said
    return said.decode()


def test_what_ends_within_a_second_says_nothing() -> None:
    assert in_a_pipe(say(first=1000)) == ["ready"]
    assert at_a_terminal(AT_THE_TERMINAL + say(first=1000)) == "ready\r\n"


def test_in_a_pipe_a_line_comes_now_and_then() -> None:
    assert in_a_pipe(say(again=0)) == ["loading a", "loading b", "loading c", "ready"]
    assert in_a_pipe(say(again=1000)) == ["loading a", "loading c", "ready"]


def test_at_a_terminal_one_line_with_a_bar_is_written_over_and_wiped() -> None:
    said = at_a_terminal(AT_THE_TERMINAL + say())
    assert said.split("\r") == [
        "",
        "loading a █████░░░░░░░░░░░░░░░\x1b[K",
        "loading b ██████████░░░░░░░░░░\x1b[K",
        "\x1b[K",
        "loading c\x1b[K",
        "\x1b[Kready",
        "\n",
    ]


def test_at_a_narrow_terminal_the_line_is_cut() -> None:
    assert max(map(len, re.split(r"\r|\x1b\[K", at_a_terminal(AT_THE_TERMINAL + say(), columns=12)))) == 11


def test_a_line_that_may_not_be_wiped_is_not() -> None:
    assert "loading b\r\n" in at_a_terminal(AT_THE_TERMINAL + say(may_wipe=False))


@pytest.mark.parametrize(
    ("code", "columns", "term"),
    [
        (AT_THE_TERMINAL + say(), 80, "dumb"),
        (AT_THE_TERMINAL + say(), 0, "xterm"),
        (say(), 80, "xterm"),  # a terminal, but not ours
        (IN_THE_BACKGROUND.format(command=[sys.executable, "-c", say()]), 80, "xterm"),
    ],
)
def test_where_a_line_cannot_or_must_not_be_wiped_lines_come_as_in_a_pipe(code: str, columns: int, term: str) -> None:
    said = at_a_terminal(code, columns, TERM=term)
    assert said.splitlines() == ["loading a", "loading b", "loading c", "ready"]


@pytest.mark.parametrize(("share", "full"), [(0, 0), (0.49, 10), (1, BAR_COLUMNS), (7, BAR_COLUMNS), (-1, 0)])
def test_a_bar_is_as_full_as_what_is_done(share: float, full: int) -> None:
    assert draw_share(share) == "█" * full + "░" * (BAR_COLUMNS - full)
