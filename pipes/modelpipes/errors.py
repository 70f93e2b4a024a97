"""Every exception of the project, each with the exit code its command ends with.

PipesError                1  what failed, where, and what to do next, in one line
├── UsageError            2  the command line or a configuration is wrong
├── RoomError             1  a room, seat, FIFO or lock is missing or not what it should be
├── MessageError          1  a message cannot travel: too large, or not Unicode text
├── FileError             1  a model file or transcript cannot be read or written
│   ├── ModelFileError    1  a model file is damaged, incomplete or none at all
│   └── LockError         1  a lock file cannot be used
├── EngineError           1  an engine cannot be found, started or spoken to
├── DriverError           1  the driver of the cards cannot be asked, or does not answer
├── ProgramError          1  a program we started failed
├── PeerError             1  the process at the other end of a pipe failed
│   ├── PeerGone          1  it died, or left
│   └── PeerFailed        1  it answered with a failure
├── DeadlineError       124  a moment that must not pass has passed
└── Ended           128 + n  signal n ended us
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes 5 ms to import
if TYPE_CHECKING:
    from typing import Literal


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


class LockError(FileError):
    """A lock file cannot be used: its folder is `missing`, something `strange` has its name, or the system refuses."""

    def __init__(self, text: str, kind: Literal["missing", "strange", "refused"]) -> None:
        super().__init__(text)
        self.kind = kind


class EngineError(PipesError):
    """An engine cannot be found, started or spoken to."""


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
    """The peer answered with a failure; `reason` is one of `message.Reason`."""

    def __init__(self, text: str, reason: str, have: int | None = None) -> None:
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
