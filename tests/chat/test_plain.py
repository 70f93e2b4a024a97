"""Answers to plain lines, which wait for their readers."""

from __future__ import annotations

import os

from modelpipes.chat.plain import PlainAnswers
from modelpipes.pipe.endpoint import Endpoint
from modelpipes.pipe.room import Room


def read_end(room: Room) -> int:
    return os.open(room.pipe("bob", "hub"), os.O_RDONLY | os.O_NONBLOCK)


def test_an_answer_is_for_who_reads_next_and_not_for_who_has_just_gone(room: Room) -> None:
    # One that is made at once was written for nobody: that the reader before had gone was not yet noticed.
    said: list[str] = []
    with Endpoint(room, "bob") as bob:
        answers = PlainAnswers(bob, said.append)
        reader = read_end(room)
        assert bob.try_connect("hub")
        os.close(reader)
        assert (bob.is_connected("hub"), bob.is_read("hub")) == (True, False)
        answers.keep("hub", "x")
        assert answers.deliver() == 0
        reader = read_end(room)
        assert answers.deliver() == 1
        assert os.read(reader, 9) == b"x\n"
        os.close(reader)
    assert said == []


def test_a_refusal_is_kept_until_it_is_read_or_something_newer_is_said(room: Room) -> None:
    said: list[str] = []
    with Endpoint(room, "bob") as bob:
        answers = PlainAnswers(bob, said.append)
        answers.refuse("hub", "not a message: x")
        assert (answers.refuses("hub"), answers.refuses("alice")) == (True, False)
        answers.drop("hub")
        assert (answers.refuses("hub"), len(said)) == (False, 1)
        answers.refuse("hub", "not a message: y")
        answers.keep("hub", "words")
        assert not answers.refuses("hub")
        answers.refuse("hub", "not a message: z")
        reader = read_end(room)
        assert answers.deliver() == 1
        assert not answers.refuses("hub")
        assert (
            os.read(reader, 99) == b"error: not a message: z; words must not begin with { (a space before it will do)\n"
        )
        os.close(reader)
