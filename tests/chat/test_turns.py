from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.chat.turns import (
    END_WORD,
    STARVING,
    Random,
    RoundRobin,
    StopRules,
    TurnTaking,
    moderator_question,
    overdue,
    parse_choice,
)
from modelpipes.errors import UsageError
from modelpipes.pipe.message import Heard

MEMBERS = st.lists(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,5}", fullmatch=True), min_size=1, max_size=6, unique=True).map(
    tuple
)
SEEDS = st.integers()


def lead(taking: TurnTaking, count: int, speakers: tuple[str, ...] = ("the hub",)) -> tuple[str, ...]:
    while len(speakers) <= count:
        speakers = (*speakers, taking.next(len(speakers), speakers))
    return speakers


def say(*words: str, sender: str = "alice") -> list[Heard]:
    return [Heard(n, sender if n else "hub", text) for n, text in enumerate(words)]


@given(MEMBERS)
def test_round_robin_goes_round(members: tuple[str, ...]) -> None:
    assert lead(RoundRobin(members), 3 * len(members)) == ("the hub", *members * 3)


def test_one_who_is_no_member_does_not_disturb_the_round() -> None:
    assert RoundRobin(("alice", "bob", "carol")).next(3, ["hub", "alice", "hub"]) == "bob"


@given(MEMBERS, SEEDS)
def test_random_never_chooses_one_twice_in_a_row(members: tuple[str, ...], seed: int) -> None:
    speakers = lead(Random(members, seed), 20)
    assert set(speakers[1:]) <= set(members)
    if len(members) > 1:
        assert all(a != b for a, b in itertools.pairwise(speakers))


@given(MEMBERS, SEEDS, st.integers(min_value=1, max_value=20))
def test_random_goes_on_alike_after_a_resume(members: tuple[str, ...], seed: int, resumed_after: int) -> None:
    speakers = lead(Random(members, seed), 20)
    assert lead(Random(members, seed), 20, speakers[:resumed_after]) == speakers


@given(SEEDS)
def test_random_gives_everyone_a_turn(seed: int) -> None:
    assert set(lead(Random(("alice", "bob", "carol"), seed), 200)) == {"the hub", "alice", "bob", "carol"}


def test_random_is_the_same_in_every_release() -> None:
    assert lead(Random(("alice", "bob", "carol"), 1), 8)[1:] == (
        "bob",
        "carol",
        "alice",
        "bob",
        "alice",
        "carol",
        "bob",
        "alice",
    )


@pytest.mark.parametrize("members", [(), ("bob", "bob")])
def test_nobody_and_one_twice_are_wrong_usage(members: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        RoundRobin(members)
    with pytest.raises(UsageError):
        Random(members, 0)


def test_a_moderator_is_told_who_spoke_how_often_and_the_last_turns_and_asked_for_one_of_the_names() -> None:
    asked = moderator_question({"alice": 2, "bob": 1, "carol": 0}, ["alice", "carol"], "bob: No.")
    assert asked == (
        "You moderate a conversation of alice, bob and carol.\n"
        "How often each has spoken: alice 2, bob 1, carol 0.\n"
        "The last turns:\n\nbob: No.\n\n"
        "Who should speak next: alice or carol? Answer with one name only, or with END to end the conversation."
    )


@given(
    st.integers(min_value=1, max_value=6),
    st.lists(st.integers(min_value=0, max_value=5), min_size=1, max_size=80),
)
def test_whoever_a_moderator_prefers_nobody_is_passed_over_too_often(count: int, wishes: list[int]) -> None:
    passed_over = {f"m{n}": 0 for n in range(count)}
    for wish in wishes:
        speaks = overdue(passed_over) or f"m{wish % count}"
        passed_over = {name: 0 if name == speaks else turns + 1 for name, turns in passed_over.items()}
        assert max(passed_over.values()) <= STARVING * count


def test_nobody_is_overdue_at_the_beginning_or_in_a_round() -> None:
    assert overdue({"alice": 0, "bob": 0}) is None
    assert overdue({"alice": 0, "bob": 1, "carol": 2}) is None


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("bob", "bob"),
        ("  BOB.\n", "bob"),
        ("**Bob**", "bob"),
        ("I think Bob should speak, then alice.", "bob"),
        ("judge: it is bob's turn", "bob"),
        ("bobby", None),
        ("bob-2, please", "bob-2"),
        ("bob.x", None),
        ("a-bob", None),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_member_named_first_is_chosen(answer: str, name: str | None) -> None:
    assert parse_choice(answer, ["alice", "bob", "bob-2"]) == name


@given(MEMBERS, st.data())
def test_every_member_can_be_chosen(members: tuple[str, ...], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(members))
    assert parse_choice(f"I choose: {name.upper()}, I think", members) in (name, *{"i", "choose", "think"} & {*members})
    assert parse_choice(name, members) == name


@given(st.text(), MEMBERS)
def test_any_answer_names_a_member_or_nobody(answer: str, members: tuple[str, ...]) -> None:
    assert parse_choice(answer, members) in (None, END_WORD, *members)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("<think>alice has said enough</think>bob", "bob"),
        ("alice spoke last, so not alice.</think>\n\nbob", "bob"),
        ("<think>bob or alice?", None),
        ("<think>END it?</think> alice", "alice"),
        ("END", END_WORD),
        ("<think>bob</think>\n**END**.", END_WORD),
        ("In the end, bob", "bob"),
        ("END of my thoughts: bob", "bob"),
        ("end", None),
    ],
)
def test_thoughts_do_not_choose_and_the_end_is_said_alone(answer: str, name: str | None) -> None:
    assert parse_choice(answer, ["alice", "bob"]) == name


@given(st.integers(min_value=0, max_value=5), st.integers(min_value=1, max_value=4), st.integers(0, 20))
def test_rounds_count_every_turn_of_members(rounds: int, members: int, spoken: int) -> None:
    why = StopRules(rounds=rounds).why_stop(Heard(spoken, "x", "x"), spoken, members)
    assert why == ("rounds" if spoken >= rounds * members else None)


@pytest.mark.parametrize("words", ["Goodbye", "well, GOODBYE!", "goodbye."])
def test_a_stop_word_is_a_whole_word_in_any_case(words: str) -> None:
    assert StopRules(stop_word="goodbye").why_stop(Heard(1, "alice", words), 1, 2) == "stop-word"


@pytest.mark.parametrize("last", [Heard(0, "hub", "goodbye"), Heard(1, "alice", "goodbyes"), Heard(2, "bob", "no")])
def test_the_opening_and_parts_of_words_do_not_stop(last: Heard) -> None:
    assert StopRules(stop_word="goodbye").why_stop(last, last.turn, 2) is None


def test_a_stop_word_may_be_any_marks() -> None:
    assert StopRules(stop_word="[DONE]").why_stop(Heard(1, "alice", "So be it.[done]"), 1, 2) == "stop-word"


def test_the_stop_word_is_named_where_both_rules_hold() -> None:
    assert StopRules(rounds=1, stop_word="end").why_stop(Heard(2, "bob", "The end"), 2, 2) == "stop-word"


def test_without_rules_it_goes_on() -> None:
    assert StopRules().why_stop(Heard(1, "alice", "x"), 1, 2) is None


def test_an_empty_stop_word_and_negative_rounds_are_wrong_usage() -> None:
    with pytest.raises(UsageError):
        StopRules(stop_word=" ")
    with pytest.raises(UsageError):
        StopRules(rounds=-1)
