"""show, as it is run; and its page in a real browser, where there is one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelpipes.chat.transcript import VERSION, Header, Transcript, Turn
from modelpipes.pipe.message import Timing, Usage
from modelpipes.values.deadline import Deadline
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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
BROWSER_S = 60.0  # to start on a busy machine, for the first time


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


class Browser:
    """A headless Chromium, spoken to over two pipes: Chrome DevTools Protocol, one JSON object ended by NUL."""

    def __init__(self, path: str, profile: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # It reads descriptor 3 and writes 4, whatever numbers the pipes have here.
        there = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (to_read, to_write)]
        hop = "import os, sys; _, r, w, *do = sys.argv; os.dup2(int(r), 3); os.dup2(int(w), 4); os.execv(do[0], do)"
        # A sandbox of its own is what Chromium cannot make as root, nor in most containers.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", hop, *map(str, there), path, *flags, f"--user-data-dir={profile}"],
            pass_fds=there, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile)},
        )  # fmt: skip
        for each in (to_read, to_write, *there):
            os.close(each)
        self._deadline = Deadline.after(BROWSER_S)
        self._data = b""
        self._count = 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Return when it has a page, of which it tells us."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        self._count += 1
        order = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(order).encode() + b"\0")
        while (message := self._next()).get("id") != self._count:
            self.events.append(message)
        assert "result" in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Load a page on a screen of this width, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(LIMIT_S)
        os.close(self._to)
        os.close(self._from)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._data:
            readable, _, _ = select.select([self._from], [], [], self._deadline.remaining_s())
            assert readable, "the browser said nothing before the deadline"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser ended"
            self._data += piece
        line, _, self._data = self._data.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip(f"no browser on the PATH: looked for {', '.join(BROWSERS)}")
    with contextlib.closing(Browser(BROWSER, tmp_path / "profile")) as browser:
        browser.begin()
        yield browser


def test_a_browser_shows_the_page_on_a_phone_and_a_desk_without_scrolling_sideways_and_fetches_nothing(
    run: Commands, talk: Path, tmp_path: Path, browser: Browser
) -> None:
    page = tmp_path / "talk.html"
    page.write_text(show(run, talk, "--format", "html", "--show-thinking").stdout)
    backgrounds = set()
    for width in (320, 390, 1200):
        for scheme in ("light", "dark"):
            browser.open(page, width, scheme)
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
