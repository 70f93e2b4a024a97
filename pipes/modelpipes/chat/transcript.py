"""The append-only file of a conversation: JSON Lines, a header, then one line a turn.

    {"type":"conversation","version":1,"id":"…","members":["alice","bob"],"voices":{…},"settings":{…},"at":"…",…}
    {"turn":0,"from":"hub","content":"Hello.","at":"2026-12-01T09:30:00.125Z"}
    {"type":"choice","turn":1,"by":"mod","chose":"alice","tries":1}
    {"turn":1,"from":"alice","content":"Hi!","stop":"end","usage":{…},"timing":{…},"at":"…"}
    {"type":"end","why":"rounds"}

A choice says whom a moderator let speak next. An end line says why a leader stopped; turns of one who resumed may
follow it. What is in the file is the truth about the conversation, and every whole line of it survives the death of
its writer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import msgspec
from msgspec import Struct, field

from modelpipes import lockfile
from modelpipes.errors import FileError, UsageError
from modelpipes.pipe.message import Stop, Timing, Usage
from modelpipes.pipe.room import About
from modelpipes.values.formats import TRANSCRIPT

VERSION = TRANSCRIPT.version
KEPT_TURNS = 64  # the newest, in memory; who must be told more is told from the file
# What a header begins with. A first line cut short is repaired only if it begins like this: a file that
# holds something else is somebody's, and not ours to empty.
_HEADER_BEGINS = b'{"type":"conversation"'


class Header(Struct, frozen=True, omit_defaults=True, tag="conversation"):
    """The first line: which conversation this is, and how it was begun.

    `abouts` has the models among the members, as far as they told; `commands` what attach-model was given for those
    that were seated for this conversation; `labels` who is told names before the words of others (None: it was not
    settled, as programs before 0.2 left it).
    """

    version: int
    id: str
    members: tuple[str, ...]
    voices: dict[str, str] = {}
    settings: dict[str, Any] = {}
    at: str = ""  # when it began, as ISO 8601 in UTC
    abouts: dict[str, About] = {}
    commands: dict[str, tuple[str, ...]] = {}
    labels: tuple[str, ...] | None = None
    person: str = ""  # which member is one
    moderator: str = ""  # who is asked who speaks next
    debates: bool = True  # the moderator speaks as well


class Turn(Struct, frozen=True, omit_defaults=True):
    """One turn; `thinking` are the thoughts before it, `dropped` the turns that its speaker was not shown."""

    turn: int
    sender: str = field(name="from")
    content: str
    stop: Stop | None = None  # None: not an answer, as the opening
    usage: Usage | None = None
    timing: Timing | None = None
    dropped: tuple[int, int] | None = None
    thinking: str = ""
    is_cut: bool = False  # it went on in another's name, and ends before that
    at: str = ""  # when it was written, as ISO 8601 in UTC

    @property
    def is_opening(self) -> bool:
        """Is it what the hub said first? A member's first word is an answer, also where nothing was said before it."""
        return self.turn == 0 and self.stop is None


class Choice(Struct, frozen=True, omit_defaults=True, tag="choice"):
    """Who speaks in a turn, as a moderator chose at its try number `tries`, or the leader in its place, and `why`."""

    turn: int
    by: str
    chose: str
    tries: int = 0
    why: str = ""


class End(Struct, frozen=True, tag="end"):
    """Why a leader ended the conversation."""

    why: str


LINES: dict[str, type[Turn | Choice | End]] = {"turn": Turn, "choice": Choice, "end": End}  # by type, after the header


class _Kind(Struct, frozen=True):
    type: str = "turn"


class Versioned(Struct, frozen=True, tag="conversation"):
    """What a header of any version has."""

    version: int


def moment() -> str:
    """Now, as a transcript has it: ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Transcript:
    """One conversation's file, open and locked; a context manager.

    with Transcript.create("chat.jsonl", Header(VERSION, new_id(), ("alice", "bob"))) as transcript:
        transcript.append(Turn(0, "hub", "Hello."))
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._header: Header | None = None
        self._newest: deque[Turn] = deque(maxlen=KEPT_TURNS if descriptor >= 0 else None)
        self._choice: Choice | None = None
        self._opener = ""
        self._speakers: list[str] = []
        self._last_turns: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._known: dict[str, int] = {}

    @classmethod
    def create(cls, path: str, header: Header | None = None) -> Transcript:
        """Begin a transcript in a new or empty file, or over the header of one whose members never came to speak.

        Without a header `begin` has to follow, before the first turn.

        Raises UsageError where there is more in it, FileError where it is of a version to come, cannot be written or
        another leader holds it.
        """
        transcript = cls._open(path)
        try:
            if not transcript._is_unbegun():
                raise UsageError(f"{path}: there is a conversation in it: go on with --resume, or name another file")
            os.ftruncate(transcript._descriptor, 0)
            if header:
                transcript.begin(header)
        except BaseException:
            transcript.close()
            raise
        return transcript

    @classmethod
    def resume(cls, path: str, header: Header | None = None) -> Transcript:
        """Go on with the transcript in a file, after its last whole turn; begin with `header` if it has none.

        Without one `begin` has to follow where the file has none either.

        A last line that was cut off is removed. Raises FileError where the file is none of ours, of a version to come,
        damaged elsewhere, cannot be written, or another leader holds it.
        """
        transcript = cls._open(path)
        try:
            transcript._read()
            if transcript._header is None and header:
                transcript.begin(header)
        except BaseException:
            transcript.close()
            raise
        return transcript

    @classmethod
    def unwritten(cls, header: Header | None = None) -> Transcript:
        """A transcript that nobody wants to keep: all in memory, in no file."""
        transcript = cls("", -1)
        transcript._header = header
        return transcript

    @property
    def has_begun(self) -> bool:
        """Is there a header?"""
        return self._header is not None

    @property
    def header(self) -> Header:
        """The first line, as the file has it; there is one once it `has_begun`."""
        assert self._header is not None
        return self._header

    @property
    def warning(self) -> str:
        """A line that says so where others may read the file; "" where only we may.

        One that is new is for us alone. One that was there has the mode that somebody gave it, and keeps it.
        """
        mode = os.fstat(self._descriptor).st_mode if self._descriptor >= 0 else 0
        if not mode & (stat.S_IRGRP | stat.S_IROTH):
            return ""
        import shlex

        advice = f"chmod 600 {shlex.quote(self.path)}"
        return f"{self.path}: others may read what is said (mode {stat.S_IMODE(mode):04o}); {advice}"

    @property
    def last(self) -> int:
        """The number of the last turn; -1: none."""
        return self._newest[-1].turn if self._newest else -1

    @property
    def speakers(self) -> Sequence[str]:
        """All who spoke, each once; who spoke last is last."""
        return self._speakers

    @property
    def opener(self) -> str:
        """Who spoke turn 0; empty where nobody did yet."""
        return self._opener

    @property
    def choice(self) -> Choice | None:
        """Who was chosen for the turn that comes next, and has not spoken yet."""
        return self._choice

    def count(self, seat: str) -> int:
        """How many turns a member has spoken."""
        return self._counts[seat]

    def passed_over(self, seat: str) -> int:
        """How many turns others have spoken since a member last did, or since the opening."""
        opening = -1 if self._opener in self.header.members else 0
        return max(0, self.last - self._last_turns.get(seat, opening))

    def after(self, turn: int) -> Sequence[Turn]:
        """The turns after this one, -1 for all; FileError where they must be read again and cannot be."""
        missing = self.last - max(turn, -1)
        if missing <= len(self._newest):
            return list(self._newest)[len(self._newest) - max(0, missing) :]
        return [found for found in self._turns_in_file() if found.turn > turn]

    def known_by(self, seat: str) -> int:
        """The last turn that a member surely knows: its own last one; -1 where it has none.

        Not one that was cut off, at a deadline or by a person: the member may remember more than the transcript has.
        """
        return self._known.get(seat, -1)

    def append(self, *turns: Turn) -> None:
        """Add the next turns: all are in the file when this returns, or none is and FileError is raised."""
        for number, turn in enumerate(turns, self.last + 1):
            if turn.turn != number:
                raise FileError(f"{self.path}: turn {number} should follow, not turn {turn.turn}")
        # In one write, which no SIGKILL cuts in two: a question is never there without its answer.
        self._write_lines(turns, f"turn {turns[-1].turn}")
        for turn in turns:
            self._add(turn)

    def choose(self, choice: Choice) -> None:
        """Add a line that says who speaks next; raises as `append` does."""
        self._write_lines([choice], f"the choice of turn {choice.turn}")
        self._choice = choice

    def end(self, why: str) -> None:
        """Add a line that says why the conversation ended; raises as `append` does."""
        self._write_lines([End(why)], "the end")

    def close(self) -> None:
        """Close the file, and let others lead."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Transcript:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def _open(cls, path: str) -> Transcript:
        try:
            # O_NONBLOCK: where a FIFO lies in place of a file, the open must not wait for its reader.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            transcript = cls(path, os.open(path, flags, 0o600))
        except OSError as error:
            raise FileError(f"{path}: cannot open the transcript: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(transcript._descriptor).st_mode):
                raise FileError(f"{path}: a transcript must be a regular file")
            transcript._lock()
        except BaseException:
            transcript.close()
            raise
        return transcript

    def _lock(self) -> None:
        try:
            is_ours = lockfile.try_lock(self._descriptor)
        except OSError as error:
            raise FileError(f"{self.path}: cannot lock the transcript: {error.strerror}") from error
        if not is_ours:
            raise FileError(
                f"{self.path}: another leader holds this transcript: wait for it to end, or name another file"
            )

    def _is_unbegun(self) -> bool:
        """Is there nothing in the file, or a header alone? FileError for one of a version to come."""
        with open(self._descriptor, "rb", closefd=False) as file:
            first, has_more = file.readline(), bool(file.read(1))
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # no whole header
            self._check_version(first)
        return not first or (first.startswith(_HEADER_BEGINS) and not has_more)

    def begin(self, header: Header) -> None:
        """Write the header; raises as `append` does."""
        self._write_lines([header], "the header")
        self._header = header

    def _add(self, turn: Turn) -> None:
        self._newest.append(turn)
        self._choice = None
        self._opener = self._opener or turn.sender
        self._counts[turn.sender] += 1
        self._last_turns[turn.sender] = turn.turn
        if turn.sender in self._speakers:
            self._speakers.remove(turn.sender)
        self._speakers.append(turn.sender)
        if turn.stop not in ("timeout", "cancelled"):
            self._known[turn.sender] = turn.turn

    def _turns_in_file(self) -> Iterator[Turn]:
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                file.seek(0)
                for number, line in enumerate(file, 1):
                    if number > 1 and isinstance(turn := self._read_line(number, line), Turn):
                        yield turn
        except OSError as error:
            raise FileError(f"{self.path}: cannot read the transcript: {error.strerror}") from error

    def _read(self) -> None:
        whole_bytes = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            try:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        self._take(number, line)
                        whole_bytes += len(line)
                    elif self._is_cut_off(line):
                        os.ftruncate(self._descriptor, whole_bytes)
                    else:
                        self._take(number, line)
                        self._write(b"\n", "the end of its last line")
            except OSError as error:
                raise FileError(f"{self.path}: cannot read or repair the transcript: {error.strerror}") from error

    def _is_cut_off(self, line: bytes) -> bool:
        """Whether a last line without its newline is only a part; raises FileError for a file of something else."""
        if self._header is None and line[: len(_HEADER_BEGINS)] != _HEADER_BEGINS[: len(line)]:
            raise FileError(f"{self.path}: is no transcript")
        try:
            msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return True
        return False

    def _take(self, number: int, line: bytes) -> None:
        """Take in a whole line of the file; `number` counts from 1."""
        if self._header is None:
            self._take_header(line)
            return
        read = self._read_line(number, line)
        if isinstance(read, Turn | Choice) and read.turn != self.last + 1:
            raise FileError(f"{self.path}: line {number} has turn {read.turn} where turn {self.last + 1} should follow")
        if isinstance(read, Choice | End):  # who resumes after an end begins with a new choice
            self._choice = read if isinstance(read, Choice) else None
        elif isinstance(read, Turn):
            self._add(read)

    def _read_line(self, number: int, line: bytes) -> Turn | Choice | End | None:
        """What a line after the header says; None where it is blank."""
        if not line.strip():
            return None
        try:
            kind = msgspec.json.decode(line, type=_Kind).type
            if kind not in LINES:
                raise FileError(f"{self.path}: line {number} is of unknown type {kind!r}")
            return msgspec.json.decode(line, type=LINES[kind])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FileError(f"{self.path}: line {number} is damaged: {error}") from error

    def _take_header(self, line: bytes) -> None:
        try:
            self._check_version(line)
            self._header = msgspec.json.decode(line, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FileError(f"{self.path}: is no transcript: line 1 is no header: {error}") from error

    def _check_version(self, header: bytes) -> None:
        """FileError for a version that is not read; before the rest, which may be another one in it."""
        if refusal := TRANSCRIPT.refusal(msgspec.json.decode(header, type=Versioned).version):
            raise FileError(f"{self.path}: {refusal}")

    def _write_lines(self, values: Sequence[Header | Turn | Choice | End], what: str) -> None:
        try:
            lines = b"".join(msgspec.json.encode(value) + b"\n" for value in values)
        except UnicodeEncodeError as error:
            raise FileError(f"{self.path}: cannot write {what}: it is not Unicode text") from error
        self._write(lines, what)

    def _write(self, data: bytes, what: str) -> None:
        """Add all bytes or none."""
        if self._descriptor < 0:
            return
        before_bytes = os.fstat(self._descriptor).st_size
        rest = data
        try:
            while rest:  # a disk that fills up takes a part at first, and says why at the next write
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException as error:
            os.ftruncate(self._descriptor, before_bytes)
            if not isinstance(error, OSError):
                raise
            raise FileError(
                f"{self.path}: cannot write {what}: {error.strerror}; every turn before is safe: go on with --resume"
            ) from error
