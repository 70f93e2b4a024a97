from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelpipes.chat.history import BEGIN, GO_ON, History, render, trim
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
        (-1, [], 0),
    ],
)
def test_a_say_that_cannot_be_is_refused_and_changes_nothing(after: int, told: list[int], turn: int) -> None:
    history = History()
    history.hear(conversation(5))
    with pytest.raises(MessageError):
        history.catch_up(after, [Heard(n, "bob", "x") for n in told], turn)
    assert list(history.turns) == conversation(5)


# --- render


def test_a_lone_message_is_one_user_message() -> None:
    assert render([Heard(0, "hub", "Hello")], "bob") == [{"role": "user", "content": "Hello"}]


def test_between_two_no_names_are_put_before_words() -> None:
    assert render(conversation(4), "bob", "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "words of turn 0\nwords of turn 1"},
        {"role": "assistant", "content": "words of turn 2"},
        {"role": "user", "content": "words of turn 3"},
    ]


def test_among_more_every_other_is_named() -> None:
    assert render(conversation(6, ("alice", "bob", "carol")), "bob") == [
        {"role": "user", "content": "hub: words of turn 0\nalice: words of turn 1"},
        {"role": "assistant", "content": "words of turn 2"},
        {"role": "user", "content": "carol: words of turn 3\nalice: words of turn 4"},
        {"role": "assistant", "content": "words of turn 5"},
        {"role": "user", "content": GO_ON},
    ]


def test_a_hub_that_speaks_again_is_one_more_who_is_named() -> None:
    messages = render(turns_by(["hub", "alice", "bob", "hub"]), "bob")
    assert messages[0]["content"] == "hub: (0)\nalice: (1)"
    assert messages[2]["content"] == "hub: (3)"


def test_a_hub_alone_with_a_member_is_not_named() -> None:
    assert [m["content"] for m in render(turns_by(["hub", "bob", "hub"]), "bob")] == ["(0)", "(1)", "(2)"]


def test_the_system_text_is_folded_into_the_first_user_message_on_request() -> None:
    assert render(conversation(1), "bob", "Be kind.", fold_system=True) == [
        {"role": "user", "content": "Be kind.\n\nwords of turn 0"}
    ]


def test_one_who_spoke_first_is_asked_to_begin() -> None:
    assert render(turns_by(["bob", "alice"]), "bob")[0] == {"role": "user", "content": BEGIN}


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=12), st.sampled_from([None, "", "Be kind."]), st.booleans()
)
def test_roles_alternate_from_user_to_user_and_every_turn_is_there_once_in_order(
    senders: list[str], system: str | None, fold: bool
) -> None:
    messages = render(turns_by(senders), "bob", system, fold)
    roles = [message["role"] for message in messages]
    if system and not fold:
        assert roles.pop(0) == "system"
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    text = "\n".join(message["content"] for message in messages)
    places = [text.index(f"({n})") for n in range(len(senders))]
    assert places == sorted(places)
    assert all(text.count(f"({n})") == 1 for n in range(len(senders)))
    assert not system or text.startswith(system)


# --- trim


def letters(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


@given(st.integers(min_value=1, max_value=200), st.integers(min_value=0, max_value=4000), st.booleans())
def test_trimming_drops_the_oldest_a_quarter_more_than_it_must_at_most_with_few_questions(
    count: int, room: int, fold: bool
) -> None:
    turns = conversation(count)
    asked = 0

    def fits(messages: list[dict[str, str]]) -> bool:
        nonlocal asked
        asked += 1
        return letters(messages) <= room

    try:
        messages, dropped = trim(turns, "bob", "Be kind.", fold, fits)
    except MessageError:
        assert letters(render([*turns[:1], *turns[1:][-1:]], "bob", "Be kind.", fold)) > room
        return
    assert asked <= 2 + max(1, count).bit_length()
    assert letters(messages) <= room
    text = "\n".join(message["content"] for message in messages)
    assert "Be kind." in text
    assert "words of turn 0" in text
    assert f"words of turn {count - 1}" in text
    if dropped is None:
        assert messages == render(turns, "bob", "Be kind.", fold)
        return
    first, last = dropped
    assert first == 1
    assert messages == render([turns[0], *turns[last + 1 :]], "bob", "Be kind.", fold)
    must = next(n for n in range(count) if letters(render([turns[0], *turns[n:]], "bob", "Be kind.", fold)) <= room) - 1
    assert must <= last <= must + (count - 1 - must) // 4


@given(st.integers(min_value=16, max_value=50), st.integers(min_value=0, max_value=40))
def test_the_oldest_turn_left_stays_the_same_for_many_turns(fitting: int, spread: int) -> None:
    # An engine has read what its last prompt began with: that stays the same while the oldest turn does.
    turns = [Heard(n, ("alice", "bob")[n % 2], "x" * (100 + n * 37 % (spread + 1))) for n in range(4 * fitting)]
    oldest = []
    for count in range(2 * fitting, 4 * fitting):
        _, dropped = trim(turns[:count], "bob", None, False, lambda messages: letters(messages) <= fitting * 120)
        assert dropped is not None
        oldest.append(dropped[1])
    changes = sum(a != b for a, b in itertools.pairwise(oldest))
    assert changes <= 1.5 * len(oldest) / (fitting / 8) + 2  # 1.32 is the most of all these


def test_names_stay_when_one_who_is_named_is_trimmed_away() -> None:
    turns = turns_by(["hub", "carol", "alice", "alice"])
    messages, dropped = trim(turns, "bob", None, False, lambda messages: "carol" not in messages[0]["content"])
    assert dropped == (1, 1)
    assert messages == [{"role": "user", "content": "hub: (0)\nalice: (2)\nalice: (3)"}]


def test_what_a_bounded_history_dropped_before_is_reported_too() -> None:
    turns = conversation(9)
    _, dropped = trim([turns[0], *turns[5:]], "bob", None, False, lambda _: True)
    assert dropped == (1, 4)
