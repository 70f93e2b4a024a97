"""A room, and members in threads of the test whose voices do what the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from modelpipes.chat.member import Member
from modelpipes.chat.voices import Finish, Voice, Work
from modelpipes.errors import PipesError
from modelpipes.pipe.asker import Answer, Asker
from modelpipes.pipe.message import Say, new_id
from modelpipes.pipe.room import Room, star
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S


class ScriptedVoice:
    """Answers with what `script` emits; without one, repeats the last turn's words."""

    kind = "scripted"
    history_bytes = 1 << 20

    def __init__(self, script: Callable[[Work], Finish | None] | None = None, *, parallel: int = 1) -> None:
        self.parallel = parallel
        self.script = script or (lambda work: work.emit(work.turns[-1].content))
        self.heard: list[list[tuple[str, str]]] = []  # (from, content) of the turns of each message
        self.is_closed = False

    def prepare(self, deadline: Deadline) -> None:
        pass

    def answer(self, work: Work) -> Finish:
        self.heard.append([(turn.sender, turn.content) for turn in work.turns])
        return self.script(work) or Finish()

    def about(self) -> None:
        return None

    def death_fd(self) -> int:
        return -1

    def last_words(self) -> str:
        return ""

    def tend(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class Seated:
    """A member in a thread."""

    def __init__(self, member: Member, said: Sequence[str] = ()) -> None:
        self.member = member
        self.said = said  # on stderr
        self.exit_code: int | None = None
        self.error: PipesError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.exit_code = self.member.run()
        except PipesError as e:
            self.error = e

    def end(self) -> None:
        self.member.stop(0)
        self.join()

    def join(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive(), "the member does not leave"


Seat = Callable[..., Seated]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = Room.make(str(tmp_path / "room"))
    room.make_pipes(star("hub", ["alice", "bob"], mesh=True))
    return room


@pytest.fixture
def seat(room: Room) -> Iterator[Seat]:
    """`seat(voice, name="bob")` seats a member and returns when it is ready."""
    seated: list[Seated] = []

    def start(voice: Voice, name: str = "bob", **options: bool) -> Seated:
        said: list[str] = []

        def report(line: str) -> None:
            said.append(line)
            output.say(line)

        seated.append(Seated(Member(room, name, voice, report=report, **options), said))  # type: ignore[arg-type]  # once
        room.wait_for([name], Deadline.after(LIMIT_S))
        return seated[-1]

    yield start
    for one in seated:
        one.end()


def asker(room: Room, to: str = "bob", sender: str = "hub", silence_s: float = LIMIT_S) -> Asker:
    return Asker(room, sender, to, silence_s=silence_s, limit=Deadline.after(LIMIT_S))


def ask(room: Room, text: str, to: str = "bob", sender: str = "hub") -> Sequence[Answer]:
    """Everything that comes of one message."""
    with asker(room, to, sender) as one:
        return list(one.ask(Say(new_id(), sender, to, text)))
