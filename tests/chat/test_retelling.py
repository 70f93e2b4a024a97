"""What members are told once turns were taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelpipes.chat.retelling import Retelling, save
from modelpipes.chat.transcript import VERSION, Header, Transcript, Turn
from modelpipes.errors import UsageError

HEADER = Header(VERSION, "id", ("me", "bob"))


@pytest.fixture
def transcript() -> Transcript:
    transcript = Transcript.unwritten(HEADER)
    transcript.append(*(Turn(number, "me" if number % 2 == 0 else "bob", str(number)) for number in range(4)))
    return transcript


def test_a_transcript_is_told_as_it_is(transcript: Transcript) -> None:
    told = Retelling(transcript)
    assert (told.id, told.next) == ("id", 4)
    assert told.after(1) == transcript.after(1)


def test_what_is_taken_back_is_told_no_more_and_what_follows_closes_up(transcript: Transcript) -> None:
    told = Retelling(transcript)
    told.take_back(3)
    assert told.next == 3
    assert told.id != "id"  # to who heard the other it is a new conversation
    transcript.append(Turn(4, "bob", "another"))
    assert [(turn.turn, turn.content) for turn in told.after(-1)] == [(0, "0"), (1, "1"), (2, "2"), (3, "another")]
    assert [turn.content for turn in told.after(2)] == ["another"]


def test_it_may_be_done_again_and_each_time_is_another_conversation(transcript: Transcript) -> None:
    told = Retelling(transcript)
    ids = {told.id}
    for number in (4, 5, 6):
        told.take_back(3)
        ids.add(told.id)
        assert told.next == 3
        transcript.append(Turn(number, "bob", str(number)))
    assert len(ids) == 4


def test_all_may_be_taken_back(transcript: Transcript) -> None:
    told = Retelling(transcript)
    told.take_back(0)
    assert (told.next, told.after(-1)) == (0, [])


def test_a_talk_is_saved_to_a_new_file_and_over_nobodys(transcript: Transcript, tmp_path: Path) -> None:
    path = str(tmp_path / "talk.jsonl")
    assert save(path, HEADER, transcript.after(-1)).startswith(f"{path}: 4 turns saved")
    with Transcript.resume(path) as saved:
        assert saved.after(-1) == transcript.after(-1)
        assert saved.header.id != "id"
    with pytest.raises(UsageError, match="there is a conversation in it"):
        save(path, HEADER, transcript.after(-1))


def test_a_talk_without_a_word_can_be_saved(tmp_path: Path) -> None:
    assert "0 turns saved" in save(str(tmp_path / "talk.jsonl"), HEADER, [])
