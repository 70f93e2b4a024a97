"""The append-only file of a conversation: JSON Lines, a header, then one line a turn.

    {"type":"conversation","version":1,"id":"…","members":["alice","bob"],"voices":{…},"settings":{…}}
    {"turn":0,"from":"hub","content":"Hello."}
    {"turn":1,"from":"alice","content":"Hi!","stop":"end","usage":{…},"timing":{…}}
    {"type":"end","why":"rounds"}

An end line says why a leader stopped; turns of one who resumed may follow it. What is in the file is
the truth about the conversation, and every whole line of it survives the death of its writer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import msgspec
from msgspec import Struct, field

from modelpipes import lockfile
from modelpipes.errors import FileError, UsageError
from modelpipes.pipe.message import Stop, Timing, Usage
from modelpipes.values.formats import TRANSCRIPT

VERSION = TRANSCRIPT.version
KEPT_TURNS = 64  # the newest, in memory; who must be told more is told from the file
# What a header begins with. A first line cut short is repaired only if it begins like this: a file that
# holds something else is somebody's, and not ours to empty.
_HEADER_BEGINS = b'{"type":"conversation"'


class Header(Struct, frozen=True, tag="conversation"):
    """The first line: which conversation this is, and how it was begun."""

    version: int
    id: str
    members: tuple[str, ...]
    voices: dict[str, str] = {}
    settings: dict[str, Any] = {}


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


class End(Struct, frozen=True, tag="end"):
    """Why a leader ended the conversation."""

    why: str


class _Kind(Struct, frozen=True):
    type: str = "turn"


class Versioned(Struct, frozen=True, tag="conversation"):
    """What a header of any version has."""

    version: int


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
        self._speakers: list[str] = []
        self._known: dict[str, int] = {}

    @classmethod
    def create(cls, path: str, header: Header) -> Transcript:
        """Begin a transcript in a new or empty file, or over the header of one whose members never came to speak.

        Raises UsageError where there is more in it, FileError where it is of a version to come, cannot be written or
        another leader holds it.
        """
        transcript = cls._open(path)
        try:
            if not transcript._is_unbegun():
                raise UsageError(f"{path}: there is a conversation in it: go on with --resume, or name another file")
            os.ftruncate(transcript._descriptor, 0)
            transcript._begin(header)
        except BaseException:
            transcript.close()
            raise
        return transcript

    @classmethod
    def resume(cls, path: str, header: Header) -> Transcript:
        """Go on with the transcript in a file, after its last whole turn; begin with `header` if it has none.

        A last line that was cut off is removed. Raises FileError where the file is none of ours, of a version to come,
        damaged elsewhere, cannot be written, or another leader holds it.
        """
        transcript = cls._open(path)
        try:
            transcript._read()
            if transcript._header is None:
                transcript._begin(header)
        except BaseException:
            transcript.close()
            raise
        return transcript

    @classmethod
    def unwritten(cls, header: Header) -> Transcript:
        """A transcript that nobody wants to keep: all in memory, in no file."""
        transcript = cls("", -1)
        transcript._header = header
        return transcript

    @property
    def header(self) -> Header:
        """The first line, as the file has it."""
        assert self._header is not None  # create and resume see to it
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

    def after(self, turn: int) -> Sequence[Turn]:
        """The turns after this one, -1 for all; FileError where they must be read again and cannot be."""
        missing = self.last - max(turn, -1)
        if missing <= len(self._newest):
            return list(self._newest)[len(self._newest) - max(0, missing) :]
        return [found for found in self._turns_in_file() if found.turn > turn]

    def known_by(self, seat: str) -> int:
        """The last turn that a member surely knows: its own last one; -1 where it has none.

        Not one that was cut off at a deadline: the member may remember more of it than the transcript has.
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

    def _begin(self, header: Header) -> None:
        self._write_lines([header], "the header")
        self._header = header

    def _add(self, turn: Turn) -> None:
        self._newest.append(turn)
        if turn.sender in self._speakers:
            self._speakers.remove(turn.sender)
        self._speakers.append(turn.sender)
        if turn.stop != "timeout":
            self._known[turn.sender] = turn.turn

    def _turns_in_file(self) -> Iterator[Turn]:
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                file.seek(0)
                for number, line in enumerate(file, 1):
                    if number > 1 and (turn := self._turn_in(number, line)):
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
        turn = self._turn_in(number, line)
        if turn and turn.turn != self.last + 1:
            raise FileError(f"{self.path}: line {number} has turn {turn.turn} where turn {self.last + 1} should follow")
        if turn:
            self._add(turn)

    def _turn_in(self, number: int, line: bytes) -> Turn | None:
        """The turn on a line after the header; None where it is blank or tells of an end."""
        if not line.strip():
            return None
        try:
            kind = msgspec.json.decode(line, type=_Kind).type
            if kind == "end":
                msgspec.json.decode(line, type=End)
                return None
            if kind != "turn":
                raise FileError(f"{self.path}: line {number} is of unknown type {kind!r}")
            return msgspec.json.decode(line, type=Turn)
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

    def _write_lines(self, values: Sequence[Header | Turn | End], what: str) -> None:
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
