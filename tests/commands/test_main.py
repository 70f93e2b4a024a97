from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelpipes import __version__
from modelpipes.commands import VERBS
from tests.commands.conftest import LIMIT_S, Commands

SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_verb_it_tells_what_there_is(run: Commands, arguments: list[str]) -> None:
    told = run.run([sys.executable, "-P", "-m", "modelpipes", *arguments])
    assert (told.code, told.stderr) == (0, "")
    for verb, (command, _) in VERBS.items():
        assert f"  {verb} " in told.stdout and f" {command}" in told.stdout
    assert max(map(len, told.lines)) <= 80


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_it_tells_its_version(run: Commands, arguments: list[str]) -> None:
    told = run.run([sys.executable, "-P", "-m", "modelpipes", *arguments])
    assert (told.code, told.stdout, told.stderr) == (0, f"modelpipes {__version__}\n", "")


@pytest.mark.parametrize("word", ["talk", "--nonsense", "-x"])
def test_an_unknown_verb_is_wrong_usage_and_names_those_there_are(run: Commands, word: str) -> None:
    told = run.run([sys.executable, "-P", "-m", "modelpipes", word, "more"])
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr == f"modelpipes: no command '{word}'; there are {', '.join(VERBS)} (see modelpipes --help)\n"


@pytest.mark.parametrize("verb", [verb for verb, (command, _) in VERBS.items() if command])
def test_every_command_goes_by_its_own_name_too(run: Commands, verb: str) -> None:
    name = VERBS[verb][0]
    told = run.run([SCRIPTS / name, "--version"])
    assert (told.code, told.stdout) == (0, f"{name} {__version__}\n")
    wrong = run.run([SCRIPTS / name, "--nonsense"])
    assert (wrong.code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith(f"{name}: ") and wrong.stderr.endswith(f" (see {name} --help)\n")
    link = run.cwd / name
    link.symlink_to(SCRIPTS / "modelpipes")
    assert run.run([link, "--version"]).stdout == f"{name} {__version__}\n"


def test_a_verb_may_be_called_by_its_commands_name(run: Commands) -> None:
    assert run("list-seats", "--help").stdout.startswith("Usage: modelpipes seats ")


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["ask", "--help"], ["ask", "--version"]])
def test_help_for_a_reader_who_has_gone_is_no_failure(run: Commands, words: list[str], buffered: str) -> None:
    """The interpreter's end writes what click left in a buffer, and says so in its own words where it cannot."""
    command = [sys.executable, "-P", "-m", "modelpipes", *words]
    reader, writer = os.pipe()
    os.close(reader)
    env = {**run.env, "PYTHONUNBUFFERED": buffered}
    gone = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=env, timeout=LIMIT_S, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (0, b"")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_help_is_written_as_utf_8_whatever_the_locale(run: Commands, encoding: str) -> None:
    assert run("ask", "--help", PYTHONIOENCODING=encoding).code == 0


def test_without_a_stdout_the_work_is_done_all_the_same(run: Commands) -> None:
    run("setup", "bob")
    ended = run.run(["sh", "-c", f"{' '.join(run.command('cleanup'))} >&-"])
    assert (ended.code, ended.stderr) == (0, "")
    assert not os.path.exists(run.room.path)


def test_with_closed_descriptors_nothing_is_written_into_the_wrong_file(run: Commands) -> None:
    chat = " ".join(run.command("chat", "--filter", "a=cat", "--filter", "b=cat", "--rounds", "1"))
    ended = run.run(["sh", "-c", f"{chat} --transcript talk.jsonl 0<&- 1>&- 2>&-"])
    assert ended.code == 1
    assert all(line.startswith("{") for line in (run.cwd / "talk.jsonl").read_text().splitlines())
    ended = run.run(["sh", "-c", f"{chat} --opening - 0<&-"])
    assert (ended.code, ended.stderr) == (2, "modelpipes chat: the opening is empty\n")


def test_an_early_ctrl_c_ends_it_without_a_traceback(run: Commands) -> None:
    """Python drops an exception that a signal raises in the clean-up of an import; the command then went on, deaf."""
    run("setup", "bob")
    process = run.start("ask", "bob", "x")
    maps = Path(f"/proc/{process.pid}/maps")
    while "msgspec" not in maps.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (130, -signal.SIGINT)
    assert stderr == b""
