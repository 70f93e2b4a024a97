"""Every exception of the project, each with the exit code its command ends with.

PipesError                1  what failed, where, and what to do next, in one line
├── UsageError            2  the command line or a configuration is wrong
├── RoomError             1  a room, seat, FIFO or lock is missing or not what it should be
├── MessageError          1  a message cannot travel: too large, or not Unicode text
├── FileError             1  a model file or transcript cannot be read or written
│   ├── ModelFileError    1  a model file is damaged, incomplete or none at all
│   │   └── ContradictionError 1  its numbers contradict each other
│   └── LockError         1  a lock file cannot be used
├── EngineError           1  an engine, or another server, cannot be found, started or spoken to
│   ├── EngineFailure     1  an engine of ours does not run, and why
│   ├── EngineLost        1  it broke off before its answer was whole
│   └── Refused           1  a server answered with an error
├── ServingError          1  a request to the gateway gets no engine
├── DriverError           1  the driver of the cards cannot be asked, or does not answer
├── ProgramError          1  a program we started failed
├── PeerError             1  the process at the other end of a pipe failed
│   ├── PeerGone          1  it died, or left
│   └── PeerFailed        1  it answered with a failure
├── DeadlineError       124  a moment that must not pass has passed
└── Ended           128 + n  signal n ended us

Cancelled                    no failure, so `except PipesError` lets it pass: who cancelled a wait gets it
MisuseError                  a program uses us as it must not: mend the program; nobody is to catch it
"""

from __future__ import annotations

import enum
from typing import Literal, TypeAlias  # nothing of ours; and click and msgspec load it for every command anyway

# Why a peer has no answer, as its `failure` says it.
Reason: TypeAlias = Literal[
    "busy",  # the queue is full
    "malformed",  # a line that is no message
    "too-large",  # one message does not fit the context, or the pipe
    "out-of-step",  # the member knows less of the conversation than the leader believes; see `have`
    "silent",  # the voice showed no life for the member's own limit
    "voice",  # the engine or program failed
    "leaving",  # the member ends
]

Refusal: TypeAlias = Literal["context", "template", "auth", "missing", "loading", "other"]


class PipesError(Exception):
    """What failed, where, and what to do next, in one line."""

    exit_code = 1


class UsageError(PipesError):
    """The command line or a configuration is wrong."""

    exit_code = 2


class RoomError(PipesError):
    """A room, seat, FIFO or lock is missing or not what it should be."""


class MessageError(PipesError):
    """A message cannot travel: too large, or not Unicode text."""


class FileError(PipesError):
    """A model file or transcript cannot be read or written."""


class ModelFileError(FileError):
    """A model file is damaged, incomplete or none at all.

    `reason` is one line in plain words, without the path; `offset` the byte of the file where it shows.
    """

    def __init__(self, path: str, reason: str, offset: int | None = None) -> None:
        super().__init__(f"{path}: {reason}" if offset is None else f"{path}: {reason} (at byte {offset})")
        self.path = path
        self.reason = reason
        self.offset = offset


class ContradictionError(ModelFileError):
    """The numbers of a model file's header contradict each other: it was made up, or is damaged."""


class LockError(FileError):
    """A lock file cannot be used: its folder is `missing`, something `strange` has its name, or the system refuses."""

    def __init__(self, text: str, kind: Literal["missing", "strange", "refused"]) -> None:
        super().__init__(text)
        self.kind = kind


class EngineError(PipesError):
    """An engine, or another server, cannot be found, started or spoken to."""


class Cause(enum.Enum):
    """Why an engine does not run."""

    STOPPED = "stopped"  # by us
    MEMORY = "out-of-memory"  # the card's or the machine's
    LIMIT = "over-limit"  # it needed more than its own memory_limit
    FILE = "bad-file"
    FLAG = "bad-flag"
    PORT = "busy-port"
    KILLED = "killed"  # by a signal that somebody sent
    WEDGED = "wedged"  # it ran, and computed nothing
    CRASHED = "crashed"  # a fault of its own
    ENDED = "ended"  # with exit code 0, unasked: somebody sent it a TERM
    NO_START = "cannot-start"  # no such program, no descriptor or process to be had

    @property
    def is_lasting(self) -> bool:
        """Whether the same start would fail the same way: somebody must change something first."""
        return self in (Cause.FILE, Cause.FLAG, Cause.LIMIT)


class EngineFailure(EngineError):
    """An engine does not run, and its `cause`."""

    def __init__(self, text: str, cause: Cause) -> None:
        super().__init__(text)
        self.cause = cause


class EngineLost(EngineError):
    """An engine cannot be reached, or broke off before its answer was whole."""


class Refused(EngineError):
    """A server answered with an error: its HTTP `status`, and what `kind` of fault it names, as far as that is read."""

    def __init__(self, text: str, status: int, kind: Refusal = "other") -> None:
        super().__init__(text)
        self.status = status
        self.kind = kind


class ServingError(PipesError):
    """A request to the gateway gets no engine: `status` is its HTTP status, `code` OpenAI's word for the fault."""

    def __init__(self, text: str, status: int, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class DriverError(PipesError):
    """The driver of the cards cannot be asked, or does not answer; `is_lost` where a card has fallen off its bus."""

    def __init__(self, text: str, *, is_lost: bool = False) -> None:
        super().__init__(text)
        self.is_lost = is_lost


class ProgramError(PipesError):
    """A program we started failed."""


class PeerError(PipesError):
    """The process at the other end of a pipe failed."""


class PeerGone(PeerError):
    """The peer died, or left."""


class PeerFailed(PeerError):
    """The peer answered with a failure, for this reason; `have` goes with out-of-step, as in `message.Failure`."""

    def __init__(self, text: str, reason: Reason, have: int | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.have = have


class DeadlineError(PipesError):
    """A moment that must not pass has passed."""

    exit_code = 124


class Ended(PipesError):
    """A signal ended us."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by signal {signum}")
        self.exit_code = 128 + signum


class Cancelled(Exception):
    """We cancelled what is waited for, so nothing failed."""


class MisuseError(RuntimeError):
    """A program uses us as it must not; no failure of what it does, so that nothing which expects those hides it."""
