"""Round trips and floods: every message counted once, nothing left of the peer that we start."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpipes.errors import DeadlineError, PeerGone, PipesError, ProgramError
from modelpipes.pipe import fifo
from modelpipes.pipe.asker import Asker
from modelpipes.pipe.endpoint import Endpoint
from modelpipes.pipe.framing import LineSplitter, encode
from modelpipes.pipe.message import Delta, Message, Ping, Pong, load
from modelpipes.pipe.ping import (
    MAX_SIZE_BYTES,
    WINDOW,
    WINDOW_BYTES,
    Flood,
    RoundTrips,
    flood_one_way,
    flood_with_pings,
    measure_round_trips,
)
from modelpipes.pipe.pingpeer import PEER, seated_peer
from modelpipes.pipe.room import HUB, Room
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S, eventually, peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NEVER = Deadline.never()
TOO_SHORT_S = 0.05  # for an answer that does not come
LONG_ENOUGH_S = 1.0  # for one that does, though others do not


def soon() -> Deadline:
    return Deadline.after(LIMIT_S)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "modelpipes"


@contextlib.contextmanager
def connected(room: Room, to: str) -> Iterator[Endpoint]:
    with Asker(room, HUB, to, silence_s=LIMIT_S, limit=NEVER) as asker:
        yield asker.connect()


class ByHand:
    """A seat whose pings the test itself answers, or does not."""

    def __init__(self, room: Room, seat: str = "bob") -> None:
        self._answers = room.pipe(seat, HUB)
        self._reader, self._keep = fifo.open_read(room.pipe(HUB, seat))
        self._writer = -1
        self._splitter = LineSplitter()
        self._heard: list[Message] = []

    def ping(self) -> Ping:
        """The next ping."""
        while not self._heard:
            eventually(lambda: fifo.is_readable(self._reader), "ping")
            self._heard += self._splitter.feed(os.read(self._reader, 65536))  # type: ignore[arg-type]
        ping = self._heard.pop(0)
        assert isinstance(ping, Ping)
        return ping

    def pong(self, ping: Ping) -> None:
        self.say(Pong(ping.id, "bob", HUB, ping.content))

    def say(self, message: Message) -> None:
        if self._writer < 0:
            self._writer = fifo.open_write(self._answers)
        os.write(self._writer, encode(message))

    def is_told_more(self) -> bool:
        return bool(self._heard) or fifo.is_readable(self._reader)

    def close(self) -> None:
        for fd in {self._reader, self._keep, self._writer} - {-1}:
            os.close(fd)
        self._reader = self._keep = self._writer = -1


@pytest.fixture
def bob(room: Room) -> Iterator[ByHand]:
    bob = ByHand(room)
    yield bob
    bob.close()


class Measuring:
    """A measurement in a thread, so that the test can be its peer; `error` is what it raised."""

    def __init__(self, room: Room, measure: Callable[[Endpoint], None]) -> None:
        self.error: PipesError | None = None
        self._room, self._measure = room, measure
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with connected(self._room, "bob") as endpoint:
                self._measure(endpoint)
        except PipesError as e:
            self.error = e

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self.is_running()


def pinging(
    room: Room, trips: RoundTrips, *, count: int, warmup: int = 0, timeout_s: float = LIMIT_S, interval_s: float = 0.0
) -> Measuring:
    return Measuring(
        room,
        lambda endpoint: measure_round_trips(
            endpoint, "bob", trips, count=count, warmup=warmup, timeout_s=timeout_s, interval_s=interval_s, until=NEVER
        ),
    )


# -- round trips


@pytest.mark.parametrize("size_bytes", [0, 64, 100_000, MAX_SIZE_BYTES])
def test_every_ping_is_answered_and_timed(room: Room, size_bytes: int) -> None:
    trips = RoundTrips(size_bytes)
    with peer("echo", room), connected(room, "bob") as endpoint:
        measure_round_trips(endpoint, "bob", trips, count=3, timeout_s=LIMIT_S, until=NEVER)
    assert (trips.count, len(trips.times_ns), trips.lost) == (3, 3, 0)
    assert 0 < min(trips.times_ns) <= sum(trips.times_ns) <= trips.seconds * 1e9


def test_content_is_as_large_as_was_asked_and_the_first_ones_do_not_count(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(100)
    measuring = pinging(room, trips, count=3, warmup=2)
    for _ in range(5):
        ping = bob.ping()
        assert ping.content == load(100)
        bob.pong(ping)
    measuring.wait()
    assert (trips.count, trips.lost, measuring.error) == (3, 0, None)
    assert not bob.is_told_more()


def test_a_pong_that_comes_late_answers_no_other_ping(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(64)
    measuring = pinging(room, trips, count=3, timeout_s=LONG_ENOUGH_S)
    first = bob.ping()
    second = bob.ping()  # comes when the first one is lost
    for _ in range(3):
        bob.pong(first)
    third = bob.ping()  # comes when the second one is lost: the late pongs were not taken for its own
    bob.pong(second)
    bob.pong(third)
    measuring.wait()
    assert (trips.count, len(trips.times_ns), trips.lost, measuring.error) == (3, 1, 2, None)


def test_a_seat_that_says_other_things_without_end_does_not_keep_a_ping_waiting(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(64)
    measuring = pinging(room, trips, count=1, timeout_s=TOO_SHORT_S)
    bob.ping()
    while measuring.is_running():
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            bob.say(Delta("i", "bob", HUB, "again "))
    assert isinstance(measuring.error, DeadlineError)
    assert trips.lost == 1


def test_a_seat_that_does_not_read_is_not_sent_more_and_more(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(1_000_000)
    measuring = pinging(room, trips, count=3, timeout_s=TOO_SHORT_S)
    measuring.wait()
    assert (trips.count, trips.lost) == (3, 3)
    assert isinstance(measuring.error, DeadlineError)
    assert fifo.unread_bytes(bob._reader) < 1_000_000  # of one ping alone: what follows is its rest


def test_an_unanswered_ping_of_the_warm_up_ends_it(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(64)
    measuring = pinging(room, trips, count=1000, warmup=10, timeout_s=TOO_SHORT_S)
    bob.pong(bob.ping())
    measuring.wait()
    assert isinstance(measuring.error, DeadlineError)
    assert "bob did not answer a ping in time" in str(measuring.error)
    assert trips.count == 0


def test_a_seat_that_goes_in_the_middle_leaves_what_came(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(64)
    measuring = pinging(room, trips, count=1000)
    for _ in range(10):
        bob.pong(bob.ping())
    bob.close()
    measuring.wait()
    assert isinstance(measuring.error, PeerGone)
    assert (len(trips.times_ns), trips.lost) == (10, 0)


def test_no_ping_goes_after_the_end(room: Room) -> None:
    trips = RoundTrips(64)
    with peer("echo", room), connected(room, "bob") as endpoint:
        measure_round_trips(endpoint, "bob", trips, count=10, timeout_s=LIMIT_S, until=Deadline.after(0))
    assert trips.count == 1


def test_the_interval_lies_between_the_pings_and_not_after_the_last(room: Room) -> None:
    trips = RoundTrips(64)
    with peer("echo", room), connected(room, "bob") as endpoint:
        measure_round_trips(endpoint, "bob", trips, count=3, timeout_s=LIMIT_S, interval_s=0.05, until=NEVER)
        assert trips.seconds >= 0.1
        measure_round_trips(endpoint, "bob", trips, count=1, timeout_s=LIMIT_S, interval_s=2 * LIMIT_S, until=NEVER)
        assert trips.seconds < LIMIT_S


def test_a_seat_that_goes_in_an_interval_is_noticed_there(room: Room, bob: ByHand) -> None:
    trips = RoundTrips(64)
    measuring = pinging(room, trips, count=2, interval_s=2 * LIMIT_S)
    bob.pong(bob.ping())
    bob.close()
    measuring.wait()
    assert isinstance(measuring.error, PeerGone)


# -- floods


def test_a_flood_of_pings_comes_back_whole(room: Room) -> None:
    flood = Flood(64)
    with peer("echo", room), connected(room, "bob") as endpoint:
        flood_with_pings(endpoint, "bob", flood, until=Deadline.after(0.2), timeout_s=LIMIT_S)
    assert flood.received
    assert flood.sent.messages == flood.received.messages > 0
    assert flood.received.content_bytes == flood.sent.content_bytes == flood.sent.messages * 64
    assert flood.lost == 0


@pytest.mark.parametrize(
    ("size_bytes", "window"), [(0, WINDOW), (64, WINDOW), (WINDOW_BYTES // 4, 4), (WINDOW_BYTES + 1, 1)]
)
def test_no_more_than_the_window_is_on_its_way(room: Room, size_bytes: int, window: int) -> None:
    flood = Flood(size_bytes)
    with pytest.raises(DeadlineError, match="did not answer"), peer("sitter", room), connected(room, "bob") as endpoint:
        flood_with_pings(endpoint, "bob", flood, until=NEVER, timeout_s=TOO_SHORT_S)
    assert flood.sent.messages == flood.lost == window


def test_what_does_not_come_back_of_a_flood_is_lost(room: Room, bob: ByHand) -> None:
    flood = Flood(64)

    def measure(endpoint: Endpoint) -> None:
        flood_with_pings(endpoint, "bob", flood, until=NEVER, timeout_s=LONG_ENOUGH_S)

    measuring = Measuring(room, measure)
    bob.pong(bob.ping())
    measuring.wait()
    assert measuring.error is None
    assert flood.received and flood.received.messages == 1
    assert flood.lost == flood.sent.messages - 1 > 0


# -- the peer that we start


def test_what_is_sent_one_way_is_what_the_peer_counts(runtime: Path) -> None:
    with seated_peer() as room, connected(room, PEER) as endpoint:
        for size_bytes in (64, 100_000):
            flood = Flood(size_bytes)
            flood_one_way(endpoint, PEER, flood, until=Deadline.after(0.1), timeout_s=LIMIT_S)
            assert flood.received
            assert flood.received.messages == flood.sent.messages > 0
            assert flood.received.content_bytes == flood.sent.content_bytes
            assert flood.received.seconds > 0
            assert flood.lost == 0


def test_a_flood_that_nobody_reads_any_more_ends_at_its_timeout(runtime: Path) -> None:
    flood = Flood(64)
    with seated_peer() as room, connected(room, PEER) as endpoint:
        pid = room.sitting(PEER).pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError, match=PEER):
            flood_one_way(endpoint, PEER, flood, until=NEVER, timeout_s=TOO_SHORT_S)
    assert flood.sent.messages > 0
    assert flood.lost is None and flood.received is None


def test_the_peer_and_its_room_are_gone_afterwards(runtime: Path) -> None:
    with seated_peer() as room:
        pid = room.sitting(PEER).pid
        assert pid and os.path.exists(f"/proc/{pid}")
        assert Path(room.path).parent == runtime
    assert not os.path.exists(f"/proc/{pid}")
    assert list(runtime.iterdir()) == []


def test_the_peer_runs_where_it_is_told(runtime: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    with seated_peer(cpu) as room:
        assert os.sched_getaffinity(room.sitting(PEER).pid or 0) == {cpu}


def test_a_peer_that_is_killed_is_named_and_its_room_goes(runtime: Path) -> None:
    trips = RoundTrips(64)
    with pytest.raises(PeerGone) as e, seated_peer() as room, connected(room, PEER) as endpoint:
        pid = room.sitting(PEER).pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        measure_round_trips(endpoint, PEER, trips, count=10, timeout_s=LIMIT_S, until=NEVER)
    assert str(e.value) == f"the peer that we started (pid {pid}) died; try again"
    assert list(runtime.iterdir()) == []


def test_a_peer_that_cannot_start_tells_why(runtime: Path) -> None:
    with pytest.raises(ProgramError, match="ended at its start: OSError"), seated_peer(100_000):
        pass
    assert list(runtime.iterdir()) == []


def test_an_orphaned_room_of_a_killed_run_is_removed_by_the_next(runtime: Path) -> None:
    with seated_peer() as room:
        gone = Room.make(str(runtime / "chat-999999999-0"))
        gone.make_pipes([(HUB, PEER)])
        with seated_peer() as other:
            assert room.path != other.path
            assert not os.path.exists(gone.path)
            assert os.path.exists(room.path)
