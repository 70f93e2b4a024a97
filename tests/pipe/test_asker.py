"""One exchange: whole, one at a time, and over as soon as it can only fail."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes import lockfile
from modelpipes.errors import DeadlineError, MessageError, PeerFailed, PeerGone, RoomError
from modelpipes.pipe import fifo
from modelpipes.pipe.asker import Answer, Asker
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.endpoint import Arrival, Endpoint, Lost
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES, encode
from modelpipes.pipe.message import Cancel, Delta, Failure, Progress, Reply, Say
from modelpipes.pipe.room import HUB, PipePair, Room
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S, eventually, peer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def asking(
    room: Room, *, silence_s: float | None = LIMIT_S, limit: Deadline | None = None, seat: str = HUB, to: str = "bob"
) -> Asker:
    return Asker(room, seat, to, silence_s=silence_s, limit=limit or Deadline.never())


def say(content: str = "Hello", say_id: str = "i") -> Say:
    return Say(say_id, HUB, "bob", content)


@contextlib.contextmanager
def as_bob(room: Room) -> Iterator[Endpoint]:
    """A member in this process, that says what the test says."""
    with room.take_seat("bob"), Endpoint(room, "bob") as bob:
        bob.listen(HUB)
        yield bob


def began(room: Room, asker: Asker, bob: Endpoint) -> Iterator[Answer]:
    """An answer that bob has begun, with one word of progress."""
    answers = asker.ask(say())
    bob.connect(HUB, Deadline.after(LIMIT_S))
    bob.post(HUB, Progress("i", "bob", HUB, "thinking"))
    assert isinstance(next(answers), Progress)
    assert bob.receive(Deadline.after(LIMIT_S)) == Arrival(HUB, say())
    return answers


# -- whole


@pytest.mark.parametrize("content", ["Hello", "", "two\nlines\n", "\0\x1b[31m é𝄞\u202e", "x" * 1_000_000])
def test_an_answer_comes_in_deltas_and_whole(room: Room, content: str) -> None:
    with peer("echo", room), asking(room) as asker:
        *deltas, reply = asker.ask(say(content))
        assert isinstance(reply, Reply)
        assert reply.content == content
        assert "".join(delta.content for delta in deltas if isinstance(delta, Delta)) == content
        assert asker.ignored == 0


def test_a_message_of_exactly_the_limit_is_delivered_and_one_byte_more_is_refused(room: Room) -> None:
    largest = "x" * (MAX_MESSAGE_BYTES + 1 - len(encode(say(""))) - len(',"content":""'))
    with peer("thinker", room), asking(room) as asker:
        assert isinstance(next(asker.ask(say(largest))), Progress)
    with peer("echo", room), asking(room) as asker:
        with pytest.raises(MessageError, match="at most"):
            next(asker.ask(say(largest + "x")))
        *_, reply = asker.ask(say("still whole"))
        assert isinstance(reply, Reply)
        assert reply.content == "still whole"


def test_one_asker_may_ask_again(room: Room) -> None:
    with peer("echo", room), asking(room) as asker:
        for number in range(20):
            *_, reply = asker.ask(say(f"{number}", f"id{number}"))
            assert isinstance(reply, Reply)
            assert reply.content == f"{number}"


def test_a_seat_taken_while_it_is_waited_for_answers(room: Room) -> None:
    with peer("asking", room, HUB, "bob") as hub, peer("echo", room):
        assert hub.line() == "Hello"


# -- what is not ours


def test_what_is_left_of_a_predecessor_is_ignored_and_counted(room: Room) -> None:
    with as_bob(room) as bob, asking(room) as asker:
        answers = began(room, asker, bob)
        for stale in (
            Delta("old", "bob", HUB, "old words"),
            Reply("r", "old", "bob", HUB, "old words", "end"),
            Failure("bob", HUB, "voice", "old trouble", "old"),
            Failure("bob", HUB, "malformed", "a half line without an id"),
        ):
            bob.post(HUB, stale)
        bob.post_plain(HUB, "plain words")
        bob.post(HUB, Delta("i", "bob", HUB, "new"))
        bob.post(HUB, Reply("r", "i", "bob", HUB, "new", "end"))
        assert [type(answer) for answer in answers] == [Delta, Reply]
        assert asker.ignored == 5


def test_a_predecessors_half_line_costs_its_successor_nothing(room: Room) -> None:
    # A member answers what it cannot read with a failure; cut before its id that failure names no message,
    # and the successor took it for its own.
    with peer("echo", room):
        writer = fifo.open_write(room.pipe(HUB, "bob"))
        os.write(writer, b'{"ty')
        os.close(writer)
        with asking(room) as asker:
            *_, reply = asker.ask(say())
            assert isinstance(reply, Reply)


def test_a_failure_is_told_with_its_reason(room: Room) -> None:
    with as_bob(room) as bob, asking(room) as asker:
        answers = began(room, asker, bob)
        bob.post(HUB, Failure("bob", HUB, "out-of-step", "", "i", 3))
        with pytest.raises(PeerFailed, match="bob: out-of-step") as e:
            next(answers)
        assert (e.value.reason, e.value.have) == ("out-of-step", 3)


# -- a peer that goes


def test_a_member_that_is_killed_is_noticed_and_named(room: Room) -> None:
    with peer("thinker", room) as bob, asking(room, silence_s=None, limit=Deadline.after(LIMIT_S)) as asker:
        answers = asker.ask(say())
        assert isinstance(next(answers), Progress)
        bob.process.kill()
        with pytest.raises(PeerGone, match=rf"bob \(pid {bob.pid}, .*\) (died|closed its pipe); seat it again"):
            next(answers)


def test_a_member_that_was_killed_before_fails_at_once(room: Room) -> None:
    with peer("sitter", room) as bob:
        bob.kill()
        with asking(room, silence_s=None) as asker, pytest.raises(PeerGone, match=f"pid {bob.pid}.* died; seat it"):
            next(asker.ask(say()))


def test_a_member_that_leaves_is_named(room: Room) -> None:
    says = "bob has left; seat it again with attach-model"
    with peer("leaver", room), asking(room, silence_s=None) as asker, pytest.raises(PeerGone, match=says):
        next(asker.ask(say()))


def test_what_a_member_said_before_it_was_killed_is_heard_first(room: Room) -> None:
    with asking(room) as asker:
        with as_bob(room) as bob:
            answers = began(room, asker, bob)
            bob.post(HUB, Delta("i", "bob", HUB, "last words"))
        assert next(answers) == Delta("i", "bob", HUB, "last words")
        with pytest.raises(PeerGone, match="bob"):
            next(answers)


# -- a peer that is silent


def test_a_member_that_is_stopped_is_a_passed_deadline(room: Room) -> None:
    with peer("thinker", room) as bob, asking(room) as asker:
        answers = asker.ask(say())
        assert isinstance(next(answers), Progress)
        bob.stop()
        asker._silence_s = 0.5
        began_s = time.monotonic()
        with pytest.raises(DeadlineError, match=r"bob showed no life for 0.5 s \(--timeout\)") as e:
            next(answers)
        assert time.monotonic() - began_s >= 0.5
        assert e.value.exit_code == 124


def test_a_member_that_is_stopped_and_whose_pipe_is_full_is_a_passed_deadline(room: Room) -> None:
    with peer("thinker", room) as bob:
        bob.stop()
        read = pytest.raises(DeadlineError, match="bob did not read before the deadline")
        with asking(room, silence_s=1.0) as asker, read:
            next(asker.ask(say("x" * 1_000_000)))


def test_a_seat_that_nobody_ever_took_is_waited_for_until_the_deadline(room: Room) -> None:
    began_s = time.monotonic()
    with asking(room, silence_s=0.3) as asker, pytest.raises(DeadlineError, match="bob: nobody took the seat"):
        next(asker.ask(say()))
    assert time.monotonic() - began_s >= 0.3


def test_a_member_that_never_stops_talking_is_bounded_by_the_whole(room: Room) -> None:
    # The limit was looked at only between answers: a flood of them never let it come to that.
    with peer("stutterer", room), asking(room, limit=Deadline.after(1.0)) as asker:
        ends = Deadline.after(LIMIT_S)
        with pytest.raises(DeadlineError, match=r"bob did not finish within the time allowed \(--max-seconds\)"):
            for _ in asker.ask(say()):
                assert not ends.has_passed()


def test_stale_lines_are_no_sign_of_life(room: Room) -> None:
    with peer("stutterer", room), asking(room) as asker:
        answers = asker.ask(say("first", "first"))
        next(answers)
        answers.close()
        asker._silence_s = 0.3
        asker._heard_life()
        with pytest.raises(DeadlineError, match="showed no life"):
            next(asker.ask(say("second", "second")))
        assert asker.ignored > 0


def test_time_in_which_nobody_listened_is_not_the_members_silence(room: Room) -> None:
    with as_bob(room) as bob, asking(room) as asker:
        answers = began(room, asker, bob)
        asker._silence_s = 0.2
        bob.post(HUB, Delta("i", "bob", HUB, "one"))
        next(answers)
        slow_reader = Deadline.after(0.3)  # a pager, say
        eventually(slow_reader.has_passed, "slow reader")
        bob.post(HUB, Reply("r", "i", "bob", HUB, "one", "end"))
        assert isinstance(next(answers), Reply)


# -- an asker that goes


def test_an_iteration_that_is_broken_off_cancels_the_answer(room: Room) -> None:
    with as_bob(room) as bob, asking(room) as asker:
        answers = began(room, asker, bob)
        answers.close()  # type: ignore[attr-defined]  # a generator
        assert bob.receive(Deadline.after(LIMIT_S)) == Arrival(HUB, Cancel("i", HUB, "bob"))


def test_a_member_learns_that_its_asker_was_killed(room: Room) -> None:
    with as_bob(room) as bob, peer("asking", room, HUB, "bob") as hub:
        event = bob.receive(Deadline.after(LIMIT_S))
        assert isinstance(event, Arrival)
        bob.connect(HUB, Deadline.after(LIMIT_S))
        hub.process.kill()
        assert bob.receive(Deadline.after(LIMIT_S)) == Lost(HUB, 0)


def test_a_whole_answer_is_not_cancelled(room: Room) -> None:
    with as_bob(room) as bob, asking(room) as asker:
        answers = began(room, asker, bob)
        bob.post(HUB, Reply("r", "i", "bob", HUB, "", "end"))
        assert isinstance(next(answers), Reply)
        assert list(answers) == []
        assert bob.receive(Deadline(0.0)) is None


# -- one at a time


def test_two_askers_of_one_seat_wait_their_turn(room: Room) -> None:
    with peer("echo", room), peer("asker", room, HUB, "bob") as first:
        with (
            pytest.raises(DeadlineError, match="held by another process until the deadline"),
            asking(room, silence_s=0.1),
        ):
            pass
        first.tell("end")
        with asking(room) as second:
            *_, reply = second.ask(say())
            assert isinstance(reply, Reply)


def test_many_askers_of_one_seat_each_get_their_own_answer(room: Room) -> None:
    with contextlib.ExitStack() as peers:
        peers.enter_context(peer("echo", room))
        askers = [peers.enter_context(peer("asking", room, HUB, "bob")) for _ in range(5)]
        for asker in askers:
            assert asker.line() == "Hello"
            asker.tell("end")


def test_askers_from_different_seats_do_not_wait_for_each_other(room: Room) -> None:
    room.make_pipes([("alice", "bob"), ("bob", "alice")])
    with peer("asker", room, HUB, "bob"), asking(room, seat="alice", silence_s=1):
        pass


def test_an_asker_that_was_killed_leaves_the_turn_to_the_next(room: Room) -> None:
    with peer("echo", room), peer("asker", room, HUB, "bob") as first:
        first.kill()
        with asking(room) as second:
            *_, reply = second.ask(say())
            assert isinstance(reply, Reply)


def test_while_it_asks_its_lock_names_it_and_afterwards_nobody(room: Room) -> None:
    path = room.asker_lock(HUB, "bob")
    with asking(room):
        assert lockfile.look(path) == (True, f"{os.getpid()}\n".encode())
        assert room.is_asked(HUB, "bob")
    assert lockfile.look(path) == (False, b"")


# -- pipes that are wrong


def test_an_answer_pipe_that_was_removed_is_noticed_within_a_second_or_so(room: Room) -> None:
    with peer("thinker", room), asking(room) as asker:
        answers = asker.ask(say())
        next(answers)
        os.unlink(room.pipe("bob", HUB))
        with pytest.raises(RoomError, match=f"{room.pipe('bob', HUB)}: the pipe was removed; run setup-pipes again"):
            next(answers)


@pytest.mark.parametrize("pair", [(HUB, "bob"), ("bob", HUB)])
def test_a_pipe_that_is_none_is_one_clear_line_and_leaves_no_lock(room: Room, pair: tuple[str, str]) -> None:
    for spoil in (os.unlink, lambda path: Path(path).touch()):
        spoil(room.pipe(*pair))
        with pytest.raises(RoomError, match=f"{room.pipe(*pair)}: not (there|a FIFO)"), asking(room):
            pass
        assert not os.path.exists(room.asker_lock(HUB, "bob"))


def test_a_room_that_was_removed_is_not_made_again_by_who_asks(room: Room) -> None:
    os.chmod(room.path, 0o700)  # as a directory of the user's own, which clean-up leaves
    clean_up(room)
    with pytest.raises(RoomError, match="not there; run setup-pipes first"), asking(room):
        pass
    assert os.listdir(room.path) == []


# -- two FIFOs, named directly


@pytest.fixture
def pair(room: Room, tmp_path: Path) -> PipePair:
    """Any names, anywhere; bob reads and writes them all the same."""
    (tmp_path / "with space").mkdir()
    for name, real in (("in", room.pipe(HUB, "bob")), ("with space/out", room.pipe("bob", HUB))):
        os.rename(real, tmp_path / name)
        os.link(tmp_path / name, real)
    return PipePair(str(tmp_path / "in"), str(tmp_path / "with space" / "out"))


def test_a_pair_of_any_names_asks_and_leaves_no_lock_file(room: Room, tmp_path: Path, pair: PipePair) -> None:
    with peer("echo", room):
        for _ in range(2):
            with asking(pair, seat=pair.sender, to=pair.receiver) as asker:
                assert (tmp_path / "in.lock").exists()
                *_, reply = asker.ask(say())
                assert isinstance(reply, Reply)
            assert not (tmp_path / "in.lock").exists()


def test_two_askers_of_one_pair_wait_their_turn(room: Room, tmp_path: Path, pair: PipePair) -> None:
    with asking(pair, seat=pair.sender, to=pair.receiver):
        with pytest.raises(DeadlineError, match=f"{tmp_path}/in.lock: held"):
            asking(pair, seat=pair.sender, to=pair.receiver, silence_s=0.05).__enter__()
        assert (tmp_path / "in.lock").exists()
    assert not (tmp_path / "in.lock").exists()


def test_a_pair_that_nobody_reads_is_named_by_its_path(tmp_path: Path, pair: PipePair) -> None:
    asker = asking(pair, seat=pair.sender, to=pair.receiver, silence_s=0.1)
    with asker, pytest.raises(DeadlineError, match=f"{tmp_path}/in: nobody took the seat before the deadline"):
        next(asker.ask(say()))
    assert not (tmp_path / "in.lock").exists()


def test_a_pair_with_the_names_of_seats_leaves_the_rooms_lock_file(room: Room) -> None:
    pair = PipePair(room.pipe(HUB, "bob"), room.pipe("bob", HUB))
    with peer("echo", room), asking(pair, seat=pair.sender, to=pair.receiver) as asker:
        assert room.is_asked(HUB, "bob")
        *_, reply = asker.ask(say())
        assert isinstance(reply, Reply)
    assert os.path.exists(room.asker_lock(HUB, "bob"))
