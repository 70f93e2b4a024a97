"""Programs that are told and answer in lines of JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelpipes.chat.voices.jsonfilter import JsonFilterVoice
from modelpipes.errors import DeadlineError, MessageError, ProgramError
from modelpipes.pipe.message import Cast, Heard, Say
from tests.chat.voices.conftest import Asked, prepared, python, sh
from tests.peers import LIMIT_S

MIRROR = "import json\nfor line in open(0): print(json.dumps({'content': line}), flush=True)"


@contextlib.contextmanager
def filtering(
    command: str, silence_s: float | None = LIMIT_S, report: Callable[[str], None] = print
) -> Iterator[JsonFilterVoice]:
    voice = JsonFilterVoice(command, silence_s=silence_s, report=report)
    try:
        prepared(voice)
        yield voice
    finally:
        voice.close()


def says(*lines: object) -> str:
    """A program that answers everything with these lines."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return python(f"for _ in open(0):\n  for line in {texts!r}: print(line, flush=True)")


def told(asked: Asked) -> Any:
    return json.loads(asked.content)


def test_a_message_alone_says_who_speaks_and_keeps_its_newlines() -> None:
    with filtering(python(MIRROR)) as voice:
        assert told(Asked(voice, "two\nlines\u2028 and 😀\0")) == {
            "id": "1",
            "from": "hub",
            "to": "bob",
            "content": "two\nlines\u2028 and 😀\0",
        }


def test_in_a_conversation_it_hears_everything_and_who_said_it() -> None:
    turns = [Heard(0, "hub", "Boats?"), Heard(1, "alice", "Yes:\n- sails"), Heard(2, "carol", "No.")]
    say = Say("7", "hub", "bob", conversation="c", turn=3, after=0, heard=tuple(turns[1:]),
              cast=Cast(("hub", "alice", "carol"), True, "carol"))  # fmt: skip
    with filtering(python(MIRROR)) as voice:
        assert told(Asked(voice, turns, say)) == {
            "id": "7",
            "from": "carol",
            "to": "bob",
            "content": "No.",
            "conversation": "c",
            "turn": 3,
            "turns": [
                {"turn": 0, "from": "hub", "content": "Boats?"},
                {"turn": 1, "from": "alice", "content": "Yes:\n- sails"},
                {"turn": 2, "from": "carol", "content": "No."},
            ],
            "others": ["hub", "alice", "carol"],
            "person": "carol",
        }


@pytest.mark.parametrize(
    ("lines", "content", "thinking", "anew"),
    [
        ([{"content": "It is 7."}], "It is 7.", "", 0),
        ([{"content": ""}], "", "", 0),
        ([{"content": "a\n\nb\n"}], "a\n\nb\n", "", 0),
        ([{"delta": "It is"}, {"delta": " 7."}, {"content": "It is 7."}], "It is 7.", "", 0),
        ([{"delta": "It"}, {"content": "It is 7."}], "It is 7.", "", 0),
        ([{"delta": "It is 8"}, {"content": "It is 7."}], "It is 7.", "", 1),
        ([{"thinking": "3 + 4"}, {"delta": "It"}, {"content": "It is 7."}], "It is 7.", "3 + 4", 0),
        ([{"content": "It is 7.", "thinking": "3 + 4"}], "It is 7.", "3 + 4", 1),
        ([{"delta": ""}, {"content": "7", "mood": [1]}], "7", "", 0),
        (["", "  ", {"content": "7"}], "7", "", 0),
        ([{"id": "1", "delta": "7"}, {"id": "1", "content": "7"}], "7", "", 0),
    ],
)
def test_pieces_come_as_they_are_said_and_content_ends_the_answer(
    lines: list[object], content: str, thinking: str, anew: int
) -> None:
    with filtering(says(*lines)) as voice:
        for _ in range(2):
            asked = Asked(voice, "What is 3 and 4?")
            assert (asked.content, asked.thinking, asked.anew) == (content, thinking, anew)


def test_a_piece_is_there_before_the_answer_is_whole() -> None:
    with filtering(sh('read l; echo \'{"delta":"It is"}\'; read l; exec sleep 100')) as voice:
        asked = Asked(voice, "x")
        asked.await_words()
        assert asked.deltas == [("It is", "")]
        asked.cancel()
        assert asked.content == "It is"


def test_an_error_is_why_there_is_no_answer_and_the_program_goes_on() -> None:
    script = """
import json
for line in open(0):
    number = json.loads(line)["content"]
    print(json.dumps({"content": "fine"} if number.isdigit() else {"error": f"no number: {number}"}), flush=True)
"""
    with filtering(python(script)) as voice:
        child = voice._child
        with pytest.raises(ProgramError, match="python: no number: x"):
            _ = Asked(voice, "x").content
        assert Asked(voice, "1").content == "fine"
        assert voice._child is child


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"contnt": "x"}', "it has no delta, thinking, content or error"),
        ("{}", "it has no delta"),
        ('{"content": 7}', "Expected `str | null`, got `int` - at `$.content`"),
        ('{"content": "half', "Input data was truncated"),
    ],
)
def test_a_line_that_is_meant_and_says_nothing_is_a_failure_and_the_next_answer_is_right(line: str, why: str) -> None:
    script = (
        f"n = open(0).readline()\nprint({line!r} if 'bad' in n else '{{\"content\": \"good\"}}', flush=True)\ninput()"
    )
    with filtering(python(script)) as voice:
        with pytest.raises(ProgramError) as failed:
            _ = Asked(voice, "bad").content
        assert "wrote no answer: " in str(failed.value) and why in str(failed.value)
        voice.tend()
        assert Asked(voice, "x").content == "good"


def test_what_is_no_json_and_what_answers_another_message_is_dropped_and_told() -> None:
    reports: list[str] = []
    lines = ["Loading weights", {"id": "0", "content": "the last one's"}, {"content": "right"}, "bye"]
    with filtering(says(*lines), report=reports.append) as voice:
        assert [Asked(voice, "x").content for _ in range(3)] == ["right"] * 3
    assert "'Loading weights'; dropped" in reports[0]
    assert "the last one's" in reports[1]


def test_a_json_filter_keeps_the_rules_of_all_filters() -> None:
    with filtering(sh("read l; exec sleep 100"), silence_s=0.1) as voice, pytest.raises(DeadlineError):
        _ = Asked(voice, "x").content
    with filtering(sh("read l; yes | tr -d '\\n'")) as voice, pytest.raises(MessageError):
        _ = Asked(voice, "x").content
    dies = sh("read l; echo bad luck >&2; exit 3")
    with filtering(dies) as voice, pytest.raises(ProgramError, match="ended with 3: bad luck"):
        _ = Asked(voice, "x").content
    with filtering(python(MIRROR)) as voice:
        asked = Asked(voice, "x" * (1 << 20))
        assert len(told(asked)["content"]) == 1 << 20
