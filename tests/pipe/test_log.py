"""The log: a line for each thing done, whole whoever else writes to it, and never in the way."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import FileError
from modelpipes.pipe.log import LINE_BYTES, NO_LOG, Log
from tests.peers import LIMIT_S, ROOT

LINE = re.compile(r'(\S+Z) (\S+) (\S+)((?: [a-z_]+=(?:[^\s"=]+|"(?:[^"\\]|\\.)*"))*)\n')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def facts(line: str) -> dict[str, str]:
    """What a line says, by name."""
    match = LINE.fullmatch(line)
    assert match, line
    pairs = re.findall(r' ([a-z_]+)=([^\s"]+|"(?:[^"\\]|\\.)*")', match[4])
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def test_a_line_says_when_who_what_which_how_large_and_how_long(path: Path) -> None:
    Log(str(path)).note("bob", "answered", id="6f1c", to="hub", stop="end", turn=None, content="It is 7.", ms=27.4321)
    [line] = path.read_text().splitlines(keepends=True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z bob answered .*\n", line)
    assert facts(line) == {"id": "6f1c", "to": "hub", "stop": "end", "bytes": "8", "ms": "27.4"}


def test_words_are_told_only_where_they_are_wanted_and_bytes_are_those_of_utf8(path: Path) -> None:
    for with_content in (False, True):
        Log(str(path), with_content=with_content).note("bob", "heard", content='Grüße\n"x"')
    without, with_ = map(facts, path.read_text().splitlines(keepends=True))
    assert without == {"bytes": "11"}
    assert with_ == {"bytes": "11", "content": 'Grüße\n"x"'}


WILD = st.text() | st.text(' "=\\\n\x1b\u202eäé日🙂', max_size=9000) | st.just("x" * 9000)


@given(st.dictionaries(st.sampled_from(["id", "to", "by", "why", "reason", "voice"]), WILD | st.integers()), WILD)
def test_a_line_is_one_whole_line_of_at_most_a_pipes_worth_whatever_is_said(
    tmp_path_factory: pytest.TempPathFactory, told: dict[str, str], content: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "wild"
    path.unlink(missing_ok=True)
    Log(str(path), with_content=True).note("bob", "heard", content=content, **told)  # type: ignore[arg-type]  # ms is none of them
    data = path.read_bytes()
    assert len(data) <= LINE_BYTES
    line = data.decode()
    assert line.count("\n") == 1 and not set(line) & set("\x1b\u202e\x9b")
    assert facts(line).keys() == {*told, "bytes", "content"}


def test_what_is_too_long_is_cut_at_its_end(path: Path) -> None:
    Log(str(path), with_content=True).note("bob", "heard", content="日" * 5000)
    line = path.read_text()
    said = facts(line)["content"]
    assert said.lstrip("日") == "…"
    assert LINE_BYTES - 3 <= len(line.encode()) <= LINE_BYTES  # as many as there is room for


MANY = """
import sys
from modelpipes.pipe.log import Log
log = Log(sys.argv[1], with_content=True)
for number in range(300):
    log.note(sys.argv[2], "heard", id=str(number), content=sys.argv[2] * 2000)
"""


def test_lines_of_several_processes_stay_whole(path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "pipes")}
    writers = [subprocess.Popen([sys.executable, "-c", MANY, path, name], env=env) for name in "abc"]
    assert [writer.wait(LIMIT_S) for writer in writers] == [0, 0, 0]
    lines = path.read_text().splitlines(keepends=True)
    for name in "abc":
        theirs = [facts(line) for line in lines if f" {name} heard " in line]
        assert [each["id"] for each in theirs] == [str(number) for number in range(300)]
        assert {each["content"] for each in theirs} == {name * 2000}
    assert len(lines) == 900


def test_a_new_file_is_for_us_alone_and_one_that_is_there_keeps_its_mode_and_lines(path: Path) -> None:
    Log(str(path)).note("bob", "left")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    Log(str(path)).note("bob", "left")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert len(path.read_text().splitlines()) == 2


def test_a_file_that_was_rotated_away_is_made_anew(path: Path) -> None:
    log = Log(str(path))
    log.note("bob", "seated")
    path.rename(path.with_suffix(".1"))
    log.note("bob", "left")
    assert " left" in path.read_text()


@pytest.mark.parametrize(("name", "why"), [("none/log", "no such file or directory"), (".", "is a directory")])
def test_a_file_that_cannot_be_written_is_said_at_once(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(FileError, match=f"{name}: the log cannot be written: {why}"):
        Log(str(tmp_path / name))


def test_a_fifo_without_a_reader_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(FileError, match="the log cannot be written"):
        Log(str(path))


def test_a_full_disk_is_told_once_and_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("/dev/full")
    for _ in range(3):
        log.note("bob", "heard")
    assert capfd.readouterr().err == (
        "/dev/full: the log has gaps from here on: no space left on device; all else goes on\n"
    )


CRAMPED = """
import resource, sys
from modelpipes.pipe.log import Log
log = Log(sys.argv[1])
log.note("bob", "seated")
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
log.note("bob", "heard")
log.note("bob", "answered")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.note("bob", "left")
"""


def test_after_a_line_that_was_cut_off_the_next_one_stands_alone(path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "pipes")}
    done = subprocess.run(
        [sys.executable, "-c", CRAMPED, path], env=env, capture_output=True, timeout=LIMIT_S, check=True
    )
    first, _, last = path.read_text().splitlines()
    assert first.endswith(" bob seated") and last.endswith(" bob left")
    assert len(done.stderr.splitlines()) == 1


def test_who_looks_on_is_told_the_same_lines(path: Path) -> None:
    seen: list[str] = []
    Log(str(path), echo=seen.append).note("bob", "ready", ms=1)
    Log(echo=seen.append).note("bob", "left")
    assert path.read_text() == f"{seen[0]}\n"
    assert seen[1].endswith(" bob left")


def test_where_nobody_wants_one_nothing_is_written() -> None:
    assert not NO_LOG.is_on
    NO_LOG.note("bob", "heard", content="x")
