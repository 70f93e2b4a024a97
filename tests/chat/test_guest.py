"""What a person's words mean before they are said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.chat.guest import HELP, LASTING, LOCAL, Unknown, Wish, read_wish


@pytest.mark.parametrize(
    ("typed", "wish"),
    [
        ("Hello.", Wish("say", "Hello.")),
        ("a /retry inside", Wish("say", "a /retry inside")),
        ("//etc/passwd says", Wish("say", "/etc/passwd says")),
        ("///", Wish("say", "//")),
        ("/retry", Wish("retry")),
        ("/retry ", Wish("retry")),
        ("/system You are zoe.", Wish("system", "You are zoe.")),
        ("/system", Wish("system")),
        ("/system one\ntwo", Wish("system", "one\ntwo")),
        ("/save  talk.jsonl ", Wish("save", "talk.jsonl")),
        ("/help", "help"),
        ("/stop", "stop"),
        ("/bye", "bye"),
    ],
)
def test_a_slash_begins_a_wish(typed: str, wish: object) -> None:
    assert read_wish(typed) == wish


@pytest.mark.parametrize("typed", ["/", "/ ", "/nonsense", "/retry2", "/etc/passwd", "/RETRY", "/save", "/save "])
def test_what_is_no_wish_says_why_and_is_never_said_to_a_model(typed: str) -> None:
    wish = read_wish(typed)
    assert isinstance(wish, Unknown)
    assert "no such command" in wish.why or "wants a FILE" in wish.why


@given(st.text(min_size=1))
def test_every_text_can_be_said(text: str) -> None:
    assert read_wish(f"/{text}" if text.startswith("/") else text) == Wish("say", text)


def test_the_help_names_every_command_and_fits_a_terminal() -> None:
    for word in (*LOCAL, *LASTING):
        assert f"/{word} " in HELP
    assert max(map(len, HELP.splitlines())) < 80
