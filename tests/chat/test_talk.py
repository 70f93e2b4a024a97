"""A whole talk from its description."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.chat.conversation import Listener
from modelpipes.chat.talk import Talk, prepared
from modelpipes.chat.transcript import Turn
from modelpipes.chat.turns import StopRules
from modelpipes.errors import PeerGone, RoomError, UsageError
from modelpipes.pipe.room import Room
from tests.chat.conftest import ScriptedVoice, Seat
from tests.peers import LIMIT_S

CATS = {"alice": ["--filter=cat"], "bob": ["--filter=cat"]}


class Heard(Listener):
    def __init__(self) -> None:
        self.turns: list[Turn] = []

    def ends(self, turn: Turn) -> None:
        self.turns.append(turn)


@pytest.fixture(autouse=True)
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rooms are made; nothing is left there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("PIPE_DIR", raising=False)
    return tmp_path / "modelpipes"


def test_a_program_has_a_talk_of_members_that_are_seated_for_it_and_nothing_is_left(rooms: Path) -> None:
    heard = Heard()
    talk = Talk(members=("alice", "bob"), commands=CATS, rules=StopRules(rounds=2), limit_s=LIMIT_S)
    with prepared(talk, heard) as conversation:
        pids = [conversation.room.sitting(seat).pid for seat in talk.members]
        assert os.path.dirname(conversation.room.path) == str(rooms)
        assert conversation.lead("Hello.") == "rounds"
    assert [(turn.sender, turn.content) for turn in heard.turns[:3]] == [
        ("hub", "Hello."),
        ("alice", "Hello."),
        ("bob", "Hello."),
    ]
    assert len(heard.turns) == 5
    assert list(rooms.glob("*")) == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_who_sits_already_stays_and_so_do_their_pipes(room: Room, seat: Seat) -> None:
    seat(ScriptedVoice(), "alice")
    pipes = room.pipes()
    talk = Talk(
        members=("alice", "carol"), commands={"carol": CATS["bob"]}, directory=room.path, rules=StopRules(rounds=1)
    )
    assert talk.joined == ["alice"]
    with prepared(talk) as conversation:
        assert ("hub", "carol") in room.pipes()
        conversation.lead("Hello.")
    assert room.pipes() == pipes
    assert room.sitting("alice").state == "ready"


def test_a_talk_goes_on_with_the_same_members_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "talk.jsonl")
    first = Talk(members=("alice", "bob"), commands=CATS, rules=StopRules(rounds=1), transcript=path)
    with prepared(first) as conversation:
        conversation.lead("Hello.")
    again = Talk(members=("bob", "alice"), commands=CATS, rules=StopRules(rounds=2), transcript=path, is_resumed=True)
    with prepared(again) as conversation:
        conversation.lead("Nobody hears this.")
        assert [turn.turn for turn in conversation.turns] == list(range(5))
    others = Talk(members=("alice", "carol"), commands={"alice": CATS["alice"], "carol": CATS["bob"]},
                  transcript=path, is_resumed=True)  # fmt: skip
    with (
        pytest.raises(UsageError, match="is a conversation of alice, bob: --resume goes on with the same"),
        prepared(others),
    ):
        pass


def test_where_a_member_cannot_be_seated_or_is_not_there_nothing_is_left(rooms: Path, room: Room) -> None:
    lost = Talk(members=("alice", "bob"), commands=CATS | {"bob": ["--filter=no-such-program"]})
    with pytest.raises(PeerGone, match="no such program on PATH"), prepared(lost):
        pass
    assert list(rooms.glob("*")) == []
    nobody = Talk(members=("alice", "dave"), commands={"alice": CATS["alice"]}, directory=room.path)
    before = room.pipes()
    with pytest.raises(RoomError, match="no seat 'dave'"), prepared(nobody):
        pass
    assert room.pipes() == before
