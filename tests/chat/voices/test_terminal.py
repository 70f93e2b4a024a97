"""The person at the terminal: a real one, whose other end the test holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from modelpipes.chat.voices import Finish, terminal
from modelpipes.chat.voices.terminal import TerminalVoice
from modelpipes.errors import MessageError, ProgramError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from tests.chat.voices.conftest import Asked, prepared
from tests.peers import eventually, open_descriptors

END_OF_INPUT = b"\x04"


class Person:
    """Who sits at the terminal, or holds the pipe that stands for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.has_left = 0

    def type(self, text: bytes) -> None:
        while text:
            text = text[os.write(self.fd, text) :]

    def leave(self) -> None:
        self.has_left += 1


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    """A person at a terminal."""
    ours, theirs = os.openpty()
    monkeypatch.setattr(terminal, "STDIN", theirs)
    yield Person(ours)
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    """A script in a person's place: stdin is a pipe."""
    theirs, ours = os.pipe()
    monkeypatch.setattr(terminal, "STDIN", theirs)
    scripted = Person(ours)
    yield scripted
    os.close(theirs)
    if scripted.fd >= 0:
        os.close(scripted.fd)


def end_input(script: Person) -> None:
    os.close(script.fd)
    script.fd = -1


@pytest.fixture
def voice_of() -> Callable[[Person], TerminalVoice]:
    def make(person: Person) -> TerminalVoice:
        voice = TerminalVoice("me", leave=person.leave)
        prepared(voice)
        return voice

    return make


VoiceOf = Callable[[Person], TerminalVoice]


def test_a_line_typed_is_the_answer(person: Person, voice_of: VoiceOf, capfd: pytest.CaptureFixture[str]) -> None:
    asked = Asked(voice_of(person), "Hello")
    person.type("grüße 日本  \n".encode())
    assert (asked.content, asked.finish) == ("grüße 日本  ", Finish())
    assert capfd.readouterr() == ("", "me> ")


def test_several_lines_typed_at_once_are_answers_one_after_the_other(person: Person, voice_of: VoiceOf) -> None:
    voice = voice_of(person)
    person.type(b"one\n\ntwo\nthr")  # a stray Enter is no answer
    assert [Asked(voice, "x").content for _ in range(2)] == ["one", "two"]
    asked = Asked(voice, "x")
    person.type(b"ee\n")
    assert asked.content == "three"


def test_the_end_of_the_input_is_leaving(person: Person, voice_of: VoiceOf) -> None:
    asked = Asked(voice_of(person), "Hello")
    person.type(END_OF_INPUT)
    with pytest.raises(ProgramError, match=r"me has left \(end of input\)"):
        _ = asked.content
    assert person.has_left == 1


def test_words_before_the_end_of_the_input_are_the_last_answer(script: Person, voice_of: VoiceOf) -> None:
    voice = voice_of(script)
    script.type(b"one\nlast words")
    end_input(script)
    assert [Asked(voice, "x").content for _ in range(2)] == ["one", "last words"]
    assert script.has_left == 0
    assert isinstance(Asked(voice, "x").join().error, ProgramError)
    assert script.has_left == 1


def test_what_is_no_text_becomes_replacement_characters(script: Person, voice_of: VoiceOf) -> None:
    asked = Asked(voice_of(script), "x")
    script.type(b"\xffcaf\xc3\r\n")
    assert asked.content == "\ufffdcaf\ufffd"


def test_a_character_typed_in_two_halves_is_whole(script: Person, voice_of: VoiceOf) -> None:
    voice = voice_of(script)
    asked = Asked(voice, "x")
    script.type(b"\xc3")
    script.type(b"\xbc\n")
    assert asked.content == "ü"


def test_a_cancel_ends_the_wait_and_keeps_what_was_typed(script: Person, voice_of: VoiceOf) -> None:
    voice = voice_of(script)
    script.type(b"half ")
    for _ in range(3):
        asked = Asked(voice, "x")
        eventually(lambda asked=asked: asked.work.phase == "thinking", "wait for words")  # type: ignore[misc]
        asked.cancel()
    assert (asked.error, asked.content) == (None, "")
    again = Asked(voice, "x")
    script.type(b"a line\n")
    assert again.content == "half a line"


def test_a_terminal_that_has_gone_is_leaving(
    script: Person, voice_of: VoiceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "STDIN", 987_654)  # no descriptor
    assert isinstance(Asked(voice_of(script), "x").join().error, ProgramError)
    assert script.has_left == 1


def test_a_line_without_an_end_is_refused(script: Person, voice_of: VoiceOf) -> None:
    asked = Asked(voice_of(script), "x")
    script.type(b"x" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(MessageError):
        _ = asked.content


def test_answers_leave_no_descriptor(script: Person, voice_of: VoiceOf) -> None:
    voice = voice_of(script)
    before = open_descriptors()
    for _ in range(20):
        script.type(b"x\n")
        assert Asked(voice, "x").content == "x"
    assert open_descriptors() == before
