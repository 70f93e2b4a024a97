from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.chat.prompt import BEGIN, GO_ON, Told, default_system, labels_of, render, told_to, trim
from modelpipes.errors import MessageError
from modelpipes.pipe.message import Cast, Heard

NAMES = ("hub", "alice", "bob", "carol")
BOB = Told("bob")
NAMED = Told("bob", labels=True)
THREE = Cast(("alice", "carol"), labels=True)


def conversation(count: int, speakers: Sequence[str] = ("alice", "bob")) -> list[Heard]:
    """The opening by the hub, then the speakers in turn: `count` turns in all."""
    return [Heard(n, speakers[(n - 1) % len(speakers)] if n else "hub", f"words of turn {n}") for n in range(count)]


def turns_by(senders: Sequence[str]) -> list[Heard]:
    return [Heard(n, sender, f"({n})") for n, sender in enumerate(senders)]


# --- the system text


def test_a_model_that_is_asked_alone_is_told_nothing_but_the_question() -> None:
    told = told_to("bob", None, None, [Heard(0, "hub", "Hello")])
    assert render([Heard(0, "hub", "Hello")], told) == [{"role": "user", "content": "Hello"}]


def test_without_a_system_text_a_model_learns_its_name_and_who_else_is_there() -> None:
    told = told_to("bob", None, THREE, conversation(1))
    assert told.system == (
        "You are bob. You are in a conversation with alice and carol. hub opens it and takes no further part. "
        "What others say begins with the name of who says it. "
        "Say only what bob says, without a name before it, and never speak for anybody else. "
        "Use the language in which the conversation was opened."
    )


def test_a_model_alone_with_a_person_is_told_just_that() -> None:
    cast = Cast(("me",), person="me")
    assert default_system("bob", cast, "me") == (
        "You are bob. You are in a conversation with a person. Use the language in which the conversation was opened."
    )


def test_a_person_among_several_has_a_name() -> None:
    text = default_system("bob", Cast(("alice", "me"), labels=True, person="me"), "hub")
    assert "with alice and a person called me." in text


def test_the_packaged_model_is_told_what_it_was_trained_with() -> None:
    told = told_to("bob", None, THREE, conversation(1), manner="brief")
    assert told.system == "You are bob. You are in a conversation with alice and carol."
    assert render(conversation(2), told)[1]["content"] == "hub: words of turn 0\nalice: words of turn 1"


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ("You are {name}, with {others}, on {topic}", "You are bob, with alice and carol, on words of turn 0"),
        ('Answer as {"name": "…"}', 'Answer as {"name": "…"}'),
        ("{NAME} {{name}} {", "{NAME} {bob} {"),
        ("{name}{name}", "bobbob"),
        ("", None),
    ],
)
def test_places_in_a_system_text_are_filled_in_and_other_braces_stay(system: str, told: str | None) -> None:
    assert told_to("bob", system, THREE, conversation(1)).system == told


def test_a_system_text_is_filled_in_also_for_a_lone_question() -> None:
    told = told_to("bob", "I am {name}, {others} asks. {topic}", None, [Heard(0, "hub", "Hello")])
    assert told.system == "I am bob, hub asks. "


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    told = told_to("bob", "{topic}", THREE, [Heard(0, "hub", "What is {name}?")])
    assert told.system == "What is {name}?"


@pytest.mark.parametrize(
    ("cast", "names"),
    [(THREE, ("alice", "carol", "hub")), (Cast(("alice", "carol")), ()), (None, ()), (Cast(("hub",), True), ("hub",))],
)
def test_the_names_that_stand_before_words_are_those_of_all_others(cast: Cast | None, names: tuple[str, ...]) -> None:
    assert labels_of(cast, conversation(3), "bob") == names


# --- render


def test_a_lone_message_is_one_user_message() -> None:
    assert render([Heard(0, "hub", "Hello")], BOB) == [{"role": "user", "content": "Hello"}]


def test_without_labels_no_names_are_put_before_words() -> None:
    assert render(conversation(4), Told("bob", "Be kind.")) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "words of turn 0\n\nwords of turn 1"},
        {"role": "assistant", "content": "words of turn 2"},
        {"role": "user", "content": "words of turn 3"},
    ]


def test_with_labels_every_other_is_named_in_a_paragraph_of_its_own() -> None:
    assert render(conversation(6, ("alice", "bob", "carol")), NAMED) == [
        {"role": "user", "content": "hub: words of turn 0\n\nalice: words of turn 1"},
        {"role": "assistant", "content": "words of turn 2"},
        {"role": "user", "content": "carol: words of turn 3\n\nalice: words of turn 4"},
        {"role": "assistant", "content": "words of turn 5"},
        {"role": "user", "content": GO_ON},
    ]


def test_the_system_text_is_folded_into_the_first_user_message_on_request() -> None:
    assert render(conversation(1), Told("bob", "Be kind.", folds_system=True)) == [
        {"role": "user", "content": "Be kind.\n\nwords of turn 0"}
    ]


def test_one_who_spoke_first_is_asked_to_begin() -> None:
    assert render(turns_by(["bob", "alice"]), BOB)[0] == {"role": "user", "content": BEGIN}
    assert render([], BOB) == [{"role": "user", "content": BEGIN}]


def test_one_who_speaks_twice_is_asked_to_go_on() -> None:
    contents = [message["content"] for message in render(turns_by(["hub", "bob", "bob"]), BOB)]
    assert contents == ["(0)", "(1)", GO_ON, "(2)", GO_ON]


TOLD = st.builds(
    Told, st.just("bob"), st.sampled_from([None, "", "Be kind."]), st.booleans(), st.booleans(), st.sampled_from("\n ")
)


@given(st.lists(st.sampled_from(NAMES), max_size=12), TOLD)
def test_roles_alternate_from_user_to_user_and_every_turn_is_there_once_in_order(
    senders: list[str], told: Told
) -> None:
    messages = render(turns_by(senders), told)
    roles = [message["role"] for message in messages]
    if told.system and not told.folds_system:
        assert roles.pop(0) == "system"
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    text = "\n".join(message["content"] for message in messages)
    places = [text.index(f"({n})") for n in range(len(senders))]
    assert places == sorted(places)
    assert all(text.count(f"({n})") == 1 for n in range(len(senders)))
    assert not told.system or text.startswith(told.system)


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=20), TOLD)
def test_from_one_turn_of_a_member_to_the_next_its_prompt_only_grows_at_its_end(senders: list[str], told: Told) -> None:
    turns = turns_by(senders)
    prompts = [render(turns[:n], told) for n in range(len(turns) + 1) if n == len(turns) or senders[n] == "bob"]
    for before, after in itertools.pairwise(prompts):
        assert after[: len(before)] == before


def kind(folds_system: bool) -> Told:
    return Told("bob", "Be kind.", folds_system=folds_system)


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
        messages, dropped = trim(turns, kind(fold), fits)
    except MessageError:
        assert letters(render([*turns[:1], *turns[1:][-1:]], kind(fold))) > room
        return
    assert asked <= 2 + max(1, count).bit_length()
    assert letters(messages) <= room
    text = "\n".join(message["content"] for message in messages)
    assert "Be kind." in text
    assert "words of turn 0" in text
    assert f"words of turn {count - 1}" in text
    if dropped is None:
        assert messages == render(turns, kind(fold))
        return
    first, last = dropped
    assert first == 1
    assert messages == render([turns[0], *turns[last + 1 :]], kind(fold))
    must = next(n for n in range(count) if letters(render([turns[0], *turns[n:]], kind(fold))) <= room) - 1
    assert must <= last <= must + (count - 1 - must) // 4


@given(st.integers(min_value=16, max_value=50), st.integers(min_value=0, max_value=40))
def test_the_oldest_turn_left_stays_the_same_for_many_turns(fitting: int, spread: int) -> None:
    # An engine has read what its last prompt began with: that stays the same while the oldest turn does.
    turns = [Heard(n, ("alice", "bob")[n % 2], "x" * (100 + n * 37 % (spread + 1))) for n in range(4 * fitting)]
    oldest = []
    for count in range(2 * fitting, 4 * fitting):
        _, dropped = trim(turns[:count], BOB, lambda messages: letters(messages) <= fitting * 120)
        assert dropped is not None
        oldest.append(dropped[1])
    changes = sum(a != b for a, b in itertools.pairwise(oldest))
    assert changes <= 1.5 * len(oldest) / (fitting / 8) + 2  # 1.32 is the most of all these


def test_names_stay_when_one_who_is_named_is_trimmed_away() -> None:
    turns = turns_by(["hub", "carol", "alice", "alice"])
    messages, dropped = trim(turns, NAMED, lambda messages: "carol" not in messages[0]["content"])
    assert dropped == (1, 1)
    assert messages == [{"role": "user", "content": "hub: (0)\n\nalice: (2)\n\nalice: (3)"}]


def test_what_a_bounded_history_dropped_before_is_reported_too() -> None:
    turns = conversation(9)
    _, dropped = trim([turns[0], *turns[5:]], BOB, lambda _: True)
    assert dropped == (1, 4)
