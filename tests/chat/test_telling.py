"""What a member is told of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.chat import telling
from modelpipes.chat.telling import ask_next, resume, since
from modelpipes.chat.transcript import Turn
from modelpipes.pipe.asker import Answer
from modelpipes.pipe.message import Reply
from modelpipes.pipe.room import Room
from tests.chat.conftest import ScriptedVoice, Seat, asker


def test_who_knows_nothing_is_told_the_opening_and_the_newest_turns_that_can_travel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "RETELL_BYTES", 220)
    turns = [Turn(n, "hub", "four") for n in range(6)]
    assert [turn.turn for turn in since(lambda known: turns[known + 1 :], -1)] == [0, 4, 5]
    assert [turn.turn for turn in since(lambda known: turns[known + 1 :], 3)] == [4, 5]
    turns.append(Turn(6, "hub", "x" * 999))
    assert [turn.turn for turn in since(lambda known: turns[known + 1 :], -1)] == [0, 6]


def test_question_and_answer_are_written_once_the_answer_was_heard_out(room: Room, seat: Seat, tmp_path: Path) -> None:
    voice = ScriptedVoice()
    seat(voice)
    path = str(tmp_path / "talk.jsonl")

    def hear(answers: Iterator[Answer]) -> Reply:
        *_, reply = answers
        assert isinstance(reply, Reply)
        return reply

    def break_off(answers: Iterator[Answer]) -> Reply:
        raise BrokenPipeError

    for question in ("What is 3 and 4?", "And twice that?"):  # each by a process of its own
        with asker(room) as one, resume(path, one) as talk:
            known = talk.last
            with pytest.raises(BrokenPipeError):
                ask_next(talk, one, question, break_off)
            assert talk.last == known
            ask_next(talk, one, question, hear)
            assert [turn.content for turn in talk.after(known)] == [question, question]
    assert voice.heard[-1][-1] == ("hub", "And twice that?")
