"""Events in files that rotate: nothing is lost but what is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from modelpipes.errors import FileError
from modelpipes.events import Trouble
from modelpipes.serving import eventfile
from modelpipes.serving.eventfile import EventFile
from modelpipes.serving.ring import Ring
from tests.peers import eventually

FILES = 1000


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Of all files, the oldest first."""
    count = 1
    while Path(f"{path}.{count}").exists():
        count += 1
    names = [*(f"{path}.{number}" for number in range(count - 1, 0, -1)), str(path)]
    return [json.loads(line) for name in names for line in Path(name).read_text().splitlines()]


def check_complete(path: Path, put: int) -> int:
    """That each of so many is there once and in order, or told as missing; how many are told."""
    lines = lines_of(path)
    ids = [line["id"] for line in lines if line["event"]["kind"] == "trouble"]
    told = sum(line["event"]["count"] for line in lines if line["event"]["kind"] == "missed")
    assert ids == sorted(set(ids)) and len(ids) + told == put
    return int(told)


def test_of_a_thousand_files_nothing_is_lost_but_what_is_told(tmp_path: Path) -> None:
    path, ring, count = tmp_path / "events.jsonl", Ring(), 12 * FILES
    file = EventFile(str(path), 1000, 2 * FILES)
    ring.add_taker(file.take)
    for number in range(count):
        ring.put(Trouble(f"{number:05}"))
        if number % FILES == 0:  # a thousand renames each: what the disk does not take in time is told as missed
            eventually(file._waiting.empty, "what waits to be written")
    file.close()
    assert len(os.listdir(tmp_path)) >= FILES
    assert all(one.stat().st_size <= 1000 for one in tmp_path.iterdir())
    check_complete(path, count)


def test_events_that_come_faster_than_the_disk_takes_them_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventfile, "WAITING_EVENTS", 10)
    path, ring = tmp_path / "events.jsonl", Ring()
    file = EventFile(str(path), 1000, 300)
    ring.add_taker(file.take)
    for number in range(1000):
        ring.put(Trouble(f"{number:05}"))
    file.close()
    assert check_complete(path, 1000) > 0


def test_the_oldest_go_and_the_rest_follow_one_another(tmp_path: Path) -> None:
    path, ring = tmp_path / "events.jsonl", Ring()
    file = EventFile(str(path), 1000, 3)
    ring.add_taker(file.take)
    for number in range(200):
        ring.put(Trouble(f"{number:05}"))
    file.close()
    assert sorted(os.listdir(tmp_path)) == ["events.jsonl", *(f"events.jsonl.{number}" for number in (1, 2, 3))]
    ids = [line["id"] for line in lines_of(path)]
    assert ids == list(range(ids[0], ring.last_id + 1))


def test_what_a_disk_did_not_take_is_told_once_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    path, ring = folder / "events.jsonl", Ring()
    file = EventFile(str(path), 1000, 3)
    path.unlink()
    folder.rmdir()
    ring.add_taker(file.take)
    ring.put(Trouble("nowhere to go"))
    eventually(lambda: file.problem, "the thread tried")
    folder.mkdir()
    ring.put(Trouble("written"))
    file.close()
    told, written = lines_of(path)
    assert (told["event"]["kind"], told["event"]["count"]) == ("missed", 1)
    assert told["event"]["why"].startswith("not written: ") and written["event"]["why"] == "written"


def test_half_a_line_of_a_daemon_that_was_killed_spoils_no_other(tmp_path: Path) -> None:
    path, ring = tmp_path / "events.jsonl", Ring()
    path.write_text('{"id":1}\n{"id":2,"at":"20')
    file = EventFile(str(path), 10_000, 3)
    ring.add_taker(file.take)
    ring.put(Trouble("next"))
    file.close()
    *_, half, last = path.read_text().splitlines()
    assert half == '{"id":2,"at":"20' and json.loads(last)["event"]["why"] == "next"


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "below a file"])
def test_what_is_no_file_is_refused_at_the_start_in_a_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "events.jsonl"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.write_text("")
            path /= "events.jsonl"
    with pytest.raises(FileError, match=r"events\.file: .*: name another"):
        EventFile(str(path), 1000, 3)
