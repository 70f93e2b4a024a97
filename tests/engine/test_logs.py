"""What an engine says: kept, followed, and written to a file that stays small."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.child import Child
from modelpipes.engine.logs import FOLLOWED_LINES, KEPT_LINE_BYTES, KEPT_LINES, Log, RotatedFile
from modelpipes.values.deadline import Deadline

LIMIT_S = 30.0


def test_two_files_of_whole_lines_stay_within_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = RotatedFile(str(path), limit_bytes=1000)
    for number in range(500):
        file.write(f"line {number}\n".encode())
        assert path.stat().st_size <= 1000
    file.close()
    before = Path(f"{path}.1")
    assert before.stat().st_size <= 1000
    lines = (before.read_text() + path.read_text()).splitlines()
    assert lines == [f"line {number}" for number in range(500 - len(lines), 500)]
    assert {entry.name for entry in tmp_path.iterdir()} == {"log", "log.1"}
    assert file.dropped_bytes == 0


@given(st.lists(st.binary(max_size=200), max_size=30), st.integers(1, 64))
def test_whatever_is_written_the_files_hold_its_end(pieces: list[bytes], limit: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log")
        file = RotatedFile(path, limit_bytes=limit)
        for piece in pieces:
            file.write(piece)
        file.close()
        held = [Path(name).read_bytes() for name in (path + ".1", path) if os.path.exists(name)]
        assert all(len(part) <= limit for part in held)
        assert b"".join(pieces).endswith(b"".join(held))


def test_a_file_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    for _ in range(2):
        file = RotatedFile(str(tmp_path / "log"))
        file.write(b"one\n")
        file.close()
    assert (tmp_path / "log").read_text() == "one\none\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_drops_and_counts() -> None:
    file = RotatedFile("/dev/full")
    file.write(b"lost\n")
    file.write(b"lost too\n")
    assert file.dropped_bytes == 14
    assert file.problem == "No space left on device"


def test_writing_goes_on_once_the_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    file = RotatedFile(str(folder / "log"))
    file.write(b"lost\n")
    folder.mkdir()
    file.write(b"kept\n")
    file.close()
    assert file.dropped_bytes == 5
    assert (folder / "log").read_text() == "kept\n"


def test_a_link_or_a_pipe_in_its_place_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        file = RotatedFile(str(tmp_path / name))
        file.write(b"lost\n")
        assert file.dropped_bytes == 5
    assert not (tmp_path / "target").exists()


def test_the_newest_lines_are_kept_however_they_come() -> None:
    log = Log()
    for byte in b"one\r\ntwo\nthr":
        log.take(bytes([byte]))
    assert log.last() == ["one", "two"]
    log.note("of ours")
    assert log.last() == ["one", "two", "thr", "of ours"]
    assert log.last(1) == ["of ours"]
    assert log.last(0) == []


def test_it_stays_small_whatever_is_said() -> None:
    log = Log()
    log.take(b"x" * 100_000)
    log.take(b"y" * 100_000 + b"\n")
    assert log.last() == ["x" * KEPT_LINE_BYTES]
    log.take(b"line\n" * (KEPT_LINES * 2))
    assert len(log.last(10 * KEPT_LINES)) == KEPT_LINES


def test_several_followers_read_each_line_once() -> None:
    log = Log()
    log.take(b"before\n")
    with log.follow() as one, log.follow(backlog=5) as two:
        log.take(b"first\nsecond\n")
        assert one.read(Deadline.after(LIMIT_S)) == ["first", "second"]
        assert two.read(Deadline.after(LIMIT_S)) == ["before", "first", "second"]
        assert one.read(Deadline.after(0)) == []


def test_a_follower_that_waits_is_woken_by_a_line_and_by_its_end() -> None:
    log = Log()
    read: list[list[str]] = []
    follower = log.follow()

    def wait_twice() -> None:
        read.append(follower.read(Deadline.after(LIMIT_S)))
        log.note("read")
        read.append(follower.read(Deadline.after(LIMIT_S)))
        read.append(follower.read(Deadline.after(LIMIT_S)))

    thread = threading.Thread(target=wait_twice)
    with log.follow() as watch:
        thread.start()
        log.take(b"line\n")
        lines: list[str] = []
        while "read" not in lines:
            lines += watch.read(Deadline.after(LIMIT_S))
    follower.close()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert read[:2] == [["line"], ["read"]]


def test_a_slow_follower_loses_the_oldest_lines_and_is_told_how_many() -> None:
    log = Log()
    with log.follow() as follower:
        log.take(b"".join(b"%d\n" % number for number in range(FOLLOWED_LINES + 7)))
        assert follower.read(Deadline.after(0))[0] == "7"
        assert follower.dropped == 7


def test_a_follower_can_be_told_instead_of_waiting() -> None:
    log = Log()
    told: list[int] = []
    with log.follow(notify=lambda: told.append(len(log.last()))) as follower:
        log.take(b"half")
        assert told == []
        log.take(b" line\n")
        assert told == [1]
        assert follower.read(Deadline.after(0)) == ["half line"]
    log.take(b"after\n")
    assert told == [1]


def test_a_childs_output_arrives_whole(tmp_path: Path) -> None:
    log = Log(RotatedFile(str(tmp_path / "log")))
    program = "import sys\nfor i in range(5000): print(i, file=sys.stderr)"
    with log.follow() as follower, Child([sys.executable, "-c", program], name="writer", sink=log.take) as child:
        child.wait(Deadline.after(LIMIT_S))
        child.last_lines()
        log.note("end")
        seen: list[str] = []
        while "end" not in seen:
            seen = seen[-1:] + follower.read(Deadline.after(LIMIT_S))
    log.close()
    assert (tmp_path / "log").read_text().splitlines() == [*map(str, range(5000)), "end"]
