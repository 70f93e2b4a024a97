"""A batch of questions to one member: each has its end, whatever the member does amid them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import DeadlineError, PeerGone
from modelpipes.pipe.endpoint import Arrival, Endpoint, Readable
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.pipe.message import Bye, Failure, Reply, Say, new_id
from modelpipes.pipe.room import HUB, Room
from modelpipes.pipe.sidebyside import Outcome, SideBySide, Unfit, ask_each, in_order
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


class Given:
    """All questions at once."""

    def __init__(self, questions: Sequence[str | Unfit]) -> None:
        self.fd, self._write_fd = os.pipe()
        self.is_over = False
        self._questions = questions

    def take(self, *, waits: bool) -> Sequence[str | Unfit]:
        self.is_over = True
        return self._questions

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


class Bob:
    """A member that does with each message what the test says."""

    def __init__(self, room: Room, script: Callable[[Bob, Say], None]) -> None:
        self._room = room
        self._script = script
        self.heard: list[str] = []

    def reply(self, say: Say) -> None:
        self.endpoint.post(HUB, Reply(new_id(), say.id, "bob", HUB, f"{say.content}!", "end"))

    def be_busy(self, say: Say) -> None:
        self.endpoint.post(HUB, Failure("bob", HUB, "busy", "bob has 64 messages waiting", say.id))

    @contextlib.contextmanager
    def seated(self) -> Iterator[Bob]:
        stop_r, stop_w = os.pipe()
        with self._room.take_seat("bob"), Endpoint(self._room, "bob") as self.endpoint:
            self.endpoint.listen(HUB)
            self.endpoint.watch(stop_r)
            thread = threading.Thread(target=self._answer)
            thread.start()
            try:
                yield self
            finally:
                os.close(stop_w)
                thread.join(LIMIT_S)
                os.close(stop_r)

    def _answer(self) -> None:
        while not isinstance(event := self.endpoint.receive(Deadline.after(LIMIT_S)), Readable | None):
            if isinstance(event, Arrival) and isinstance(event.item, Say):
                self.endpoint.connect(HUB, Deadline.after(LIMIT_S))
                self.heard.append(event.item.content)
                self._script(self, event.item)


def outcomes_of(
    room: Room, questions: Sequence[str | Unfit], at_a_time: int, *, silence_s: float = LIMIT_S
) -> Iterator[Outcome]:
    def open_asker() -> SideBySide:
        return SideBySide(room, HUB, "bob", silence_s=silence_s, limit=Deadline.never())

    with contextlib.closing(Given(questions)) as given:
        yield from ask_each(given, open_asker, lambda text: Say(new_id(), HUB, "bob", text), at_a_time)


def said(outcome: Outcome) -> str | None:
    """What was answered, or the reason why nothing was."""
    answer = outcome.answer
    return answer.content if isinstance(answer, Reply) else answer.reason if answer else None


def test_a_member_too_busy_for_all_is_asked_again_once_one_is_answered(room: Room) -> None:
    held: list[Say] = []

    def script(bob: Bob, say: Say) -> None:
        if held and say.content == "b" and bob.heard.count("b") == 1:
            bob.be_busy(say)
            bob.reply(held[0])
        elif say.content == "a":
            held.append(say)
        else:
            bob.reply(say)

    with Bob(room, script).seated() as bob:
        answered = list(outcomes_of(room, ["a", "b", "c"], 2))
    assert sorted((outcome.line, said(outcome)) for outcome in answered) == [(1, "a!"), (2, "b!"), (3, "c!")]
    assert bob.heard.count("b") == 2


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_a_member_that_works_for_others_only_is_asked_again_after_a_while(room: Room, at_a_time: int) -> None:
    def script(bob: Bob, say: Say) -> None:
        (bob.be_busy if bob.heard.count(say.content) == 1 else bob.reply)(say)

    with Bob(room, script).seated():
        answered = list(in_order(outcomes_of(room, ["a", "b"], at_a_time)))
    assert [said(outcome) for outcome in answered] == ["a!", "b!"]


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_who_is_too_busy_for_as_long_as_it_may_be_silent_has_failed_and_the_next_one_is_asked(
    room: Room, at_a_time: int
) -> None:
    def script(bob: Bob, say: Say) -> None:
        (bob.be_busy if say.content == "a" else bob.reply)(say)

    with Bob(room, script).seated():
        answered = list(in_order(outcomes_of(room, ["a", "b"], at_a_time, silence_s=0.3)))
    assert [said(outcome) for outcome in answered] == ["busy", "b!"]


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_what_cannot_travel_or_be_asked_fails_alone(room: Room, at_a_time: int) -> None:
    questions: list[str | Unfit] = [
        "a",
        "\\" * (MAX_MESSAGE_BYTES // 2),
        "",
        Unfit("?", "it is no text", "malformed"),
        "b",
    ]
    with Bob(room, Bob.reply).seated() as bob:
        answered = list(in_order(outcomes_of(room, questions, at_a_time)))
    assert [said(outcome) for outcome in answered] == ["a!", "too-large", None, "malformed", "b!"]
    assert bob.heard == ["a", "b"]


def test_questions_that_a_member_leaves_behind_are_told_of_before_that_is_raised(room: Room) -> None:
    def script(bob: Bob, say: Say) -> None:
        if say.content == "a":
            bob.reply(say)
        elif say.content == "c":
            bob.endpoint.post(HUB, Bye("bob", HUB))

    answered: list[Outcome] = []
    with Bob(room, script).seated(), pytest.raises(PeerGone):
        answered.extend(outcomes_of(room, ["a", "b", "c", "d"], 3))
    assert [said(outcome) for outcome in in_order(answered)] == ["a!", "leaving", "leaving", "leaving"]


def test_questions_that_a_silent_member_leaves_behind_are_told_as_such(room: Room) -> None:
    answered: list[Outcome] = []
    with Bob(room, lambda bob, say: None).seated(), pytest.raises(DeadlineError):
        answered.extend(outcomes_of(room, ["a", "b", "c"], 2, silence_s=0.2))
    assert [said(outcome) for outcome in answered] == ["silent"] * 3


def test_who_hears_no_more_of_the_outcomes_leaves_the_seat_to_others(room: Room) -> None:
    with Bob(room, Bob.reply).seated():
        outcomes = outcomes_of(room, ["a", "b", "c"], 3)
        assert said(next(outcomes)) == "a!"
        assert room.is_asked(HUB, "bob")
        outcomes.close()  # type: ignore[attr-defined]  # it is a generator
        assert not room.is_asked(HUB, "bob")


@given(st.permutations(range(1, 9)))
def test_in_order_each_comes_as_soon_as_those_before_it_are_there(lines: list[int]) -> None:
    came: list[int] = []

    def coming() -> Iterator[Outcome]:
        for line in lines:
            came.append(line)
            yield Outcome(line, "")

    told = []
    for outcome in in_order(coming()):
        told.append(outcome.line)
        before = set(came[:-1])
        assert came[-1] not in before and set(told) <= set(came)
        assert max(told) >= came[-1], "it was told later than it could be"
    assert told == sorted(lines)
