"""Every kind of voice keeps the contract of `modelpipes.chat.voices`."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpipes.chat.guest import Guest
from modelpipes.chat.voices import Voice, terminal
from modelpipes.chat.voices.engine import EngineVoice
from modelpipes.chat.voices.filter import FilterVoice
from modelpipes.chat.voices.jsonfilter import JsonFilterVoice
from modelpipes.chat.voices.program import ExecVoice
from modelpipes.chat.voices.terminal import GuestVoice, TerminalVoice
from modelpipes.engine.lifecycle import Engine
from modelpipes.pipe.message import Sampling
from tests.chat.voices.conformance import CHECKS, Specimen
from tests.chat.voices.conftest import Asked
from tests.models import scripted_model
from tests.peers import LIMIT_S, eventually
from tests.server import Scripted, events, piece

ENDLESS, SILENT, LARGE = "endless", "silent", "large"

EXEC = f"""
read words
case $words in
    {ENDLESS}) echo begun; exec sleep 100;;
    {SILENT}) exec sleep 100;;
    {LARGE}) exec yes;;
    *) echo "$words";;
esac
"""
FILTER = f"""
import os, time
for line in open(0):
    if line in ("{ENDLESS}\\n", "{SILENT}\\n"):
        time.sleep(100)
    while line == "{LARGE}\\n":
        os.write(1, b"x" * 65536)
    print(line, end="", flush=True)
"""
JSON_FILTER = f"""
import json, os, time
for line in open(0):
    words = json.loads(line)["content"]
    if words in ("{ENDLESS}", "{SILENT}"):
        time.sleep(100)
    while words == "{LARGE}":
        print(json.dumps(dict(delta="x" * 65536)), flush=True)
    print(json.dumps(dict(content=words)), flush=True)
"""


class Program(Specimen):
    """A program that does what it is told."""

    can_be_silent = can_be_too_large = can_fail_to_load = True

    def ask_endlessly(self, voice: Voice) -> Asked:
        asked = Asked(voice, ENDLESS)
        eventually(lambda: asked.work.phase == "thinking", "work")
        return asked

    def ask_for_silence(self, voice: Voice) -> Asked:
        return Asked(voice, SILENT)

    def ask_for_too_much(self, voice: Voice) -> Asked:
        return Asked(voice, LARGE)


class Exec(Program):
    """A program started for each message."""

    parallel = 3

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return ExecVoice(shlex.join(["/bin/sh", "-c", EXEC]), parallel=parallel, silence_s=silence_s)

    def make_unloadable(self) -> Voice:
        return ExecVoice("no-such-program")


class Filter(Program):
    """A program kept running."""

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return FilterVoice(shlex.join([sys.executable, "-S", "-c", FILTER]), silence_s=silence_s)

    def make_unloadable(self) -> Voice:
        return FilterVoice("no-such-program")

    def kill(self, voice: Voice) -> bool:
        assert isinstance(voice, FilterVoice) and voice._child
        os.kill(voice._child.pid, signal.SIGKILL)
        return True


class JsonFilter(Filter):
    """A program kept running, in lines of JSON."""

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return JsonFilterVoice(shlex.join([sys.executable, "-S", "-c", JSON_FILTER]), silence_s=silence_s)

    def make_unloadable(self) -> Voice:
        return JsonFilterVoice("no-such-program")


class OwnEngine(Specimen):
    """An engine of ours with tiny-chat; with a model that never ends, where the answer must not."""

    parallel = 2
    can_be_silent = can_be_too_large = can_fail_to_load = True

    def __init__(self, folder: Path) -> None:
        self._endless = folder / "endless.gguf"

    def _voice(self, model: str, parallel: int, silence_s: float) -> EngineVoice:
        return EngineVoice(
            "bob",
            kind="model",
            # llama.cpp's threads wait for each other by spinning: one is faster beside other tests.
            start_engine=lambda: Engine(model, ctx_size=1024, parallel=parallel, engine_args=("--threads", "1")),
            sampling=Sampling(temperature=0.0),
            ctx_size=1024,
            parallel=parallel,
            silence_s=silence_s,
        )

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return self._voice("tiny-chat", parallel, silence_s)

    def make_endless(self, *, parallel: int = 1) -> Voice:
        if not self._endless.exists():
            scripted_model(self._endless, " on and on", endless=True)
        return self._voice(str(self._endless), parallel, LIMIT_S)

    def make_unloadable(self) -> Voice:
        return self._voice("/nonexistent/model.gguf", 1, LIMIT_S)

    def ask_endlessly(self, voice: Voice) -> Asked:
        asked = Asked(voice, "Hello")
        asked.await_words()
        return asked

    def ask_for_silence(self, voice: Voice) -> Asked:
        assert isinstance(voice, EngineVoice) and voice._engine
        os.kill(voice._engine.pid, signal.SIGSTOP)
        return Asked(voice, "Hello")

    def ask_for_too_much(self, voice: Voice) -> Asked:
        return Asked(voice, "too much " * 2000)

    def kill(self, voice: Voice) -> bool:
        assert isinstance(voice, EngineVoice) and voice._engine
        os.kill(voice._engine.pid, signal.SIGKILL)
        return True


class Server(Specimen):
    """A server that somebody else runs."""

    parallel = 2
    shows_life = False  # its pings tell that it lives, not that it works
    can_be_too_large = can_fail_to_load = True

    def __init__(self, server: Scripted) -> None:
        self._server = server
        server.say(piece("stop", content="Yes."), b"[DONE]")

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return EngineVoice("bob", kind="server", server=self._server.url, parallel=parallel, silence_s=silence_s)

    def make_endless(self, *, parallel: int = 1) -> Voice:
        self._server.hold = True
        self._server.body = events(piece(content="on and on"))
        return self.make(parallel=parallel)

    def make_unloadable(self) -> Voice:
        return EngineVoice("bob", kind="server", server="http://127.0.0.1:1")

    def ask_endlessly(self, voice: Voice) -> Asked:
        asked = Asked(voice, "Hello")
        asked.await_words()
        return asked

    def ask_for_too_much(self, voice: Voice) -> Asked:
        refusal = b'{"error": {"code": 400, "message": "the request exceeds the available context size"}}'
        self._server.answers = [(400, [refusal])] * 2
        return Asked(voice, "Hello")


class Terminal(Specimen):
    """A person at a terminal, whose other end the test holds."""

    def __init__(self, keyboard: int) -> None:
        self._keyboard = keyboard
        self._has_left = False

    def _leave(self) -> None:
        self._has_left = True

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return TerminalVoice("me", leave=self._leave)

    def ask(self, voice: Voice, words: str) -> Asked:
        os.write(self._keyboard, f"{words}\n".encode())
        return Asked(voice, "Hello")

    def ask_endlessly(self, voice: Voice) -> Asked:
        asked = Asked(voice, "Hello")
        eventually(lambda: asked.work.phase == "thinking", "wait for words")
        return asked


class Typing(Specimen):
    """A person at the line editor, in whose place the test types."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def make(self, *, parallel: int = 1, silence_s: float = LIMIT_S) -> Voice:
        return GuestVoice(self._guest, leave=lambda: None)

    def ask(self, voice: Voice, words: str) -> Asked:
        self._guest.typed(words)
        return Asked(voice, "Hello")

    def ask_endlessly(self, voice: Voice) -> Asked:
        asked = Asked(voice, "Hello")
        eventually(lambda: asked.work.phase == "thinking", "wait for words")
        return asked


@contextlib.contextmanager
def a_server() -> Iterator[Specimen]:
    server = Scripted()
    try:
        yield Server(server)
    finally:
        server.close()


@contextlib.contextmanager
def a_terminal() -> Iterator[Specimen]:
    ours, theirs = os.openpty()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(terminal, "STDIN", theirs)
            yield Terminal(ours)
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def a_guest() -> Iterator[Specimen]:
    guest = Guest("me")
    try:
        yield Typing(guest)
    finally:
        os.close(guest._wake)  # the end of `with` would do it, which has a terminal


KINDS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Specimen]]] = {
    "guest": lambda _: a_guest(),
    "exec": lambda _: contextlib.nullcontext(Exec()),
    "filter": lambda _: contextlib.nullcontext(Filter()),
    "filter-json": lambda _: contextlib.nullcontext(JsonFilter()),
    "engine": lambda folder: contextlib.nullcontext(OwnEngine(folder)),
    "server": lambda _: a_server(),
    "terminal": lambda _: a_terminal(),
}


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__.removeprefix("check_") for check in CHECKS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_voice(kind: str, check: Callable[[Specimen], None], tmp_path: Path) -> None:
    with KINDS[kind](tmp_path) as specimen:
        check(specimen)
