"""What happens, as values, and the Sink that takes them; who listens is not known here.

EngineReady      an engine is loaded
EngineStuck      an engine is there and computes nothing
EngineFailed     an engine could not be loaded, or died
StopFailed       an engine could not be ended as it should be
MemoryNotFreed   an engine has ended, and its memory is not free
FileReplaced     the file of a model in memory is another one now
Decided          what was decided about a model, and why
Listening        the daemon is there for others
LeftOut          a model is not served
NotCounted       what of a model's engine no prediction has
DoesNotFit       a model is served and can never be loaded
Reloaded         the configuration was read again and is in force
NotReloaded      the configuration was read again and is not
NeedsRestart     what of a new configuration has to wait for the next start
Trouble          something failed that has no kind of its own
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec


class EngineReady(msgspec.Struct, frozen=True):
    """The engine of a model is loaded, and its process."""

    name: str
    load_s: float
    pid: int


class EngineStuck(msgspec.Struct, frozen=True):
    """The engine of a model is there and computes nothing; it is ended."""

    name: str


class EngineFailed(msgspec.Struct, frozen=True):
    """The engine of a model could not be loaded, or died, and when it may be loaded again.

    With `is_lasting`, once its file or the configuration has changed; else after `pause_s`. `in_a_row` counts what came
    of this model without a life between; 0: of one whose name another has now, by file or configuration, which has no
    part in it.
    """

    name: str
    why: str
    in_a_row: int = 0
    pause_s: float = 0.0
    is_lasting: bool = False


class StopFailed(msgspec.Struct, frozen=True):
    """The engine of a model could not be ended as it should be."""

    name: str
    why: str


class MemoryNotFreed(msgspec.Struct, frozen=True):
    """The engine of a model has ended, and its memory on the card is not free."""

    name: str


class FileReplaced(msgspec.Struct, frozen=True):
    """The file of a model in memory is another one now, which is loaded next; with `why`, not: it cannot be."""

    name: str
    why: str = ""


class Decided(msgspec.Struct, frozen=True):
    """What was decided about a model: load, drain, undrain, stop, refuse; and why."""

    action: str
    name: str
    reason: str


class Listening(msgspec.Struct, frozen=True):
    """The daemon takes requests for so many models at an address; `memory` is its budget in words."""

    models: int
    address: str
    memory: str


class LeftOut(msgspec.Struct, frozen=True):
    """A model is not served."""

    name: str
    why: str


class NotCounted(msgspec.Struct, frozen=True):
    """Something of a model's engine is not, or not wholly, in the prediction of its memory."""

    name: str
    what: str


class DoesNotFit(msgspec.Struct, frozen=True):
    """A model can never be loaded into this budget, and what would."""

    name: str
    advice: str


class Reloaded(msgspec.Struct, frozen=True):
    """The configuration was read again: so many models now, which ones are new, gone or changed.

    `memory` is the new budget in words; "" where it is as it was.
    """

    models: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    memory: str = ""


class NotReloaded(msgspec.Struct, frozen=True):
    """The configuration was read again and is wrong: nothing was changed."""

    why: str


class NeedsRestart(msgspec.Struct, frozen=True):
    """These keys of a new configuration are read at the start only."""

    keys: tuple[str, ...]


class Trouble(msgspec.Struct, frozen=True):
    """Something failed that has no kind of its own, and the work goes on."""

    why: str


Event: TypeAlias = (
    EngineReady
    | EngineStuck
    | EngineFailed
    | StopFailed
    | MemoryNotFreed
    | FileReplaced
    | Decided
    | Listening
    | LeftOut
    | NotCounted
    | DoesNotFit
    | Reloaded
    | NotReloaded
    | NeedsRestart
    | Trouble
)
Sink: TypeAlias = Callable[[Event], None]  # called from any thread; returns at once, and raises nothing
