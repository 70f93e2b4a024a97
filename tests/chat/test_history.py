from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelpipes.chat.history import History
from modelpipes.errors import MessageError
from modelpipes.pipe.message import Heard

NAMES = ("hub", "alice", "bob", "carol")
COUNTS = st.integers(min_value=0, max_value=30)


def conversation(count: int, speakers: Sequence[str] = ("alice", "bob")) -> list[Heard]:
    """The opening by the hub, then the speakers in turn: `count` turns in all."""
    return [Heard(n, speakers[(n - 1) % len(speakers)] if n else "hub", f"words of turn {n}") for n in range(count)]


def turns_by(senders: list[str]) -> list[Heard]:
    return [Heard(n, sender, f"({n})") for n, sender in enumerate(senders)]


def numbers(turns: Sequence[Heard]) -> list[int]:
    return [heard.turn for heard in turns]


# --- History


def test_a_new_history_knows_nothing() -> None:
    assert (History().last, History().turns) == (-1, ())


@given(COUNTS, COUNTS)
def test_what_is_heard_is_kept_and_what_is_forgotten_is_gone(count: int, turn: int) -> None:
    history = History()
    history.hear(conversation(count))
    history.forget_after(turn - 1)
    assert history.turns == tuple(conversation(min(count, turn)))
    assert history.last == len(history.turns) - 1


@given(st.lists(st.integers(min_value=-1, max_value=8), max_size=6))
def test_turns_that_do_not_follow_are_refused_and_change_nothing(told: list[int]) -> None:
    history = History()
    history.hear(conversation(3))
    assume(told != list(range(3, 3 + len(told))))
    with pytest.raises(MessageError):
        history.hear([Heard(n, "bob", "x") for n in told])
    assert history.turns == tuple(conversation(3))


@given(st.integers(min_value=2, max_value=60), st.integers(min_value=0, max_value=5000))
def test_a_full_history_keeps_the_opening_and_the_newest_turns(count: int, max_bytes: int) -> None:
    history = History(max_bytes)
    turns = conversation(count)
    history.hear(turns)
    kept = numbers(history.turns)
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], count))
    assert history.last == count - 1


@given(COUNTS, st.integers(min_value=-1, max_value=30))
def test_forgetting_back_into_dropped_turns_is_knowing_nothing(count: int, turn: int) -> None:
    history = History(max_bytes=1000)
    history.hear(conversation(count))
    before = history.turns
    history.forget_after(turn)
    if turn >= count - 1:
        assert history.turns == before
    elif turn == 0 or turn in numbers(before):
        assert history.last == turn
    else:
        assert history.turns == ()


def test_memory_is_given_back_when_turns_are_forgotten() -> None:
    history = History(max_bytes=3000)
    for _ in range(50):
        history.hear(conversation(9)[history.last + 1 :])
        assert numbers(history.turns) == list(range(9))
        history.forget_after(2)


@given(st.integers(min_value=1, max_value=12), st.integers(min_value=-1, max_value=12), COUNTS)
def test_catching_up_ends_with_every_turn_once_or_tells_what_is_known(turn: int, after: int, known: int) -> None:
    assume(after < turn)
    all_turns = conversation(turn)
    history = History()
    history.hear(conversation(known, speakers=("bob", "alice")))  # a cache that may differ from the truth
    have = history.catch_up(after, all_turns[after + 1 :], turn)
    if known - 1 < after:
        assert have == history.last == known - 1
    else:
        assert have is None
        assert numbers(history.turns) == list(range(turn))
        assert list(history.turns[after + 1 :]) == all_turns[after + 1 :]


def test_a_member_that_was_told_it_lost_step_is_told_again_from_there() -> None:
    turns = conversation(8)
    history = History()
    history.hear(turns[:3])
    have = history.catch_up(6, turns[7:], 8)
    assert have == 2
    assert history.catch_up(have, turns[have + 1 :], 8) is None
    assert list(history.turns) == turns


def test_a_member_that_knows_nothing_may_be_told_the_opening_then_a_gap() -> None:
    turns = conversation(9)
    history = History()
    assert history.catch_up(-1, [turns[0], *turns[5:]], 9) is None
    assert numbers(history.turns) == [0, 5, 6, 7, 8]


def test_a_member_may_be_asked_again_without_having_heard_anything_new() -> None:
    history = History()
    history.hear(conversation(4))
    assert history.catch_up(3, [], 4) is None


@pytest.mark.parametrize(
    ("after", "told", "turn"),
    [
        (-1, [1, 2], 3),  # no opening
        (-1, [0, 1, 3], 4),  # a gap not after the opening
        (0, [2], 3),  # a gap for one who knows the opening
        (-1, [0, 1], 3),  # ends too early
        (-1, [0, 1, 2], 2),  # goes on too long
        (-1, [], 1),
        (1, [1, 2], 3),  # begins with what is known
        (3, [], 2),
        (-2, [], 1),
    ],
)
def test_a_say_that_cannot_be_is_refused_and_changes_nothing(after: int, told: list[int], turn: int) -> None:
    history = History()
    history.hear(conversation(5))
    with pytest.raises(MessageError):
        history.catch_up(after, [Heard(n, "bob", "x") for n in told], turn)
    assert list(history.turns) == conversation(5)
