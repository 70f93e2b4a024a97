"""The ring of the last events, and those who read from it."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from modelpipes.events import Trouble
from modelpipes.serving.ring import Entry, Ring

LIMIT_S = 10.0


def whys(entries: list[Entry]) -> list[str]:
    return [entry.event.why for entry in entries if isinstance(entry.event, Trouble)]


def test_ids_follow_one_another_and_are_higher_than_those_of_a_daemon_before() -> None:
    first, second = Ring(), Ring()
    for ring in (first, second):
        for number in range(3):
            ring.put(Trouble(str(number)))
    ids = [entry.id for entry in first.after(0)[0]]
    assert ids == list(range(first.first_id, first.first_id + 3))
    assert second.first_id >= first.first_id and first.last_id == ids[-1]


@pytest.mark.parametrize(
    ("behind", "found", "lost"),
    [
        (0, [], 0),
        (1, ["9"], 0),
        (4, ["6", "7", "8", "9"], 0),
        (6, ["6", "7", "8", "9"], 2),
        (99, ["6", "7", "8", "9"], 6),
    ],
)
def test_what_came_after_an_id_is_there_or_counted(behind: int, found: list[str], lost: int) -> None:
    ring = Ring(kept=4)
    for number in range(10):
        ring.put(Trouble(str(number)))
    entries, count = ring.after(ring.last_id - behind)
    assert (whys(entries), count) == (found, lost)


def test_an_id_to_come_counts_as_the_last() -> None:
    ring = Ring()
    ring.put(Trouble("0"))
    assert ring.after(ring.last_id + 5) == ([], 0)


def test_an_entry_is_a_line_of_json_and_a_server_sent_event_of_it() -> None:
    ring = Ring()
    ring.put(Trouble("two\nlines"))
    (entry,), _ = ring.after(0)
    line = json.loads(entry.json())
    assert line["event"] == {"kind": "trouble", "why": "two\nlines"} and line["id"] == entry.id
    assert line["at"].endswith("+00:00")
    assert entry.sse() == b"id: %d\ndata: " % entry.id + entry.json() + b"\n\n" and entry.sse() is entry.sse()


def test_readers_get_what_any_thread_puts_in_order() -> None:
    async def work() -> None:
        ring = Ring()
        with ring.reader(ring.last_id) as one, ring.reader(ring.last_id) as another:
            assert ring.is_read
            threads = [threading.Thread(target=ring.put, args=(Trouble(str(number)),)) for number in range(50)]
            for thread in threads:
                thread.start()
            for reader in (one, another):
                read: list[Entry] = []
                while len(read) < 50:
                    found, lost = await asyncio.wait_for(reader.next(LIMIT_S), LIMIT_S)
                    assert found and not lost
                    read += found
                assert [entry.id for entry in read] == list(range(ring.first_id, ring.first_id + 50))
            for thread in threads:
                thread.join(LIMIT_S)
        assert not ring.is_read

    asyncio.run(work())


def test_a_reader_to_whom_nothing_comes_gets_nothing_after_its_limit_and_a_slow_one_how_much_it_lost() -> None:
    async def work() -> None:
        ring = Ring(kept=4)
        with ring.reader(ring.last_id) as reader:
            assert await reader.next(0.01) == ([], 0)
            for number in range(10):
                ring.put(Trouble(str(number)))
            found, lost = await reader.next(LIMIT_S)
            assert (whys(found), lost) == (["6", "7", "8", "9"], 6)

    asyncio.run(work())
