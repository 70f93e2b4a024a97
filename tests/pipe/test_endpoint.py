"""One seat's open ends: nothing lost, nothing hung, nothing spun, nothing left open."""

from __future__ import annotations

import os
import resource
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from modelpipes.errors import DeadlineError, MessageError, MisuseError, PeerGone, PipesError, RoomError
from modelpipes.pipe import fifo
from modelpipes.pipe.endpoint import Arrival, Begun, Endpoint, Event, Lost, Readable, Unended
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES, LineSplitter, encode
from modelpipes.pipe.message import Delta, Malformed, Ping, Plain, Pong, Reply, Say, load
from modelpipes.pipe.room import HUB, Room, star
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S, eventually, open_descriptors, peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

NOW = Deadline(0.0)


def soon() -> Deadline:
    return Deadline.after(LIMIT_S)


@pytest.fixture
def hub(room: Room) -> Iterator[Endpoint]:
    with Endpoint(room, HUB) as hub:
        hub.listen("bob")
        yield hub


@pytest.fixture
def bob(room: Room) -> Iterator[Endpoint]:
    with Endpoint(room, "bob") as bob:
        bob.listen(HUB)
        yield bob


def say(content: str) -> Say:
    return Say("i", HUB, "bob", content)


def arrivals(endpoint: Endpoint) -> list[object]:
    """What lies in the pipes of an endpoint now."""
    items: list[object] = []
    while event := endpoint.receive(NOW):
        assert isinstance(event, Arrival)
        items.append(event.item)
    return items


def pass_on(sender: Endpoint, receiver: Endpoint) -> Event:
    """Let two endpoints of one process work until the receiver has an event."""
    deadline = soon()
    while not (event := receiver.receive(NOW)):
        deadline.check("event")
        sender.receive(NOW)
    return event


def test_a_message_arrives_with_the_seat_it_came_from(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    hub.send("bob", say("line one\nline two\t\0é𝄞"), soon())
    assert bob.receive(soon()) == Arrival(HUB, say("line one\nline two\t\0é𝄞"))
    assert bob.receive(NOW) is None


lines = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=40).map(lambda text: encode(say(text))),
    st.binary(max_size=40).map(lambda data: data + b"\n"),
    st.just(b'{"type":"bye",\n"from":"hub","to":"bob"}\n'),
)


def test_what_is_received_is_what_the_lines_say_however_they_are_written(room: Room, bob: Endpoint) -> None:
    # One whole message takes a way of its own through the endpoint.
    writer = fifo.open_write(room.pipe(HUB, "bob"))

    @given(st.lists(st.tuples(st.lists(lines, max_size=4).map(b"".join), st.integers(0, 60))))
    def check(writes: list[tuple[bytes, int]]) -> None:
        stream, items = b"", []
        for data, cut in writes:
            for part in (data[:cut], data[cut:]):
                os.write(writer, part)
                items += arrivals(bob)
                stream += part
        assert items == LineSplitter().feed(stream)

    check()
    os.close(writer)


def test_what_another_reader_took_is_no_event_and_no_error(bob: Endpoint) -> None:
    bob._ready = lambda *limit: [(bob._inlets[HUB].fd, select.POLLIN)]
    assert bob.receive(NOW) is None


def test_a_pipe_that_cannot_be_read_is_named(room: Room, bob: Endpoint, tmp_path: Path) -> None:
    folder, inlet = os.open(tmp_path, os.O_RDONLY), bob._inlets[HUB]
    bob._ready = lambda *limit: [(inlet.fd, select.POLLIN)]
    pipe = os.dup(inlet.fd)
    os.dup2(folder, inlet.fd)
    try:
        with pytest.raises(RoomError, match=rf"{room.pipe(HUB, 'bob')}: cannot be read: Is a directory"):
            bob.receive(soon())
    finally:
        os.dup2(pipe, inlet.fd)
        os.close(pipe)
        os.close(folder)


def test_messages_keep_their_order_also_those_that_wait_for_room(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    sizes = [10, 400_000, 1, 370_000, 3]
    for size in sizes:
        assert hub.post("bob", say("x" * size))
    assert hub.unsent_bytes("bob") > 100_000
    for size in sizes:
        assert pass_on(hub, bob) == Arrival(HUB, say("x" * size))
    assert hub.unsent_bytes("bob") == 0


@pytest.mark.parametrize("character", ["x", "\n", "é𝄞"])
def test_a_message_of_exactly_the_limit_arrives_whole(room: Room, hub: Endpoint, character: str) -> None:
    width = len(encode(say(character))) - len(encode(say("x"))) + 1
    room_bytes = MAX_MESSAGE_BYTES + 1 - len(encode(say("x"))) + 1
    content = character * (room_bytes // width) + "x" * (room_bytes % width)
    assert len(encode(say(content))) == MAX_MESSAGE_BYTES + 1
    with Endpoint(room, "bob") as bob:
        bob.listen(HUB)
        hub.connect("bob", soon())
        hub.post("bob", say(content))
        event = pass_on(hub, bob)
        assert isinstance(event, Arrival) and isinstance(event.item, Say)
        assert event.item.content == content


@pytest.mark.parametrize("content", ["x" * MAX_MESSAGE_BYTES, "\ud800"])
def test_what_cannot_travel_is_refused_before_a_byte_of_it_is_sent(hub: Endpoint, bob: Endpoint, content: str) -> None:
    hub.connect("bob", soon())
    with pytest.raises(MessageError):
        hub.send("bob", say(content), soon())
    reader = bob._inlets[HUB].fd
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    hub.send("bob", say("small"), soon())
    assert bob.receive(soon()) == Arrival(HUB, say("small"))


def test_two_processes_that_send_before_they_read_do_not_deadlock(room: Room) -> None:
    size = 8 * 1024 * 1024
    with peer("trader", room, HUB, "bob", size) as hub, peer("trader", room, "bob", HUB, size) as bob:
        assert hub.line() == bob.line() == str(size)


def test_a_reader_that_never_reads_ends_a_send_at_its_deadline(room: Room, hub: Endpoint) -> None:
    with peer("sitter", room):
        hub.connect("bob", soon())
        began_s = time.monotonic()
        with pytest.raises(DeadlineError, match="bob did not read before the deadline"):
            hub.send("bob", say("x" * 400_000), Deadline.after(0.2))
        assert time.monotonic() - began_s >= 0.2


# -- who comes, who goes


def test_a_seat_that_nobody_took_is_waited_for_until_the_deadline(hub: Endpoint) -> None:
    began_s = time.monotonic()
    with pytest.raises(DeadlineError, match="bob: nobody took the seat before the deadline") as e:
        hub.connect("bob", Deadline.after(0.2))
    assert e.value.exit_code == 124
    assert time.monotonic() - began_s >= 0.2


def test_a_seat_whose_member_died_fails_at_once_and_names_it(room: Room, hub: Endpoint) -> None:
    with peer("sitter", room) as bob:
        bob.kill()
        with pytest.raises(PeerGone, match=rf"bob \(pid {bob.pid}, .*\) died; seat it again with attach-model"):
            hub.connect("bob", Deadline.never())


def test_a_seat_that_is_taken_while_it_is_waited_for_is_spoken_to(room: Room) -> None:
    with peer("asking", room, HUB, "bob") as hub, peer("echo", room):
        assert hub.line() == "Hello"


def test_a_seat_that_is_taken_again_is_spoken_to(room: Room, hub: Endpoint) -> None:
    with peer("echo", room) as bob:
        hub.connect("bob", soon())
        bob.kill()
        assert hub.receive(soon()) == Lost("bob", 0)
        assert not hub.is_connected("bob")
    with peer("echo", room):
        hub.connect("bob", soon())
        hub.send("bob", say("hi"), soon())
        event = hub.receive(soon())
        assert isinstance(event, Arrival) and isinstance(event.item, Delta)


def test_a_reader_that_is_killed_is_lost_once_with_what_it_did_not_read(room: Room, hub: Endpoint) -> None:
    with peer("sitter", room) as bob:
        hub.connect("bob", soon())
        hub.post("bob", say("x" * 400_000))
        unsent = hub.unsent_bytes("bob")
        assert unsent > 0
        bob.kill()
        assert hub.receive(soon()) == Lost("bob", unsent)
        assert hub.receive(NOW) is None
        assert not hub.post("bob", say("anybody?"))


def test_a_send_to_a_reader_that_is_killed_meanwhile_fails_and_names_it(room: Room, hub: Endpoint) -> None:
    with peer("sitter", room) as bob:
        hub.connect("bob", soon())
        hub.post("bob", say("x" * 400_000))
        bob.kill()
        with pytest.raises(PeerGone, match=rf"bob \(pid {bob.pid}, .*\) (died|closed its pipe); seat it again"):
            hub.send("bob", say("hi"), soon())


def counted_polls(endpoint: Endpoint) -> list[Any]:
    """What the polls of an endpoint find from now on."""
    found: list[Any] = []
    poll = endpoint._ready

    def ready(*limit_ms: Any) -> Any:
        found.append(poll(*limit_ms))
        return found[-1]

    endpoint._ready = ready
    return found


def test_the_error_of_a_read_end_that_is_closed_does_not_spin(room: Room, hub: Endpoint) -> None:
    # POLLERR stays set: a loop that keeps the descriptor polls a million times a second.
    with peer("sitter", room) as bob:
        hub.connect("bob", soon())
        bob.kill()
        polls = counted_polls(hub)
        assert hub.receive(soon()) == Lost("bob", 0)
        assert hub.receive(Deadline.after(0.3)) is None
        assert 1 <= len(polls) <= 5


def test_writers_that_come_and_go_do_not_spin_a_reader(room: Room, bob: Endpoint) -> None:
    for _ in range(3):
        with Endpoint(room, HUB) as hub:
            hub.connect("bob", soon())
            hub.send("bob", say("hi"), soon())
    assert [type(item) for item in arrivals(bob)] == [Say, Say, Say]
    polls = counted_polls(bob)
    assert bob.receive(Deadline.after(0.3)) is None
    assert 1 <= len(polls) <= 5


# -- predecessors


def test_the_half_line_of_a_dead_writer_is_cut_off(room: Room, bob: Endpoint) -> None:
    writer = os.open(room.pipe(HUB, "bob"), os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, encode(Say("old", HUB, "bob", "x" * 9000))[:4096])
    os.close(writer)
    with Endpoint(room, HUB) as hub:
        hub.connect("bob", soon())
        hub.send("bob", say("new"), soon())
        hub.send("bob", say("and another"), soon())
    half, *whole = arrivals(bob)
    assert isinstance(half, Malformed)
    assert half.reply_to == "old"
    assert whole == [say("new"), say("and another")]


def test_only_the_first_typed_message_of_a_writer_cuts_and_a_plain_one_never(room: Room, bob: Endpoint) -> None:
    with Endpoint(room, HUB) as hub:
        reader = bob._inlets[HUB].fd
        hub.connect("bob", soon())
        hub.send("bob", say("a"), soon())
        hub.send("bob", say("b"), soon())
        assert os.read(reader, 65536) == b"\n" + encode(say("a")) + encode(say("b"))
    with Endpoint(room, HUB) as hub:
        hub.connect("bob", soon())
        assert hub.post_plain("bob", "plain\nwords")
        assert os.read(reader, 65536) == b"plain words\n"


def test_the_pipe_of_a_plain_answer_closes_a_while_after_all_of_it_was_sent(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    assert hub.post_plain("bob", "x" * 500_000)
    assert hub.close_idle(), "while it is being read there is nothing to wait for but the reader"
    assert pass_on(hub, bob) == Arrival(HUB, Plain("x" * 500_000))
    assert not hub.close_idle()
    while not hub.close_idle():
        assert hub.receive(Deadline.after(0.01)) is None
    assert not hub.is_connected("bob")
    assert hub.close_idle()


def test_a_pipe_that_lingers_is_used_again_by_the_next_reader(room: Room, hub: Endpoint) -> None:
    for content in ("one", "two"):
        with Endpoint(room, "bob") as bob:
            bob.listen(HUB)
            hub.connect("bob", soon())
            hub.send("bob", say(content), soon())
            assert bob.receive(soon()) == Arrival(HUB, say(content))
        assert hub.receive(soon()) == Lost("bob", 0)
        assert not hub.try_connect("bob")


def test_a_line_that_is_too_long_does_not_end_a_reader(room: Room, bob: Endpoint) -> None:
    writer = os.open(room.pipe(HUB, "bob"), os.O_WRONLY | os.O_NONBLOCK)
    left = memoryview(
        b'{"type":"say","id":"big","content":"' + b"x" * MAX_MESSAGE_BYTES + b'"}\n' + encode(say("next"))
    )
    while left:
        try:
            left = left[os.write(writer, left) :]
        except BlockingIOError:
            assert bob.receive(NOW) is None
    os.close(writer)
    reported, survivor = arrivals(bob)
    assert isinstance(reported, Malformed)
    assert reported.reply_to == "big"
    assert survivor == say("next")


# -- pings


def test_a_ping_is_answered_by_the_endpoint_itself(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    hub.send("bob", Ping("p", HUB, "bob", Raw(b'"load"')), soon())
    assert bob.receive(NOW) is None
    assert hub.receive(soon()) == Arrival("bob", Pong("p", "bob", HUB, Raw(b'"load"')))


def test_a_ping_whose_answer_cannot_travel_does_not_end_its_receiver(room: Room, hub: Endpoint, bob: Endpoint) -> None:
    # MessageError and RoomError came out of the receiver's own receive().
    empty = len(encode(Ping("p", HUB, "bob"))) + len(',"content":""')
    hub.connect("bob", soon())
    hub.post("bob", Ping("p", HUB, "bob", load(MAX_MESSAGE_BYTES + 1 - empty)))  # "reply_to" is longer than "id"
    hub.post("bob", say("after it"))
    assert pass_on(hub, bob) == Arrival(HUB, say("after it"))
    os.unlink(room.pipe("bob", HUB))
    bob.refresh()
    hub.send("bob", Ping("p", HUB, "bob"), soon())
    hub.send("bob", say("and after that"), soon())
    assert pass_on(hub, bob) == Lost(HUB, 0)
    assert pass_on(hub, bob) == Arrival(HUB, say("and after that"))


def test_who_pings_and_does_not_read_takes_no_endless_memory(room: Room, bob: Endpoint) -> None:
    with Endpoint(room, HUB) as hub, Endpoint(room, HUB) as ears:
        ears.listen("bob")
        hub.connect("bob", soon())
        for _ in range(40):
            hub.post("bob", Ping("p", HUB, "bob", load(1_000_000)))
        while hub.unsent_bytes("bob"):
            hub.receive(NOW)
            bob.receive(NOW)
        assert bob.unsent_bytes(HUB) < MAX_MESSAGE_BYTES + 2_000_000


# -- pipes that change


def test_a_pipe_that_was_replaced_is_opened_again(room: Room, bob: Endpoint) -> None:
    os.unlink(room.pipe(HUB, "bob"))
    room.make_pipes([(HUB, "bob")])
    assert bob.refresh() == []
    with Endpoint(room, HUB) as hub:
        hub.connect("bob", soon())
        hub.send("bob", say("hi"), soon())
    assert bob.receive(soon()) == Arrival(HUB, say("hi"))


def test_pipes_that_were_removed_are_closed_and_told(room: Room, hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    assert hub.refresh() == bob.refresh() == []
    os.unlink(room.pipe(HUB, "bob"))
    assert bob.refresh() == [HUB]
    assert list(bob.listens_to()) == []
    assert hub.refresh() == []
    assert hub.receive(NOW) == Lost("bob", 0)
    with pytest.raises(RoomError, match="not there; run setup-pipes first"):
        hub.connect("bob", soon())


def test_a_file_where_the_answer_pipe_should_be_is_one_clear_line(room: Room) -> None:
    os.unlink(room.pipe("bob", HUB))
    Path(room.pipe("bob", HUB)).touch()
    with Endpoint(room, HUB) as hub, pytest.raises(RoomError, match="not a FIFO; move it away"):
        hub.listen("bob")


# -- descriptors


def test_descriptors_beyond_1024_work(room: Room) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine allows no descriptor beyond 1024")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
    null = os.open("/dev/null", os.O_RDONLY)
    many = [null]
    try:
        while many[-1] < 1030:
            many.append(os.dup(null))
        with Endpoint(room, HUB) as hub, Endpoint(room, "bob") as bob:
            bob.listen(HUB)
            hub.connect("bob", soon())
            assert hub._outlets["bob"].fd > 1024
            hub.send("bob", say("far away"), soon())
            assert bob.receive(soon()) == Arrival(HUB, say("far away"))
    finally:
        for fd in many:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_watched_descriptor_is_reported_for_as_long_as_it_can_be_read(bob: Endpoint) -> None:
    reader, writer = os.pipe()
    bob.watch(reader)
    assert bob.receive(NOW) is None
    os.write(writer, b"x")
    assert bob.receive(soon()) == bob.receive(soon()) == Readable(reader)
    os.read(reader, 1)
    assert bob.receive(NOW) is None
    os.close(reader)
    os.close(writer)


def test_listening_and_connecting_twice_opens_nothing_twice(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    before = open_descriptors()
    hub.connect("bob", soon())
    hub.listen("bob")
    assert open_descriptors() == before


def test_a_pipe_that_cannot_be_opened_leaves_no_descriptor(room: Room) -> None:
    before = open_descriptors()
    with Endpoint(room, HUB) as hub:
        with pytest.raises(RoomError):
            hub.listen("nobody")
        with pytest.raises(RoomError):
            hub.connect("nobody", soon())
        assert open_descriptors() == before


def test_to_close_an_end_takes_no_more_where_there_are_many(tmp_path: Path) -> None:
    # Each close rebuilt the table of all the others.
    assert calls_to_close(tmp_path / "large", 200) <= 20 * calls_to_close(tmp_path / "small", 10)


def calls_to_close(path: Path, count: int) -> int:
    """How many functions are called to close an endpoint with so many ends."""
    seats = [f"s{i}" for i in range(count)]
    room = Room.make(str(path))
    room.make_pipes(star(HUB, seats))
    calls = 0

    def note(frame: object, event: str, what: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with Endpoint(room, HUB) as hub:
        for seat in seats:
            hub.listen(seat)
        sys.setprofile(note)
        try:
            hub.close()
        finally:
            sys.setprofile(None)
    return calls


def test_a_stopped_reader_is_still_connected(room: Room, hub: Endpoint) -> None:
    with peer("sitter", room) as bob:
        hub.connect("bob", soon())
        bob.stop()
        hub.send("bob", say("hi"), soon())
        assert hub.receive(Deadline.after(0.05)) is None
        assert hub.is_connected("bob")


def test_what_a_peer_said_before_it_was_killed_is_still_heard(room: Room, hub: Endpoint) -> None:
    with peer("echo", room) as bob:
        hub.connect("bob", soon())
        hub.send("bob", say("last words"), soon())
        eventually(lambda: bool(select.select([hub._inlets["bob"].fd], [], [], 0)[0]), "answer")
        eventually(lambda: room.sitting("bob").state == "ready", "member")
        bob.kill()
        items = [event.item if isinstance(event, Arrival) else event for event in iter(lambda: hub.receive(NOW), None)]
    assert any(isinstance(item, (Delta, Reply)) for item in items)
    assert Lost("bob", 0) in items


def test_what_a_peer_said_before_it_left_comes_before_the_news_that_it_left(room: Room) -> None:
    # One poll looked at the answers while there were none, and at the reader when it had gone.
    with Endpoint(room, HUB) as endpoint:
        reader, keep = fifo.open_read(room.pipe(HUB, "bob"))
        endpoint.listen("bob")
        endpoint.connect("bob", soon())
        writer = fifo.open_write(room.pipe("bob", HUB))
        os.write(writer, encode(Pong("1", "bob", HUB)))
        for fd in (reader, keep, writer):
            os.close(fd)
        ready = endpoint._ready
        endpoint._ready = lambda *limit: [(endpoint._outlets["bob"].fd, select.POLLERR)]
        assert not endpoint._wait(Deadline.after(0)) and not endpoint._events
        endpoint._ready = ready
        heard = [type(endpoint.receive(soon())) for _ in range(2)]
    assert heard == [Arrival, Lost]


# -- two threads at once


CALLS: list[tuple[str, Callable[[Endpoint], object]]] = [
    ("post", lambda end: end.post("bob", say("x"))),
    ("post_plain", lambda end: end.post_plain("bob", "x")),
    ("send", lambda end: end.send("bob", say("x"), NOW)),
    ("receive", lambda end: end.receive(NOW)),
    ("listen", lambda end: end.listen("alice")),
    ("watch", lambda end: end.watch(0)),
    ("try_connect", lambda end: end.try_connect("alice")),
    ("connect", lambda end: end.connect("alice", NOW)),
    ("refresh", lambda end: end.refresh()),
    ("close_idle", lambda end: end.close_idle()),
    ("close", lambda end: end.close()),
]


@pytest.fixture
def waiting(hub: Endpoint, bob: Endpoint) -> Iterator[list[Event | None]]:
    """What a thread of the test has received from the hub's endpoint, once its wait has ended; it waits."""
    hub.connect("bob", soon())
    bob.connect(HUB, soon())
    heard: list[Event | None] = []
    thread = threading.Thread(target=lambda: heard.append(hub.receive(soon())))
    thread.start()
    eventually(lambda: Path(f"/proc/self/task/{thread.native_id}/wchan").read_text() != "0", "wait in poll")
    yield heard
    if not heard:
        bob.send(HUB, Reply("r", "i", "bob", HUB, "done", "end"), soon())
    thread.join(LIMIT_S)


@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_a_second_thread_is_refused_and_spoils_nothing(
    call: Callable[[Endpoint], object], hub: Endpoint, bob: Endpoint, waiting: list[Event | None]
) -> None:
    with pytest.raises(MisuseError, match="the endpoint of hub is in use by another thread") as refused:
        call(hub)
    assert not isinstance(refused.value, PipesError), "what expects a failure must not hide it"
    reply = Reply("r", "i", "bob", HUB, "heard", "end")
    bob.send(HUB, reply, soon())
    eventually(lambda: bool(waiting), "end of the wait")
    assert waiting == [Arrival("bob", reply)]
    assert hub.post("bob", say("and now"))
    assert bob.receive(soon()) == Arrival(HUB, say("and now"))


def test_one_thread_after_the_other_may_use_it(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    for number in range(3):
        thread = threading.Thread(target=hub.post, args=("bob", say(str(number))))
        thread.start()
        thread.join(LIMIT_S)
        assert bob.receive(soon()) == Arrival(HUB, say(str(number)))


def test_a_call_that_failed_leaves_it_free(hub: Endpoint, bob: Endpoint) -> None:
    hub.connect("bob", soon())
    for _ in range(2):
        with pytest.raises(MessageError):
            hub.post("bob", say("x" * (MAX_MESSAGE_BYTES + 1)))
        with pytest.raises(DeadlineError):
            hub.connect("alice", NOW)
    assert hub.post("bob", say("y"))


def test_half_a_line_is_told_when_it_begins_and_once_more_when_nobody_can_end_it(room: Room, bob: Endpoint) -> None:
    bob.watch_lines()
    with open(room.pipe(HUB, "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"one\nha")
        assert [bob.receive(soon()), bob.receive(soon())] == [Arrival(HUB, Plain("one")), Begun(HUB)]
        pipe.write(b"lf")
        assert bob.receive(NOW) is None
        assert (bob.has_unended, bob.look_at_unended()) == (True, [])
    assert bob.look_at_unended() == [Unended(HUB, b"half", Plain("half"))]
    assert (bob.has_unended, bob.look_at_unended()) == (False, [])
    with open(room.pipe(HUB, "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"other\n")
    assert bob.receive(soon()) == Arrival(HUB, Plain("other"))


def test_half_a_line_that_is_ended_is_no_matter(room: Room, bob: Endpoint) -> None:
    bob.watch_lines()
    with open(room.pipe(HUB, "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"ha")
        assert bob.receive(soon()) == Begun(HUB)
        pipe.write(b"lf\n")
    assert bob.look_at_unended() == [], "what its writer wrote last is still to be read"
    assert bob.receive(soon()) == Arrival(HUB, Plain("half"))
    assert (bob.look_at_unended(), bob.has_unended) == ([], False)


def test_half_a_line_that_stays_is_told_once(room: Room, bob: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelpipes.pipe import endpoint

    monkeypatch.setattr(endpoint, "UNENDED_S", 0.01)
    bob.watch_lines()
    with open(room.pipe(HUB, "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"half")
        assert bob.receive(soon()) == Begun(HUB)
        found: list[Unended] = []

        def is_told() -> bool:
            found.extend(bob.look_at_unended())
            return bool(found)

        eventually(is_told, "word of the line that stays")
        assert found == [Unended(HUB, b"half", None)]
        assert (bob.look_at_unended(), bob.has_unended) == ([], True)
    assert bob.look_at_unended() == [Unended(HUB, b"half", Plain("half"))]


def test_half_a_line_of_a_typed_asker_is_that_askers_to_end(room: Room, bob: Endpoint) -> None:
    bob.watch_lines()
    with room.take(room.asker_lock(HUB, "bob"), NOW):
        with open(room.pipe(HUB, "bob"), "wb", buffering=0) as pipe:
            pipe.write(b'{"type":"say","id":"1"')
        assert bob.receive(soon()) == Begun(HUB)
        assert bob.look_at_unended() == []
    (unended,) = bob.look_at_unended()
    assert isinstance(unended.item, Malformed)


def test_who_does_not_watch_lines_is_told_whole_ones_alone(room: Room, bob: Endpoint) -> None:
    with open(room.pipe(HUB, "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"half")
        assert (bob.receive(NOW), bob.has_unended) == (None, False)
