from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Raw

from modelpipes.chat.member import Member
from modelpipes.chat.voices import Finish, Work
from modelpipes.errors import DeadlineError, MessageError, PeerError, PeerFailed, PeerGone, ProgramError, RoomError
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.endpoint import Arrival, Endpoint
from modelpipes.pipe.message import Cancel, Delta, Failure, Heard, Message, Pong, Progress, Reply, Say, Usage, new_id
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline
from tests.chat.conftest import ScriptedVoice, Seat, Seated, ask, asker
from tests.peers import LIMIT_S, eventually


class Gate:
    """A voice's script that says "begun", waits until the test opens it or cancels, then says "done"."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.opened = threading.Event()
        self.was_cancelled = threading.Event()

    def __call__(self, work: Work) -> None:
        work.when_cancelled(self.opened.set)
        work.emit("begun ")
        self.begun.release()
        assert self.opened.wait(LIMIT_S)
        if work.is_cancelled:
            self.was_cancelled.set()
        else:
            work.emit("done")

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=LIMIT_S)


class Wire:
    """A seat of the test that speaks as it likes."""

    def __init__(self, room: Room, seat: str = "hub", to: str = "bob") -> None:
        self.seat, self.to = seat, to
        self.endpoint = Endpoint(room, seat)
        self.endpoint.listen(to)
        self.endpoint.connect(to, Deadline.after(LIMIT_S))

    def send(self, message: Message) -> None:
        self.endpoint.send(self.to, message, Deadline.after(LIMIT_S))

    def say(self, content: str) -> str:
        say = Say(new_id(), self.seat, self.to, content)
        self.send(say)
        return say.id

    def tell(self, turn: int, after: int, *heard: tuple[int, str, str]) -> str:
        turns = tuple(Heard(*one) for one in heard)
        say = Say(new_id(), self.seat, self.to, conversation="c", turn=turn, after=after, heard=turns)
        self.send(say)
        return say.id

    def hear(self, kind: type[Message]) -> Message:
        """The next message of a kind; progress and deltas of other kinds are passed over."""
        while True:
            event = self.endpoint.receive(Deadline.after(LIMIT_S))
            assert event is not None, f"no {kind.__name__} came"
            if isinstance(event, Arrival) and isinstance(event.item, kind):
                return event.item

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.endpoint.close()


def plainly(room: Room, line: bytes, sender: str = "hub") -> bytes:
    """What `echo LINE > hub_to_bob; head -1 bob_to_hub` prints."""
    with open(room.pipe(sender, "bob"), "wb") as pipe:
        pipe.write(line + b"\n")
    with open(room.pipe("bob", sender), "rb") as pipe:
        return pipe.readline()


def test_an_answer_comes_in_pieces_and_then_whole_with_its_times(room: Room, seat: Seat) -> None:
    def script(work: Work) -> Finish:
        work.emit(thinking="hm")
        work.emit("one ")
        work.emit("two")
        return Finish(usage=Usage(3, 2), tokens_per_second=7.04, dropped=(1, 2))

    seat(ScriptedVoice(script))
    *pieces, reply = ask(room, "count")
    assert isinstance(reply, Reply)
    assert "".join(p.content for p in pieces if isinstance(p, Delta)) == reply.content == "one two"
    assert "".join(p.thinking for p in pieces if isinstance(p, Delta)) == reply.thinking == "hm"
    assert (reply.stop, reply.usage, reply.dropped, reply.sender) == ("end", Usage(3, 2), (1, 2), "bob")
    assert reply.timing and reply.timing.tokens_per_second == 7.0
    assert 0 <= reply.timing.queued_ms <= reply.timing.total_ms


def test_words_that_turn_out_to_be_thoughts_are_told_anew_on_the_wire(room: Room, seat: Seat) -> None:
    gate = Gate()

    def script(work: Work) -> None:
        gate(work)
        work.begin_anew(thinking="begun done")
        work.emit("Blue.")

    seat(ScriptedVoice(script))
    with Wire(room) as hub:
        hub.say("x")
        deltas = [hub.hear(Delta)]
        gate.opened.set()
        while not isinstance(deltas[-1], Delta) or "Blue." not in deltas[-1].content:
            deltas.append(hub.hear(Delta))
        reply = hub.hear(Reply)
    content = thinking = ""
    for delta in deltas:
        assert isinstance(delta, Delta)
        content = delta.content if delta.anew else content + delta.content
        thinking = delta.thinking if delta.anew else thinking + delta.thinking
    assert isinstance(reply, Reply)
    assert (reply.content, reply.thinking) == (content, thinking) == ("Blue.", "begun done")
    assert deltas[0] == Delta(reply.reply_to, "bob", "hub", "begun ")


def test_a_lone_message_leaves_no_trace_in_the_next_one(room: Room, seat: Seat) -> None:
    voice = ScriptedVoice()
    seat(voice)
    ask(room, "first")
    ask(room, "second")
    assert voice.heard == [[("hub", "first")], [("hub", "second")]]


def slow_and_quick() -> tuple[dict[str, Gate], Callable[[Work], None]]:
    """Gates by the first word of what is asked, and the script of a voice that waits at them."""
    gates = {name: Gate() for name in ("slow", "quick", "late")}
    return gates, lambda work: gates[work.turns[-1].content.split()[0]](work)


def test_messages_of_one_asker_that_stand_alone_are_answered_side_by_side(room: Room, seat: Seat) -> None:
    gates, script = slow_and_quick()
    seat(ScriptedVoice(script, parallel=2))
    with Wire(room) as hub:
        first, second = hub.say("slow"), hub.say("quick")
        gates["slow"].wait_begun()
        gates["quick"].wait_begun()
        gates["quick"].opened.set()
        assert hub.hear(Reply).reply_to == second  # type: ignore[union-attr]
        gates["slow"].opened.set()
        assert hub.hear(Reply).reply_to == first  # type: ignore[union-attr]


def test_messages_of_a_conversation_are_answered_in_order_beside_those_that_stand_alone(room: Room, seat: Seat) -> None:
    gates, script = slow_and_quick()
    seat(ScriptedVoice(script, parallel=4))
    with Wire(room) as hub:
        first, _ = hub.tell(1, -1, (0, "hub", "slow")), hub.tell(2, 0, (1, "hub", "slow"))
        alone = hub.say("quick")
        gates["slow"].wait_begun()
        gates["quick"].wait_begun()
        gates["quick"].opened.set()
        assert hub.hear(Reply).reply_to == alone  # type: ignore[union-attr]
        assert not gates["slow"].begun.acquire(blocking=False), "the second turn did not wait for the first"
        gates["slow"].opened.set()
        assert hub.hear(Reply).reply_to == first  # type: ignore[union-attr]


def test_an_asker_with_many_messages_does_not_shut_out_another(room: Room, seat: Seat) -> None:
    gates, script = slow_and_quick()
    seat(ScriptedVoice(script, parallel=2))
    with Wire(room) as hub, Wire(room, "alice") as alice:
        for word in ("slow", "late", "late"):
            hub.say(word)
        gates["slow"].wait_begun()
        gates["late"].wait_begun()
        alice.say("quick")
        assert isinstance(alice.hear(Progress), Progress)
        gates["slow"].opened.set()
        gates["quick"].wait_begun()  # before the hub's third
        assert not gates["late"].begun.acquire(blocking=False)
        gates["quick"].opened.set()
        gates["late"].opened.set()
        assert alice.hear(Reply)


def test_no_more_than_parallel_messages_are_in_work_and_the_others_learn_their_place(room: Room, seat: Seat) -> None:
    gate = Gate()
    seat(ScriptedVoice(gate, parallel=1))
    with Wire(room) as hub, Wire(room, "alice") as alice:
        hub.say("x")
        gate.wait_begun()
        alice.say("y")
        progress = alice.hear(Progress)
        assert isinstance(progress, Progress)
        assert (progress.phase, progress.position) == ("queued", 1)
        gate.opened.set()
        assert alice.hear(Reply)


def test_a_full_queue_refuses_as_busy_and_answers_the_others(
    room: Room, seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelpipes.chat.member.QUEUE_LIMIT", 2)
    gate = Gate()
    seat(ScriptedVoice(gate))
    with Wire(room) as hub:
        asked = [hub.say("1")]
        gate.wait_begun()
        asked += [hub.say(str(n)) for n in range(2, 5)]
        failure = hub.hear(Failure)
        assert isinstance(failure, Failure)
        assert (failure.reason, failure.reply_to) == ("busy", asked[3])
        gate.opened.set()
        assert [hub.hear(Reply).reply_to for _ in range(3)] == asked[:3]  # type: ignore[union-attr]


def test_an_asker_that_goes_away_stops_the_work(room: Room, seat: Seat) -> None:
    gate = Gate()
    seat(ScriptedVoice(gate))
    with Wire(room) as hub:
        hub.say("x")
        gate.wait_begun()
    assert gate.was_cancelled.wait(LIMIT_S)
    assert isinstance(ask(room, "and now")[-1], Reply)


def test_an_asker_that_follows_at_once_on_another_is_missed_as_well_before_it_was_told_anything(
    room: Room, seat: Seat
) -> None:
    # The pipe to the first one lingered, unwatched, and was taken for the second: its work ran to the end.
    gate = Gate()

    def script(work: Work) -> None:
        if work.turns[-1].content == "slow":
            work.when_cancelled(lambda: [event.set() for event in (gate.was_cancelled, gate.opened)])  # type: ignore[func-returns-value]
            gate.begun.release()
            assert gate.opened.wait(LIMIT_S)

    seat(ScriptedVoice(script))
    for _ in range(5):
        ask(room, "quick")
        with Wire(room) as hub:
            hub.say("slow")
            gate.wait_begun()
        assert gate.was_cancelled.wait(LIMIT_S)
        gate.opened.clear()
        gate.was_cancelled.clear()


def test_a_cancel_ends_the_answer_with_what_was_said(room: Room, seat: Seat) -> None:
    gate = Gate()
    seat(ScriptedVoice(gate))
    with Wire(room) as hub:
        asked, waiting = hub.say("x"), hub.say("y")
        gate.wait_begun()
        hub.send(Cancel(waiting, "hub", "bob"))
        dropped = hub.hear(Reply)
        hub.send(Cancel(asked, "hub", "bob"))
        broken_off = hub.hear(Reply)
    assert isinstance(dropped, Reply) and isinstance(broken_off, Reply)
    assert (dropped.reply_to, dropped.stop, dropped.content) == (waiting, "cancelled", "")
    assert (broken_off.reply_to, broken_off.stop, broken_off.content) == (asked, "cancelled", "begun ")


def test_nobody_cancels_what_another_asked(room: Room, seat: Seat) -> None:
    gate = Gate()
    seat(ScriptedVoice(gate))
    with Wire(room) as hub, Wire(room, "alice") as alice:
        asked = hub.say("x")
        gate.wait_begun()
        alice.send(Cancel(asked, "alice", "bob"))
        alice.say("y")
        alice.hear(Progress)
        gate.opened.set()
        reply = hub.hear(Reply)
    assert isinstance(reply, Reply)
    assert (reply.stop, reply.content) == ("end", "begun done")


def test_a_repeated_id_is_answered_from_memory_and_an_id_in_work_is_joined(room: Room, seat: Seat) -> None:
    gate = Gate()
    voice = ScriptedVoice(gate)
    seat(voice)
    with Wire(room) as hub:
        say = Say(new_id(), "hub", "bob", "x")
        hub.send(say)
        gate.wait_begun()
        hub.hear(Delta)
        hub.send(say)
        joined = hub.hear(Delta)
        gate.opened.set()
        first = hub.hear(Reply)
        hub.send(say)
        assert hub.hear(Reply) == first
    assert isinstance(joined, Delta) and joined.content == "begun "
    assert len(voice.heard) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProgramError("it broke"), "voice"),
        (MessageError("it is too long"), "too-large"),
        (DeadlineError("it is mute"), "silent"),
    ],
)
def test_a_voice_that_fails_is_a_failure_with_its_reason(room: Room, seat: Seat, error: Exception, reason: str) -> None:
    def script(work: Work) -> None:
        raise error

    seat(ScriptedVoice(script))
    with pytest.raises(PeerFailed, match=f"bob: {error}") as failed:
        ask(room, "x")
    assert failed.value.reason == reason
    assert plainly(room, b"x") == f"error: {error}\n".encode()


def test_a_line_that_nobody_can_parse_is_answered_with_a_failure_and_the_next_one_is_read(
    room: Room, seat: Seat
) -> None:
    seat(ScriptedVoice())
    with Wire(room) as hub:
        with open(room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
            pipe.write(b'{"type":"say","id":"abc"\n{"type":"dance","id":"def"}\n')
        failures = [hub.hear(Failure), hub.hear(Failure)]
        asked = hub.say("still there?")
        assert hub.hear(Reply).reply_to == asked  # type: ignore[union-attr]
    assert [(f.reason, f.reply_to) for f in failures if isinstance(f, Failure)] == [
        ("malformed", "abc"),
        ("malformed", "def"),
    ]


def test_unknown_fields_mean_nothing(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    with Wire(room) as hub:
        with open(room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
            pipe.write(b'{"type":"say","id":"abc","from":"hub","to":"bob","content":"hi","mood":[1]}\n')
        assert hub.hear(Reply).content == "hi"  # type: ignore[union-attr]


def test_a_ping_is_answered_while_the_voice_works(room: Room, seat: Seat) -> None:
    from modelpipes.pipe.message import Ping

    gate = Gate()
    seat(ScriptedVoice(gate))
    with Wire(room) as hub:
        hub.say("x")
        gate.wait_begun()
        hub.send(Ping("p1", "hub", "bob", Raw(b'"payload"')))
        pong = hub.hear(Pong)
        gate.opened.set()
        hub.hear(Reply)
    assert pong == Pong("p1", "bob", "hub", Raw(b'"payload"'))


# -- conversations


def test_in_a_conversation_a_member_remembers_what_it_heard_and_said(room: Room, seat: Seat) -> None:
    voice = ScriptedVoice(lambda work: work.emit(f"answer {len(work.turns)}"))
    seat(voice)
    with Wire(room) as hub:
        hub.tell(1, -1, (0, "hub", "open"))
        hub.hear(Reply)
        hub.tell(3, 1, (2, "alice", "well"))
        hub.hear(Reply)
    assert voice.heard[1] == [("hub", "open"), ("bob", "answer 1"), ("alice", "well")]


def test_a_member_that_knows_less_says_what_it_has_and_is_told_from_there_under_the_same_id(
    room: Room, seat: Seat
) -> None:
    voice = ScriptedVoice()
    seat(voice)
    with Wire(room) as hub:
        asked = hub.tell(4, 2, (3, "alice", "c"))
        failure = hub.hear(Failure)
        assert isinstance(failure, Failure)
        assert (failure.reason, failure.have, failure.reply_to) == ("out-of-step", -1, asked)
        turns = tuple(Heard(n, "alice", "abc"[n - 1] if n else "open") for n in range(4))
        hub.send(Say(asked, "hub", "bob", conversation="c", turn=4, after=-1, heard=turns))
        assert hub.hear(Reply).reply_to == asked  # type: ignore[union-attr]
    assert [content for _, content in voice.heard[0]] == ["open", "a", "b", "c"]


def test_a_member_that_knows_more_forgets_back_to_what_the_leader_believes(room: Room, seat: Seat) -> None:
    voice = ScriptedVoice(lambda work: work.emit("unwritten"))
    seat(voice)
    with Wire(room) as hub:
        hub.tell(1, -1, (0, "hub", "open"))
        hub.hear(Reply)
        hub.tell(1, -1, (0, "hub", "open"))  # the leader died before it wrote the answer down
        hub.hear(Reply)
        hub.tell(2, 0, (1, "alice", "other"))
        hub.hear(Reply)
    assert voice.heard[1:] == [[("hub", "open")], [("hub", "open"), ("alice", "other")]]


def test_a_cancelled_answer_never_enters_the_history(room: Room, seat: Seat) -> None:
    gate = Gate()
    voice = ScriptedVoice(gate)
    seat(voice)
    with Wire(room) as hub:
        asked = hub.tell(1, -1, (0, "hub", "open"))
        gate.wait_begun()
        hub.send(Cancel(asked, "hub", "bob"))
        hub.hear(Reply)
        hub.tell(2, 0, (1, "alice", "instead"))
        hub.hear(Reply)
    assert voice.heard[1] == [("hub", "open"), ("alice", "instead")]


# -- plain messages


def test_a_plain_line_is_answered_with_one_plain_line(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice(lambda work: work.emit("one\ntwo")))
    assert plainly(room, b"x") == b"one two\n"


def test_a_program_that_opens_one_pipe_after_the_other_gets_its_answer_a_hundred_times(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    for number in range(100):
        assert plainly(room, f"line {number}".encode()) == f"line {number}\n".encode()


def test_a_plain_asker_that_reads_before_its_answer_is_made_does_not_find_the_last_ones_pipe_closing(
    room: Room, seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It read an end of file, and the answer went to its next reader.
    monkeypatch.setattr("modelpipes.pipe.endpoint.LINGER_S", 0.001)
    gate = Gate()
    seat(ScriptedVoice(lambda work: gate(work) if work.turns[-1].content == "slow" else work.emit("quick"), parallel=2))
    assert plainly(room, b"x") == b"quick\n"
    with open(room.pipe("hub", "bob"), "wb") as pipe:
        pipe.write(b"slow\n")
    gate.wait_begun()
    got: list[bytes] = []

    def read() -> None:
        with open(room.pipe("bob", "hub"), "rb") as pipe:
            got.append(pipe.readline())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):  # each makes the member look at its pipes again
        ask(room, "meanwhile", sender="alice")
    gate.opened.set()
    reader.join(LIMIT_S)
    assert got == [b"begun done\n"]


def test_a_newer_plain_line_is_answered_and_never_the_one_before_it(room: Room, seat: Seat) -> None:
    # An answer that was left uncollected went to the next question, and so on for ever.
    gate = Gate()
    seat(ScriptedVoice(lambda work: gate(work) if work.turns[-1].content == "B" else work.emit(work.turns[-1].content)))
    with open(room.pipe("hub", "bob"), "wb") as pipe:
        pipe.write(b"A\n")
    eventually(lambda: room.sitting("bob").answers == 1, "the answer that nobody collects")
    with open(room.pipe("hub", "bob"), "wb") as pipe:
        pipe.write(b"B\n")
    gate.opened.set()
    with open(room.pipe("bob", "hub"), "rb") as pipe:
        assert pipe.readline() == b"begun done\n"
    assert plainly(room, b"C") == b"C\n"


def test_every_plain_line_is_heard_though_only_the_last_is_answered(room: Room, seat: Seat) -> None:
    voice = ScriptedVoice()
    seat(voice)
    with open(room.pipe("hub", "bob"), "wb") as pipe:
        pipe.write(b"one\ntwo\nthree\n")
    with open(room.pipe("bob", "hub"), "rb") as pipe:
        assert pipe.readline() == b"three\n"
    assert voice.heard == [[("hub", "one")], [("hub", "two")], [("hub", "three")]]


def say_plainly(room: Room, data: bytes) -> None:
    with open(room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
        pipe.write(data)


def collect(room: Room) -> bytes:
    with open(room.pipe("bob", "hub"), "rb") as pipe:
        return pipe.readline()


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1} is this JSON?', b"{ what is this brace?", b"{", b'{"type":"dance"}'],
)
def test_a_line_that_begins_as_a_message_and_is_none_is_answered_with_an_error_to_who_reads_later(
    room: Room, seat: Seat, line: bytes
) -> None:
    # Nobody was told anything: its asker read for ever.
    seat(ScriptedVoice())
    answer = plainly(room, line)
    assert answer.startswith(b"error: not a message: ")
    assert answer.endswith(b"; words must not begin with { (a space before it will do)\n")
    assert plainly(room, b" " + line) == b" " + line + b"\n"


def test_a_line_that_is_no_message_takes_the_place_of_an_older_answer(room: Room, seat: Seat) -> None:
    member = seat(ScriptedVoice())
    say_plainly(room, b"older\n")
    eventually(lambda: room.sitting("bob").answers == 1, "the older answer")
    say_plainly(room, b"{ newer\n")
    eventually(lambda: member.said, "word of the lost answer")
    assert collect(room).startswith(b"error: not a message")
    assert plainly(room, b"newest") == b"newest\n"


def test_a_typed_asker_that_writes_rubbish_is_told_by_a_failure(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    with room.take(room.asker_lock("hub", "bob"), Deadline.after(LIMIT_S)), Wire(room) as hub:
        say_plainly(room, b"{ rubbish\n")
        failure = hub.hear(Failure)
        assert isinstance(failure, Failure) and (failure.reason, failure.reply_to) == ("malformed", None)


def test_rubbish_of_a_seat_that_a_member_holds_is_not_answered(room: Room, seat: Seat) -> None:
    member = seat(ScriptedVoice())
    with room.take_seat("hub") as lock:
        lock.write(b'{"seat":"hub","state":"ready"}\n')
        say_plainly(room, b"{ rubbish\n")
        eventually(lambda: member.said, "word of it")
    assert member.said == ["bob: a plain line from hub, which is a member, is not answered"]


def test_a_last_line_without_a_newline_is_answered_and_told(room: Room, seat: Seat) -> None:
    # It waited in the pipe, and was the beginning of the next asker's line.
    member = seat(ScriptedVoice())
    for number in range(5):
        say_plainly(room, f"half {number}".encode())
        assert collect(room) == f"half {number}\n".encode()
        assert plainly(room, b"whole") == b"whole\n"
    assert member.said[0] == "bob: hub's line 'half 0' has no newline at its end; it is read as it is"


def test_a_line_that_is_written_in_pieces_is_one_line(room: Room, seat: Seat) -> None:
    member = seat(ScriptedVoice())
    with open(room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"What is ")
        eventually(lambda: member.said, "word of the line that is not ended")
        pipe.write(b"3 and 4?\n")
        assert collect(room) == b"What is 3 and 4?\n"
    assert member.said == ["bob: hub does not end its line 'What is '; it is read when its newline comes"]


@pytest.mark.parametrize("half", [b'{"type":"say","id":"1","from":"hub","to":"bob","content":"ha', b"{ ha"])
def test_half_a_message_of_who_has_gone_is_dropped_and_told(room: Room, seat: Seat, half: bytes) -> None:
    member = seat(ScriptedVoice())
    say_plainly(room, half)
    eventually(lambda: member.said, "word of it")
    assert plainly(room, b"mine") == b"mine\n"
    (said,) = member.said
    assert said.startswith("bob: half a message of hub, which went away, is dropped: '{")
    assert len(said) < 110


def test_a_whole_message_without_a_newline_is_heard(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    with Wire(room) as hub:
        hub.endpoint.close()
        hub.endpoint.listen("bob")
        say_plainly(room, b'{"type":"say","id":"1","from":"hub","to":"bob","content":"hi"}')
        assert hub.hear(Reply).content == "hi"  # type: ignore[union-attr]


def test_half_a_line_never_joins_that_of_a_typed_asker(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    with open(room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
        pipe.write(b"half")
        assert [reply.content for reply in ask(room, "typed") if isinstance(reply, Reply)] == ["typed"]
    assert collect(room) == b"half\n"


def test_a_plain_asker_that_never_collects_holds_nobody_up_and_a_newer_line_replaces_its_answer(
    room: Room, seat: Seat, capfd: pytest.CaptureFixture[str]
) -> None:
    seat(ScriptedVoice())
    for number, line in enumerate((b"old\n", b"new\n"), 1):
        with open(room.pipe("hub", "bob"), "wb") as pipe:
            pipe.write(line)
        assert isinstance(ask(room, "meanwhile", sender="alice")[-1], Reply)
        eventually(lambda answers=2 * number: room.sitting("bob").answers == answers, "the plain answer")  # type: ignore[misc]
    with open(room.pipe("bob", "hub"), "rb") as pipe:
        assert pipe.readline() == b"new\n"
    assert "hub asked again before it collected an answer" in capfd.readouterr().err


def test_a_plain_line_from_a_seat_that_a_member_holds_is_never_answered(
    room: Room, seat: Seat, capfd: pytest.CaptureFixture[str]
) -> None:
    voice = ScriptedVoice()
    seat(voice)
    seat(ScriptedVoice(), "alice")
    with open(room.pipe("alice", "bob"), "wb") as pipe:
        pipe.write(b"for ever\n")
    assert isinstance(ask(room, "x")[-1], Reply)
    assert voice.heard == [[("hub", "x")]]
    assert "which is a member" in capfd.readouterr().err


def test_a_typed_asker_keeps_plain_lines_of_its_seat_waiting(room: Room, seat: Seat) -> None:
    voice = ScriptedVoice()
    seat(voice)
    with asker(room) as one:
        with open(room.pipe("hub", "bob"), "wb") as pipe:
            pipe.write(b"plain\n")
        answers = list(one.ask(Say(new_id(), "hub", "bob", "typed")))
        assert isinstance(answers[-1], Reply)
        assert answers[-1].content == "typed"
        assert voice.heard == [[("hub", "typed")]]
    with open(room.pipe("bob", "hub"), "rb") as pipe:
        assert pipe.readline() == b"plain\n"


def test_a_bracket_begins_no_plain_line(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    assert plainly(room, b"[1]") == b"[1]\n"


# -- its seat


def test_the_seats_state_tells_what_it_does(room: Room, seat: Seat) -> None:
    gate = Gate()
    seat(ScriptedVoice(gate))
    who = room.sitting("bob")
    assert (who.state, who.pid, who.voice, who.queue, who.answers) == ("ready", os.getpid(), "scripted", 0, 0)
    with Wire(room) as hub:
        hub.say("x")
        gate.wait_begun()
        hub.say("y")
        hub.hear(Progress)
        who = room.sitting("bob")
        assert (who.state, who.queue, who.answers) == ("busy", 1, 0)
        gate.opened.set()
        hub.hear(Reply)
        hub.hear(Reply)
    ask(room, "z")
    assert room.sitting("bob").answers >= 2


def test_a_second_member_is_told_who_sits_there(room: Room, seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelpipes.pipe.room._DYING_S", 0.05)
    seat(ScriptedVoice())
    second = seat(ScriptedVoice())
    second.join()
    assert isinstance(second.error, RoomError)
    assert f"taken by bob (pid {os.getpid()}" in str(second.error)


def test_a_member_whose_pipes_vanish_leaves_by_itself(room: Room, seat: Seat) -> None:
    voice = ScriptedVoice()
    member = seat(voice)
    assert clean_up(room, force=True) == []
    member.join()
    assert (member.exit_code, member.error, voice.is_closed) == (0, None, True)
    assert not os.path.exists(room.path)


def test_a_member_reads_pipes_that_are_made_while_it_sits(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    room.make_pipes([("carol", "bob"), ("bob", "carol")])
    assert isinstance(ask(room, "hello", sender="carol")[-1], Reply)


def test_once_answers_one_message_and_leaves(room: Room, seat: Seat) -> None:
    member = seat(ScriptedVoice(), once=True)
    assert isinstance(ask(room, "x")[-1], Reply)
    member.join()
    assert member.exit_code == 0
    assert room.sitting("bob").state == "free"


def test_a_member_that_leaves_tells_who_waits_and_ends_its_voice(room: Room, seat: Seat) -> None:
    gate = Gate()
    voice = ScriptedVoice(gate)
    member = seat(voice)
    failed: list[PeerError] = []

    def wait() -> None:
        with pytest.raises((PeerFailed, PeerGone)) as error:
            ask(room, "x")
        failed.append(error.value)

    thread = threading.Thread(target=wait)
    thread.start()
    gate.wait_begun()
    member.end()
    thread.join(LIMIT_S)
    assert "bob is leaving" in str(failed[0])
    assert voice.is_closed
    assert room.sitting("bob").state == "free"


def test_a_fault_of_ours_in_a_voice_is_a_failure_and_keeps_no_seat_busy(
    room: Room, seat: Seat, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(work: Work) -> None:
        raise ZeroDivisionError("ours") if work.turns[-1].content == "x" else ProgramError("its own")

    seat(ScriptedVoice(script))
    with pytest.raises(PeerFailed, match=r"a fault of modelpipes.*ZeroDivisionError"):
        ask(room, "x")
    with pytest.raises(PeerFailed, match="its own"):
        ask(room, "y")
    assert re.fullmatch(f"{A_FAULT}ZeroDivisionError: ours .test_member.py:[0-9]+.\n", capfd.readouterr().err)


A_FAULT = "bob: a fault of modelpipes, please report it: "


class FaultyVoice(ScriptedVoice):
    """A voice that fails in a way that nobody foresaw, in the method that a test names."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__()
        self.begun, self.may_fail = threading.Event(), threading.Event()

        def fail(*_: object) -> None:
            if self.may_fail.is_set() or method == "prepare":
                self.begun.set()
                assert self.may_fail.wait(LIMIT_S)
                raise error

        setattr(self, method, fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("integer\nmodulo"), f"{A_FAULT}ZeroDivisionError: integer modulo (test_member.py:"),
        (SystemExit(3), f"{A_FAULT}SystemExit: 3 (test_member.py:"),
        (OSError(24, "Too many open files", "model.gguf"), "bob: Too many open files: model.gguf"),
        (ProgramError("no such file"), "no such file"),
    ],
)
def test_whatever_loading_dies_of_ends_the_member_and_tells_who_waits(
    room: Room, error: BaseException, said: str
) -> None:
    # The thread died alone, and the seat was "loading" for ever.
    voice = FaultyVoice("prepare", error)
    member = Seated(Member(room, "bob", voice))
    with Wire(room) as hub:
        hub.say("x")
        assert isinstance(progress := hub.hear(Progress), Progress)
        assert (progress.phase, voice.begun.is_set()) == ("loading", True)
        voice.may_fail.set()
        failure = hub.hear(Failure)
    member.join()
    assert isinstance(failure, Failure)
    assert failure.reason == "leaving"
    assert failure.detail == str(member.error)
    assert str(member.error).startswith(said)
    assert member.error and member.error.exit_code == 1
    assert voice.is_closed
    assert room.sitting("bob").state == "died"


@pytest.mark.parametrize("method", ["tend", "death_fd"])
def test_whatever_looking_after_a_voice_dies_of_ends_the_member_and_tells_who_waits(
    room: Room, seat: Seat, method: str
) -> None:
    gate = Gate()
    voice = FaultyVoice(method, KeyError("gone"))
    voice.script = gate
    if method == "death_fd":  # asked for once the voice is ready
        voice.may_fail.set()
        member = Seated(Member(room, "bob", voice))
    else:
        member = seat(voice)
        with Wire(room) as hub:
            hub.say("x")
            gate.wait_begun()
            voice.may_fail.set()
            failure = hub.hear(Failure)
        assert isinstance(failure, Failure)
        assert failure.detail == str(member.error or failure.detail)
        assert gate.was_cancelled.wait(LIMIT_S)
    member.join()
    assert str(member.error).startswith(f"{A_FAULT}KeyError: 'gone' (test_member.py:")
    assert voice.is_closed


def test_what_a_voices_thread_dies_of_beside_an_answer_ends_the_member(room: Room, seat: Seat) -> None:
    # The answer failed, and so did the look at why: the thread was gone, and the seat busy for ever.
    def script(work: Work) -> None:
        voice.may_fail.set()
        raise ProgramError("it broke")

    voice = FaultyVoice("tend", ZeroDivisionError("ours"))
    voice.script = script
    member = seat(voice)
    with pytest.raises((PeerFailed, PeerGone), match="a fault of modelpipes"):
        ask(room, "x")
    member.join()
    assert str(member.error).startswith(f"{A_FAULT}ZeroDivisionError: ours")


def test_a_plain_asker_is_told_that_the_member_leaves(room: Room, seat: Seat) -> None:
    gate = Gate()
    member = seat(ScriptedVoice(gate))
    with open(room.pipe("hub", "bob"), "wb") as pipe:
        pipe.write(b"x\n")
    gate.wait_begun()
    got: list[bytes] = []

    def read() -> None:
        with open(room.pipe("bob", "hub"), "rb") as pipe:
            got.append(pipe.readline())

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: Path(f"/proc/self/task/{reader.native_id}/wchan").read_text() != "0", "the reader's open")
    member.end()
    reader.join(LIMIT_S)
    assert got == [b"error: bob is leaving\n"]


def test_malformed_lines_without_end_do_not_fill_the_memory(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice())
    with Wire(room) as hub:
        line = b'{"type":"dance"}\n' * 4096
        unread = 0
        with open(room.pipe("hub", "bob"), "wb", buffering=0) as pipe:
            for _ in range(300):
                unread += pipe.write(line) or 0
        asked = hub.say("still there?")
        reply = hub.hear(Reply)
    assert isinstance(reply, Reply) and reply.reply_to == asked
    assert unread > 16 << 20


class MortalVoice(ScriptedVoice):
    """A voice that dies when the test says so."""

    def __init__(self, script: Callable[[Work], None]) -> None:
        super().__init__(script)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def death_fd(self) -> int:
        return self.fd

    def last_words(self) -> str:
        return "out of memory"


def test_a_voice_that_dies_takes_its_member_with_it(room: Room, seat: Seat) -> None:
    gate = Gate()
    voice = MortalVoice(gate)
    member = seat(voice)
    with Wire(room) as hub:
        hub.say("x")
        gate.wait_begun()
        os.eventfd_write(voice.fd, 1)
        failure = hub.hear(Failure)
    member.join()
    os.close(voice.fd)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.detail) == ("leaving", "bob: out of memory")
    assert str(member.error) == "bob: out of memory"
    assert room.sitting("bob").state == "died", "who waits for the seat must learn that nobody will come"


def test_an_answer_too_large_for_the_pipe_is_a_failure(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice(lambda work: work.emit("x" * (17 << 20))))
    with pytest.raises(PeerFailed) as failed:
        ask(room, "x")
    assert failed.value.reason == "too-large"


def test_an_asker_that_does_not_read_gets_the_whole_answer_when_it_does(room: Room, seat: Seat) -> None:
    def script(work: Work) -> None:
        for _ in range(400):
            work.emit("0123456789" * 1000)

    seat(ScriptedVoice(script))
    with Wire(room) as hub:
        hub.say("x")
        assert isinstance(ask(room, "y", sender="alice")[-1], Reply)  # it works on meanwhile
        reply = hub.hear(Reply)
    assert isinstance(reply, Reply)
    assert len(reply.content) == 4_000_000
