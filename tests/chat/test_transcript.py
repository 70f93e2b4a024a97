from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelpipes
from modelpipes.chat.transcript import KEPT_TURNS, VERSION, Header, Transcript, Turn
from modelpipes.errors import FileError, UsageError
from modelpipes.pipe.message import Timing, Usage

HEADER = Header(VERSION, "0" * 32, ("alice", "bob"), {"alice": "tiny-chat"}, {"rounds": 4, "seed": None})
OTHER = Header(VERSION, "1" * 32, ("carol",))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TURNS = st.lists(TEXT, max_size=5).map(lambda texts: [Turn(n, "hub", text) for n, text in enumerate(texts)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(modelpipes.__file__).parent.parent)}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "chat.jsonl")


def write(path: str, turns: list[Turn]) -> bytes:
    with Transcript.create(path, HEADER) as transcript:
        for turn in turns:
            transcript.append(turn)
    return Path(path).read_bytes()


def test_every_turn_is_one_line_of_json_after_the_header(path: str) -> None:
    with Transcript.create(path, HEADER) as transcript:
        transcript.append(Turn(0, "hub", "Hello.\n"))
        transcript.append(
            Turn(1, "alice", "Hi 🙂", "end", Usage(3, 2), Timing(total_ms=5.0), dropped=(1, 2), thinking="hm")
        )
        transcript.end("rounds")
    assert [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()] == [
        {
            "type": "conversation",
            "version": 1,
            "id": "0" * 32,
            "members": ["alice", "bob"],
            "voices": {"alice": "tiny-chat"},
            "settings": {"rounds": 4, "seed": None},
        },
        {"turn": 0, "from": "hub", "content": "Hello.\n"},
        {
            "turn": 1,
            "from": "alice",
            "content": "Hi 🙂",
            "stop": "end",
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            "timing": {"total_ms": 5.0},
            "dropped": [1, 2],
            "thinking": "hm",
        },
        {"type": "end", "why": "rounds"},
    ]


def test_a_turn_is_in_the_file_as_soon_as_it_is_appended(path: str) -> None:
    with Transcript.create(path, HEADER) as transcript:
        transcript.append(Turn(0, "hub", "Hello."))
        assert Path(path).read_bytes().endswith(b'"Hello."}\n')


def test_a_resumed_transcript_has_its_turns_and_goes_on(path: str) -> None:
    turns = [Turn(0, "hub", "Hello."), Turn(1, "alice", "Hi", "end", Usage(3, 2), Timing(total_ms=5.0), (1, 2), "hm")]
    write(path, turns)
    with Transcript.resume(path, OTHER) as transcript:
        assert (transcript.header, transcript.after(-1), transcript.last) == (HEADER, turns, 1)
        transcript.end("rounds")
    with Transcript.resume(path, OTHER) as transcript:
        transcript.append(Turn(2, "bob", "Oh"))
    with Transcript.resume(path, OTHER) as transcript:
        assert transcript.after(-1) == [*turns, Turn(2, "bob", "Oh")]


@pytest.mark.parametrize("is_written", [True, False])
def test_turns_too_old_to_be_in_memory_are_told_all_the_same(path: str, is_written: bool) -> None:
    turns = [Turn(n, ("hub", "alice", "bob")[n % 3], f"turn {n}") for n in range(KEPT_TURNS + 9)]
    with Transcript.create(path, HEADER) if is_written else Transcript.unwritten(HEADER) as transcript:
        for turn in turns:
            transcript.append(turn)
            transcript.end("rounds")
        for known in (-1, 0, 8, KEPT_TURNS, len(turns) - 1, len(turns)):
            assert transcript.after(known) == turns[known + 1 :]
        transcript.append(Turn(len(turns), "hub", "it is still written at the end"))
        assert transcript.after(-1) == [*turns, *transcript.after(len(turns) - 1)]
    if is_written:
        with Transcript.resume(path, OTHER) as transcript:
            assert transcript.after(-1)[:-1] == turns


def test_speakers_are_in_the_order_in_which_they_spoke_last(path: str) -> None:
    write(path, [Turn(0, "hub", ""), Turn(1, "bob", ""), Turn(2, "alice", ""), Turn(3, "bob", "")])
    with Transcript.resume(path, OTHER) as transcript:
        assert transcript.speakers == ["hub", "alice", "bob"]


def test_resuming_where_there_is_no_file_begins_one(path: str) -> None:
    with Transcript.resume(path, HEADER) as transcript:
        assert (transcript.header, transcript.after(-1), transcript.last) == (HEADER, [], -1)
    with Transcript.resume(path, OTHER) as transcript:
        assert transcript.header == HEADER


def test_an_existing_conversation_is_never_begun_again(path: str) -> None:
    content = write(path, [Turn(0, "hub", "Hello.")])
    with pytest.raises(UsageError, match="--resume"):
        Transcript.create(path, OTHER)
    assert Path(path).read_bytes() == content


def test_a_conversation_may_begin_in_an_empty_file(path: str) -> None:
    Path(path).touch()
    write(path, [])
    with Transcript.resume(path, OTHER) as transcript:
        assert transcript.header == HEADER


def test_a_new_file_is_for_us_alone_whatever_the_umask(path: str) -> None:
    umask = os.umask(0)
    try:
        write(path, [])
    finally:
        os.umask(umask)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with Transcript.resume(path, HEADER) as transcript:
        assert transcript.warning == ""


def test_a_file_that_others_may_read_stays_so_and_is_told_of(path: str) -> None:
    Path(path).touch()
    Path(path).chmod(0o640)
    write(path, [])
    with Transcript.resume(path, HEADER) as transcript:
        assert transcript.warning == f"{path}: others may read what is said (mode 0640); chmod 600 {path}"
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert Transcript.unwritten(HEADER).warning == ""


@given(TURNS, st.data())
def test_a_file_cut_at_any_byte_goes_on_after_its_last_whole_turn(turns: list[Turn], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/chat.jsonl"
        content = write(path, turns)
        cut = data.draw(st.integers(min_value=0, max_value=len(content)))
        Path(path).write_bytes(content[:cut])
        with Transcript.resume(path, HEADER) as transcript:
            kept = transcript.last + 1
            assert transcript.after(-1) == turns[:kept]
            transcript.append(Turn(kept, "bob", "on"))
        whole = content[:cut].count(b"\n") - 1
        assert kept in (max(0, whole), whole + 1)
        with Transcript.resume(path, OTHER) as transcript:
            assert transcript.header == HEADER
            assert transcript.after(-1) == [*turns[:kept], Turn(kept, "bob", "on")]


def test_a_short_file_cut_at_every_byte_goes_on(path: str) -> None:
    turns = [Turn(0, "hub", "Hé"), Turn(1, "alice", "🙂")]
    content = write(path, turns)
    for cut in range(len(content) + 1):
        Path(path).write_bytes(content[:cut])
        with Transcript.resume(path, HEADER) as transcript:
            assert transcript.after(-1) == turns[: transcript.last + 1]
        assert content.startswith(Path(path).read_bytes())
        assert Path(path).read_bytes().endswith(b"\n")


def test_a_last_line_of_zeros_after_a_crash_is_removed(path: str) -> None:
    content = write(path, [Turn(0, "hub", "Hello.")])
    Path(path).write_bytes(content + b"\0" * 100)
    with Transcript.resume(path, OTHER) as transcript:
        assert transcript.last == 0
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"turn":1,"from":"al\n', "line 3 is damaged"),
        (b'{"turn":1,"from":"alice","content":5}\n', "line 3 is damaged"),
        (b'{"turn":1,"from":"alice","content":"\xff"}\n', "line 3 is damaged"),
        (b"hello\n", "line 3 is damaged"),
        (b'{"turn":2,"from":"alice","content":"x"}\n', "line 3 has turn 2 where turn 1 should follow"),
        (b'{"turn":0,"from":"alice","content":"x"}\n', "line 3 has turn 0 where turn 1 should follow"),
        (b'{"type":"what"}\n', "line 3 is of unknown type 'what'"),
    ],
)
def test_a_bad_line_in_the_middle_is_named_and_nothing_is_changed(path: str, line: bytes, complaint: str) -> None:
    content = write(path, [Turn(0, "hub", "Hello.")]) + line + b'{"turn":1,"from":"alice","content":"Hi"}\n'
    Path(path).write_bytes(content)
    with pytest.raises(FileError, match=complaint):
        Transcript.resume(path, OTHER)
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"dear diary", b"dear diary\n", b"{}", b'{"turn":0,"from":"hub","content":"x"}\n', b"\n", b"[1]", b"\0"]
)
def test_a_file_of_something_else_is_refused_and_kept(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(FileError, match="is no transcript"):
        Transcript.resume(path, HEADER)
    assert Path(path).read_bytes() == content


def test_a_file_of_a_newer_version_is_refused(path: str) -> None:
    Path(path).write_bytes(write(path, []).replace(b'"version":1', b'"version":2'))
    with pytest.raises(FileError, match="version 2"):
        Transcript.resume(path, HEADER)


def test_a_turn_out_of_order_is_refused(path: str) -> None:
    with Transcript.create(path, HEADER) as transcript, pytest.raises(FileError, match="turn 0 should follow"):
        transcript.append(Turn(1, "alice", "Hi"))


def test_what_is_no_unicode_text_is_refused_and_leaves_nothing(path: str) -> None:
    with Transcript.create(path, HEADER) as transcript:
        with pytest.raises(FileError, match="not Unicode"):
            transcript.append(Turn(0, "hub", "\ud800"))
        transcript.append(Turn(0, "hub", "Hello."))
        assert transcript.last == 0


def test_a_second_leader_is_refused_until_the_first_is_done(path: str) -> None:
    with Transcript.create(path, HEADER):
        for begin in (Transcript.create, Transcript.resume):
            with pytest.raises(FileError, match="another leader"):
                begin(path, OTHER)
    Transcript.resume(path, OTHER).close()


def test_a_leader_that_was_killed_holds_nothing(path: str) -> None:
    code = f"""
import os, signal
from modelpipes.chat.transcript import *
transcript = Transcript.create({path!r}, Header(1, "x", ("alice",)))
transcript.append(Turn(0, "hub", "Hello."))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    with Transcript.resume(path, HEADER) as transcript:
        assert transcript.after(-1) == [Turn(0, "hub", "Hello.")]


def test_a_full_disk_loses_no_turn_and_the_transcript_goes_on_when_there_is_room(path: str) -> None:
    code = f"""
import resource
from modelpipes.errors import FileError
from modelpipes.chat.transcript import *
with Transcript.create({path!r}, Header(1, "x", ("alice",))) as transcript:
    transcript.append(Turn(0, "hub", "Hello."))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        transcript.append(Turn(1, "alice", "x" * 2000))
    except FileError as error:
        print(error)
    transcript.append(Turn(1, "alice", "short"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, timeout=30, check=True, capture_output=True, text=True
    )
    assert done.stdout == (
        f"{path}: cannot write turn 1: File too large; every turn before is safe: go on with --resume\n"
    )
    with Transcript.resume(path, HEADER) as transcript:
        assert transcript.after(-1) == [Turn(0, "hub", "Hello."), Turn(1, "alice", "short")]


def test_a_device_is_refused() -> None:
    with pytest.raises(FileError, match="regular file"):
        Transcript.create("/dev/full", HEADER)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(FileError, match="regular file"):
            Transcript.resume(str(path), HEADER)
    with pytest.raises(FileError, match="Is a directory"):
        Transcript.resume(str(tmp_path), HEADER)
    with pytest.raises(FileError, match="No such file"):
        Transcript.resume(str(tmp_path / "no" / "chat.jsonl"), HEADER)


def test_no_descriptor_is_left_open(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    Path(path).write_bytes(b"dear diary")
    for begin in (Transcript.create, Transcript.resume):
        with pytest.raises((UsageError, FileError)):
            begin(path, HEADER)
    assert os.listdir("/proc/self/fd") == before
