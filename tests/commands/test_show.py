"""show, as it is run; and its page in a real browser, where there is one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.chat.transcript import VERSION, Header, Transcript, Turn
from modelpipes.pipe.message import Timing, Usage
from tests.browser import Browser, a_browser
from tests.commands.conftest import LIMIT_S, Commands
from tests.shell import Ended

FORMATS = ["text", "markdown", "html", "json"]
WIDE = "https://example.org/" + "a-very-long-path_" * 30
WILD = '<script>document.title = 1</script>\x1b[31mred\x1b[0m & "b" <img src=http://127.0.0.1:9/x onerror=alert(1)>'
SHAPED = f"# A cat\n\n![one](http://127.0.0.1:9/cat.png)\n\n|{'wide|' * 40}\n|{'-|' * 40}\n"
SHOWN = "A cat one" + " wide" * 40  # of it, on a page
TURNS = [
    Turn(0, "hub", "What is a FIFO?"),
    Turn(
        1, "alice", f"```\n{'wide ' * 60}\n```\n{WIDE}\n\n{SHAPED}", "end", Usage(6, 17), Timing(300, 400, 4400, 48.3)
    ),
    Turn(2, "bob" * 10, WILD, "length", Usage(6, 512), Timing(2300, 1400, 12400, 59), (0, 1), "It is\nred."),
    Turn(3, "alice", "日本語" * 60 + "שלום " * 60, "timeout", timing=Timing(5, None, 9000)),
]


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A transcript of wild words."""
    path = tmp_path / "talk.jsonl"
    header = Header(VERSION, "0" * 32, ("alice", "bob"), {"alice": f"model /home/{'x' * 200}.gguf"}, {"rounds": 2})
    with Transcript.create(str(path), header) as transcript:
        transcript.append(*TURNS)
        transcript.end("rounds")
    return path


CALL = (
    "import sys; from modelpipes import commands; sys.exit(commands.run_verb('show', sys.argv[1:], 'modelpipes show'))"
)


def show(run: Commands, *arguments: object, typed: str = "") -> Ended:
    return run.run([sys.executable, "-P", "-c", CALL, *map(str, arguments)], typed=typed, limit_s=LIMIT_S)


def test_text_is_the_default_and_tells_who_said_what_and_how_long_it_took(run: Commands, talk: Path) -> None:
    done = show(run, talk)
    assert (done.code, done.stderr) == (0, "")
    assert done.lines[0] == "alice, bob"
    assert "0 hub\n  What is a FIFO?\n\n1 alice, 17 tokens, 48 tokens/s\n" in done.stdout
    assert "queue 300 ms, first token 400 ms, generation 3.7 s\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert "It is" not in done.stdout
    assert "  | It is\n  | red.\n" in show(run, talk, "--show-thinking").stdout


def test_json_is_exact_and_one_line(run: Commands, talk: Path) -> None:
    done = show(run, talk, "--format", "json")
    [line] = done.lines
    told = json.loads(line)
    assert told["header"]["members"] == ["alice", "bob"]
    assert [turn["content"] for turn in told["turns"]] == [turn.content for turn in TURNS]
    assert told["ends"] == [{"after": 3, "why": "rounds"}]
    assert not any("thinking" in turn for turn in told["turns"])
    assert json.loads(show(run, talk, "--format", "json", "--show-thinking").stdout)["turns"][2]["thinking"]


@pytest.mark.parametrize("form", FORMATS)
def test_stdin_is_shown_as_the_file_is(run: Commands, talk: Path, form: str) -> None:
    done = show(run, "-", "--format", form, typed=talk.read_text())
    assert (done.code, done.stderr, done.stdout) == (0, "", show(run, talk, "--format", form).stdout)


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_transcript_is_shown_and_told_of(run: Commands, tmp_path: Path, form: str) -> None:
    (tmp_path / "empty").touch()
    done = show(run, tmp_path / "empty", "--format", form)
    assert (done.code, done.stderr) == (0, f"modelpipes show: {tmp_path}/empty: is empty\n")
    assert done.stdout


def test_a_transcript_that_is_being_written_is_shown_up_to_its_half_line(run: Commands, talk: Path) -> None:
    with Transcript.resume(str(talk), Header(VERSION, "", ())) as transcript:  # its leader holds the lock
        transcript.append(Turn(4, "bob", "Whole."))
        with open(talk, "ab") as file:
            file.write('{"turn":5,"from":"alice","content":"日'.encode()[:-1])
        done = show(run, talk)
    assert (done.code, done.stderr) == (0, f"modelpipes show: {talk}: its last line is half written\n")
    assert done.stdout.endswith("4 bob\n  Whole.\n")


def test_a_damaged_line_is_told_once_and_the_rest_is_shown(run: Commands, talk: Path) -> None:
    lines = talk.read_bytes().splitlines(keepends=True)
    talk.write_bytes(b"".join([*lines[:2], b"\xff\x1b[31m rubbish\n", *lines[3:], b'{"half']))
    for form in FORMATS:
        done = show(run, talk, "--format", form)
        assert done.code == 1
        assert done.stderr == (
            f"modelpipes show: {talk}: cannot be read, left out: line 3; turn 1 is not where it should be; "
            "its last line is half written\n"
        )
        assert "document" in done.stdout


def test_a_line_of_an_unknown_kind_is_left_out_and_told_of(run: Commands, talk: Path) -> None:
    talk.write_bytes(talk.read_bytes() + b'{"type":"vote","for":"alice"}\n')
    done = show(run, talk)
    assert done.code == 0
    assert done.stderr == f"modelpipes show: {talk}: of a kind unknown here, left out: line 7\n"
    assert "What is a FIFO?" in done.stdout


def test_what_is_no_transcript_is_refused_with_one_line(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear diary\n")
    os.mkfifo(tmp_path / "fifo")
    for name, complaint in {
        "diary": "is no transcript",
        "fifo": "must be a regular file",
        ".": "must be a regular file",
        "none": "cannot open the transcript: No such file",
    }.items():
        done = show(run, tmp_path / name)
        assert (done.code, done.stdout) == (1, "")
        assert complaint in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert show(run, "-", typed="dear diary").code == 1


def test_wrong_usage_is_2(run: Commands, talk: Path) -> None:
    for arguments in ([], [talk, "--format", "pdf"], [talk, "--max-seconds", "0"]):
        done = show(run, *arguments)
        assert (done.code, done.stdout) == (2, "")


def test_stdin_that_never_ends_is_waited_for_until_the_deadline(run: Commands) -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", CALL, "-", "--max-seconds", "200ms"],
            stdin=reader, capture_output=True, env=run.env, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stdout) == (124, b"")
    assert b"--max-seconds" in done.stderr


def test_a_reader_who_has_enough_ends_it_quietly(run: Commands, talk: Path) -> None:
    with Transcript.resume(str(talk), Header(VERSION, "", ())) as transcript:
        transcript.append(*(Turn(n, "hub", "much " * 1000) for n in range(4, 200)))
    call = subprocess.Popen(
        [sys.executable, "-P", "-c", CALL, str(talk)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=run.env
    )
    with call:
        assert call.stdout and call.stderr
        assert call.stdout.readline() == b"alice, bob\n"
        call.stdout.close()
        assert (call.stderr.read(), call.wait(LIMIT_S)) == (b"", 0)


@pytest.mark.parametrize("columns", [24, 80])
def test_on_a_terminal_no_line_is_wider_than_it(run: Commands, talk: Path, columns: int) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    call = subprocess.Popen([sys.executable, "-P", "-c", CALL, str(talk)], stdout=slave, env=run.env)
    os.close(slave)
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while piece := os.read(master, 65536):
            said += piece
    os.close(master)
    assert call.wait(LIMIT_S) == 0
    lines = said.decode().split("\r\n")
    assert max(len(line) for line in lines if line.isascii()) == columns
    assert all(len(line) + sum(c in "日本語" for c in line) <= columns for line in lines)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with a_browser(tmp_path / "profile") as browser:
        yield browser


def test_a_browser_shows_the_page_on_a_phone_and_a_desk_without_scrolling_sideways_and_fetches_nothing(
    run: Commands, talk: Path, tmp_path: Path, browser: Browser
) -> None:
    page = tmp_path / "talk.html"
    page.write_text(show(run, talk, "--format", "html", "--show-thinking").stdout)
    backgrounds = set()
    for width in (320, 390, 1200):
        for scheme in ("light", "dark"):
            browser.open(page.as_uri(), width, scheme)
            assert browser.value("innerWidth") == width
            browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert browser.value("document.documentElement.scrollWidth") <= width
            inside = ":not(pre *, table *)"  # both scroll by themselves
            edges = f"[...document.querySelectorAll('{inside}')].map(each => each.getBoundingClientRect().right)"
            assert browser.value(f"Math.max(...{edges})") <= width
            backgrounds.add((scheme, browser.value("getComputedStyle(document.body).backgroundColor")))
            asked = [
                e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
            ]
            assert asked == [page.as_uri()]
            assert [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")] == []
    assert len(backgrounds) == 2
    assert browser.value("document.scripts.length + document.images.length") == 0
    assert browser.value("document.title") == "alice, bob"
    words = browser.value("[...document.querySelectorAll('article > .words')].map(each => each.textContent)")
    said = [turn.content.replace(SHAPED, SHOWN).replace("```", "") for turn in TURNS]
    assert list(map(str.split, words)) == [each.replace("\x1b[31m", "").replace("\x1b[0m", "").split() for each in said]
    assert words[2] == WILD.replace("\x1b[31m", "").replace("\x1b[0m", "")  # who is no member's stand as they are
