"""A directory of FIFOs: its seats, their names, and who sits where."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import msgspec

from modelpipes import fifo
from modelpipes.deadline import Deadline
from modelpipes.errors import DeadlineError, PeerGone, RoomError, UsageError
from modelpipes.paths import runtime_dir

HUB = "hub"
SEAT_RULE = "a seat's name is 1 to 32 of a-z, 0-9, '.' and '-', begins with a letter or digit, and ends not in .lock"
_SEAT = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}(?<!\.lock)")  # a_to_b.lock is b's asker's, not a pipe to b.lock
_PIPE = re.compile(rf"({_SEAT.pattern})_to_({_SEAT.pattern})")
_LOCK = re.compile(rf"({_SEAT.pattern}(?:_to_{_SEAT.pattern})?)\.lock")
_MADE_BY_US = stat.S_ISVTX | 0o700  # the sticky bit changes nothing in a 0700 directory; it tells clean-up whose it is
_DYING_S = 2.0  # how long a second member waits for the first to be gone

State: TypeAlias = Literal["free", "died", "loading", "ready", "busy"]


class Sitting(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who sits in a seat and what it does; the one line of the seat's lock file."""

    seat: str
    state: State
    pid: int | None = None
    voice: str = ""  # what makes the answers: "model tiny-chat", "filter cat"
    queue: int = 0  # messages waiting
    answers: int = 0  # given so far
    command: str = ""

    def name(self) -> str:
        """The seat, its process and its command, for a message to a person."""
        return f"{self.seat} (pid {self.pid}, {self.command})"


_sitting = msgspec.json.Decoder(Sitting)


def check_seat(name: str) -> str:
    """The name, if a seat may have it; UsageError otherwise."""
    if not _SEAT.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a seat: {SEAT_RULE}")
    return name


def seat_variable(seat: str) -> str:
    """A seat's name as it stands in a shell variable."""
    return seat.upper().replace(".", "_").replace("-", "_")


def star(hub: str, seats: Sequence[str], *, mesh: bool = False) -> list[tuple[str, str]]:
    """(sender, receiver) of every pipe between the hub and each seat; with mesh, also of seats among each other."""
    if hub in seats:
        raise UsageError(f"'{hub}' is the hub; name another seat, or another --hub")
    pairs = [pair for seat in dict.fromkeys(seats) for pair in ((hub, seat), (seat, hub))]
    return pairs + [(a, b) for a in seats for b in seats if mesh and a != b]


def resolve(path: str | None) -> str:
    """The directory that is meant by what a person named: theirs, and nobody else's to write.

    None is the default room. A directory that others can write, such as /tmp, gives a per-user
    directory inside it.
    """
    if path is None:
        return os.path.join(runtime_dir() or _per_user(os.environ.get("TMPDIR") or "/tmp"), "default")
    path = os.path.abspath(os.path.expanduser(path))
    try:
        found = os.stat(path)
    except OSError:
        return path
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022:
        return os.path.join(_per_user(path), "default")
    return path


def _per_user(shared: str) -> str:
    return os.path.join(shared, f"modelpipes-{os.geteuid()}")


class Room:
    """A directory that holds the FIFOs of one conversation."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | None = None) -> Room:
        """The room that is there; RoomError where there is none, or it is not ours."""
        room = cls(resolve(path))
        room._check()
        return room

    @classmethod
    def make_fresh(cls) -> Room:
        """A new room beside the default one, for one conversation."""
        return cls.make(os.path.join(os.path.dirname(resolve(None)), f"chat-{os.getpid()}-{os.urandom(4).hex()}"))

    @classmethod
    def make(cls, path: str | None = None) -> Room:
        """The room, made with mode 0700 where it is missing."""
        room = cls(resolve(path))
        parent = os.path.dirname(room.path)
        try:
            os.makedirs(parent, mode=0o700, exist_ok=True)
            if parent == _per_user(os.path.dirname(parent)):
                Room(parent)._check()  # its name can be guessed: somebody else may have made it first
            os.mkdir(room.path, _MADE_BY_US)
        except FileExistsError:
            pass
        except OSError as e:
            raise RoomError(f"{room.path}: cannot be made: {(e.strerror or str(e)).lower()}") from None
        room._check()
        return room

    def _check(self) -> None:
        try:
            found = os.lstat(self.path)
        except OSError:
            raise RoomError(f"{self.path}: no room there; run setup-pipes first, or name the room with -d") from None
        if not stat.S_ISDIR(found.st_mode):
            raise RoomError(f"{self.path}: not a directory")
        if found.st_uid != os.geteuid():
            raise RoomError(f"{self.path}: belongs to user {found.st_uid}, not to us")
        if found.st_mode & 0o022:
            raise RoomError(f"{self.path}: others can write there; chmod go-w it, or name another room with -d")

    def pipe(self, sender: str, receiver: str) -> str:
        return os.path.join(self.path, f"{sender}_to_{receiver}")

    def seat_lock(self, seat: str) -> str:
        return os.path.join(self.path, f"{seat}.lock")

    def asker_lock(self, asker: str, seat: str) -> str:
        return os.path.join(self.path, f"{asker}_to_{seat}.lock")

    def make_pipes(self, pairs: Iterable[tuple[str, str]]) -> list[str]:
        """Make the pipes that are missing; their paths, in the order given."""
        paths = [self.pipe(*pair) for pair in pairs]
        for path in paths:
            fifo.make(path)
        return paths

    def pipes(self) -> list[tuple[str, str]]:
        """(sender, receiver) of every pipe, sorted."""
        return sorted((m[1], m[2]) for name in self._names() if (m := _PIPE.fullmatch(name)))

    def senders_to(self, seat: str) -> list[str]:
        return [sender for sender, receiver in self.pipes() if receiver == seat]

    def seats(self) -> list[str]:
        """Every seat that a pipe leads to, sorted."""
        return sorted({receiver for _, receiver in self.pipes()})

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except OSError:
            raise RoomError(f"{self.path}: the room is gone; run setup-pipes again") from None

    def require(self, seat: str) -> None:
        """Raise RoomError, naming the seats there are, unless a pipe leads to this one."""
        check_seat(seat)
        seats = self.seats()
        if seat not in seats:
            there = f"its seats are {', '.join(seats)}" if seats else "it has no seats"
            raise RoomError(f"{self.path}: no seat '{seat}'; {there}; add it with setup-pipes")

    def sitting(self, seat: str) -> Sitting:
        """Who sits there now; state "died" where the last one was killed, "free" where nobody is."""
        is_held, line = fifo.look(self.seat_lock(seat))
        try:
            who = _sitting.decode(line)
        except msgspec.DecodeError:
            return Sitting(seat, "loading") if is_held else Sitting(seat, "free")
        return who if is_held else msgspec.structs.replace(who, state="died", queue=0)

    def is_asked(self, asker: str, seat: str) -> bool:
        """Does a typed asker hold this seat's lock towards the other now?"""
        return fifo.look(self.asker_lock(asker, seat))[0]

    def take_seat(self, seat: str) -> fifo.Lock:
        """Take a seat for this process; RoomError, naming the holder, where it is taken."""
        self.require(seat)
        try:
            return fifo.Lock.take(self.seat_lock(seat), Deadline.after(_DYING_S))
        except DeadlineError:
            who = self.sitting(seat).name()
            raise RoomError(f"{self.path}: the seat is taken by {who}; end it, or take another seat") from None

    def wait_for(self, seats: Iterable[str], deadline: Deadline, *, grace_s: float = _DYING_S) -> None:
        """Return when these seats are ready or busy; DeadlineError at the deadline.

        PeerGone where a member died and nobody took its seat again within `grace_s`: a script that
        restarts a member and then waits for it finds the dead one's traces at first.
        """
        grace = Deadline.after(grace_s)
        waiting = list(seats)
        while waiting:
            who = self.sitting(waiting[0])
            if who.state in ("ready", "busy"):
                waiting.pop(0)
                continue
            if who.state == "died" and grace.has_passed():
                raise PeerGone(f"{who.name()} died; seat it again with attach-model")
            if deadline.has_passed():
                is_what = {"free": "nobody took it", "died": "its member died"}.get(who.state, f"it is {who.state}")
                raise DeadlineError(f"{self.path}: seat {who.seat} is not ready before the deadline: {is_what}")
            time.sleep(fifo.RETRY_S)

    def pipes_of_prefix(self, prefix: str) -> list[tuple[str, str]]:
        """The pipes from and to the seats PREFIX1, PREFIX2 …"""
        is_numbered = re.compile(rf"{re.escape(prefix)}\d+").fullmatch
        return [pair for pair in self.pipes() if any(map(is_numbered, pair))]

    def remove(self, pipes: Iterable[tuple[str, str]] | None = None, *, force: bool = False) -> list[str]:
        """Remove these pipes, or all that a room may contain; what was kept, each with its reason.

        A seat in use is kept, unless forced. Lock files go with the last pipe of their seats, and the
        room itself when it is empty, if we made it.
        """
        chosen = list(self.pipes() if pipes is None else pipes)
        kept: list[str] = []
        with contextlib.ExitStack() as held:
            used: set[str] = set()
            for name in sorted({seat for pair in chosen for seat in pair} | self._lock_names()):
                if lock := fifo.Lock.try_take(os.path.join(self.path, f"{name}.lock")):
                    held.enter_context(lock)  # nobody takes the seat while its pipes go
                elif not force:
                    used.add(name.split("_to_")[-1])
                    kept.append(self._describe_use(name))
            for pair in chosen:
                if not used & set(pair):
                    kept += _unlink(self.pipe(*pair), stat.S_ISFIFO)
            left = {seat for pair in self.pipes() for seat in pair}
            for name in self._lock_names():
                if not left & set(name.split("_to_")):
                    kept += _unlink(os.path.join(self.path, f"{name}.lock"), stat.S_ISREG)
            self._remove_directory()
        return kept

    def _lock_names(self) -> set[str]:
        return {m[0].removesuffix(".lock") for name in self._names() if (m := _LOCK.fullmatch(name))}

    def _describe_use(self, lock_name: str) -> str:
        if "_to_" not in lock_name:
            return f"{self.sitting(lock_name).name()} is in use and kept; end it, or use -f"
        asker, seat = lock_name.split("_to_")
        pid = fifo.look(self.asker_lock(asker, seat))[1].decode().strip() or "unknown"
        return f"{seat} is in use by {asker} (pid {pid}) and kept; end it, or use -f"

    def _remove_directory(self) -> None:
        with contextlib.suppress(OSError):  # not empty, or gone: either way nothing of ours is left to remove
            if os.lstat(self.path).st_mode & stat.S_ISVTX:
                os.rmdir(self.path)


def _unlink(path: str, is_kind: Callable[[int], bool]) -> list[str]:
    try:
        found = os.lstat(path)
        if not is_kind(found.st_mode) or found.st_uid != os.geteuid():
            return [f"{path}: not made by setup-pipes, kept"]
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as e:
        return [f"{path}: cannot be removed: {(e.strerror or str(e)).lower()}"]
    return []


class PipePair(Room):
    """Two FIFOs named directly, wherever they lie: one that we write to, one that we read from."""

    def __init__(self, to_pipe: str, from_pipe: str) -> None:
        super().__init__(os.path.dirname(os.path.abspath(to_pipe)))
        self._paths = os.path.abspath(to_pipe), os.path.abspath(from_pipe)
        names = _PIPE.fullmatch(os.path.basename(to_pipe))
        self.sender, self.receiver = (names[1], names[2]) if names else (HUB, "peer")

    def pipe(self, sender: str, receiver: str) -> str:
        return self._paths[sender != self.sender]

    def asker_lock(self, asker: str, seat: str) -> str:
        return f"{self._paths[0]}.lock" if self.receiver == "peer" else super().asker_lock(asker, seat)
