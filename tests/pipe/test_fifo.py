"""One FIFO, and everything that may stand in its place."""

from __future__ import annotations

import os
import re
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpipes.errors import RoomError
from modelpipes.lockfile import is_same
from modelpipes.pipe import fifo
from tests.peers import LIMIT_S

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NOBODY = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")

PIPE_BYTES = 65536


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a_to_b")


def make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def make_foreign(path: str) -> None:
    os.mkfifo(path, 0o666)
    os.chown(path, NOBODY, NOBODY)


def make_link(path: str) -> None:
    os.mkfifo(f"{path}.real", 0o600)
    os.symlink(f"{path}.real", path)


STRANGERS: list[tuple[Callable[[str], object], str]] = [
    (lambda path: Path(path).write_text("echo hi > missing"), "not a FIFO; move it away and run setup-pipes again"),
    (os.mkdir, "not a FIFO|is a directory"),
    (make_socket, "not a FIFO; move it away and run setup-pipes again"),
    (make_link, "a symbolic link, which is never followed; remove it and run setup-pipes again"),
    (lambda path: os.symlink("nowhere", path), "a symbolic link, which is never followed"),
]
NAMES = ["file", "directory", "socket", "link", "dangling link"]


@pytest.mark.parametrize("act", [fifo.make, fifo.check, fifo.open_read, fifo.open_write])
@pytest.mark.parametrize(("stranger", "says"), STRANGERS, ids=NAMES)
def test_what_is_no_fifo_is_one_clear_line(
    path: str, stranger: Callable[[str], object], says: str, act: Callable[[str], object]
) -> None:
    stranger(path)
    with pytest.raises(RoomError) as e:
        act(path)
    assert re.fullmatch(f"{re.escape(path)}: ({says}).*", str(e.value))


@needs_root
@pytest.mark.parametrize("act", [fifo.make, fifo.check, fifo.open_read])
def test_a_fifo_of_somebody_else_is_refused(path: str, act: Callable[[str], object]) -> None:
    make_foreign(path)
    with pytest.raises(RoomError, match=f"{path}: belongs to user {NOBODY}, not to us"):
        act(path)


@needs_root
def test_a_fifo_of_somebody_else_is_not_written_to_even_where_it_is_read(path: str) -> None:
    make_foreign(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(RoomError, match=f"belongs to user {NOBODY}"):
            fifo.open_write(path)
    finally:
        os.close(reader)


@pytest.mark.parametrize("act", [fifo.check, fifo.open_read, fifo.open_write])
def test_a_room_that_is_missing_is_one_clear_line(tmp_path: Path, act: Callable[[str], object]) -> None:
    missing = str(tmp_path / "room" / "a_to_b")
    with pytest.raises(RoomError, match=f"{missing}: not there; run setup-pipes first, or name the room with -d"):
        act(missing)
    (tmp_path / "room").write_text("a file")
    with pytest.raises(RoomError, match=f"{missing}: not there"):
        act(missing)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_fifo_is_ours_alone_whatever_the_umask(path: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert fifo.make(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


def test_making_a_fifo_again_changes_nothing(path: str) -> None:
    assert fifo.make(path)
    inode = os.lstat(path).st_ino
    assert not fifo.make(path)
    assert os.lstat(path).st_ino == inode


def test_a_writer_sees_whether_somebody_reads(path: str) -> None:
    fifo.make(path)
    assert fifo.open_write(path) == -1
    ends = fifo.open_read(path)
    writer = fifo.open_write(path)
    assert writer >= 0
    for fd in (*ends, writer):
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_reader_sees_no_end_when_writers_come_and_go(path: str) -> None:
    fifo.make(path)
    reader, keep = fifo.open_read(path)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    for text in (b"one\n", b"two\n"):
        writer = fifo.open_write(path)
        os.write(writer, text)
        os.close(writer)
        assert poll.poll(LIMIT_S * 1000) == [(reader, select.POLLIN)]
        assert os.read(reader, PIPE_BYTES) == text
        assert poll.poll(0) == []
    os.close(reader)
    os.close(keep)


def test_both_ends_are_of_one_pipe_also_where_it_is_replaced_between_them(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by reading: the second open met a new FIFO without a reader and raised a bare OSError, or gave
    # an end of another pipe, so that the reader saw an end of file for ever.
    fifo.make(path)
    real_open, opened = os.open, []

    def open_and_replace(path: str, flags: int, mode: int = 0o777) -> int:
        fd = real_open(path, flags, mode)
        opened.append(fd)
        if len(opened) == 1:
            os.unlink(path)
            fifo.make(path)
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_replace)
        reader, keep = fifo.open_read(path)
    assert os.path.samestat(os.fstat(reader), os.fstat(keep))
    assert is_same(reader, path)
    os.close(reader)
    os.close(keep)


def test_an_open_end_knows_when_its_path_names_another_pipe(path: str) -> None:
    fifo.make(path)
    reader, keep = fifo.open_read(path)
    assert is_same(reader, path)
    os.unlink(path)
    assert not is_same(reader, path)
    fifo.make(path)
    assert not is_same(reader, path)
    os.close(reader)
    os.close(keep)


def test_it_is_known_whether_another_has_the_write_end_open(path: str) -> None:
    fifo.make(path)
    reader, keep = fifo.open_read(path)
    found, keep = fifo.look_for_writers(reader, keep)
    assert not found
    writer = fifo.open_write(path)
    found, keep = fifo.look_for_writers(reader, keep)
    assert found
    os.write(writer, b"x")
    os.close(writer)
    found, keep = fifo.look_for_writers(reader, keep)
    assert (found, os.read(reader, 9)) == (False, b"x")
    with pytest.raises(BlockingIOError):  # and no end of file: the write end that we keep is there again
        os.read(reader, 9)
    os.close(reader)
    os.close(keep)


def test_who_writes_is_known_also_where_the_pipe_was_replaced(path: str) -> None:
    fifo.make(path)
    reader, keep = fifo.open_read(path)
    os.unlink(path)
    fifo.make(path)
    found, keep = fifo.look_for_writers(reader, keep)
    assert not found
    os.write(keep, b"ours")
    assert os.read(reader, 9) == b"ours"
    os.close(reader)
    os.close(keep)
