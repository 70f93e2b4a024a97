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
_LOCK_SAYS = re.compile(rb"\s*|\d+\s*|\{\"seat\":.*", re.DOTALL)  # nothing, an asker's pid, or a Sitting
_MADE_BY_US = stat.S_ISVTX | 0o700  # the sticky bit changes nothing in a 0700 directory; it tells clean-up whose it is
_DYING_S = 2.0  # how long a second member waits for the first to be gone
_NAMELESS_S = 5.0  # a lock whose holder says nothing is another clean-up's, or a member's that just came
_COMMAND_CHARS = 80  # of a command, for a message to a person

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
        command = self.command if len(self.command) <= _COMMAND_CHARS else f"{self.command[: _COMMAND_CHARS - 1]}…"
        about = ([f"pid {self.pid}"] if self.pid else []) + ([command] if command else [])
        return f"{self.seat} ({', '.join(about)})" if about else self.seat


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
    seats = list(dict.fromkeys(seats))
    pairs = [pair for seat in seats for pair in ((hub, seat), (seat, hub))]
    return pairs + [(a, b) for a in seats for b in seats if mesh and a != b]


def resolve(path: str | None) -> str:
    """The directory that is meant by what a person named: theirs, and nobody else's to write.

    None is $PIPE_DIR, else the default room. A directory that others can write, such as /tmp, gives a
    per-user directory inside it.
    """
    path = path or os.environ.get("PIPE_DIR")
    if not path:
        return os.path.join(_rooms(), "default")
    path = os.path.abspath(os.path.expanduser(path))
    try:
        found = os.stat(path)
    except OSError:
        return path
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022:
        return os.path.join(_per_user(path), "default")
    return path


def _rooms() -> str:
    return runtime_dir() or _per_user(os.path.abspath(os.environ.get("TMPDIR") or "/tmp"))


def _per_user(shared: str) -> str:
    return os.path.join(shared, f"modelpipes-{os.geteuid()}")


def _check_directory(path: str) -> None:
    """Raise RoomError unless the path is a directory of ours that nobody else can write."""
    parent = os.path.dirname(path)
    if parent == _per_user(os.path.dirname(parent)):
        _check_directory(parent)  # its name can be guessed: somebody else may have made it first
    try:
        found = os.lstat(path)
    except OSError:
        raise RoomError(f"{path}: no room there; run setup-pipes first, or name the room with -d") from None
    if stat.S_ISLNK(found.st_mode):
        raise RoomError(f"{path}: a symbolic link, which is never followed; name the directory itself with -d")
    if not stat.S_ISDIR(found.st_mode):
        raise RoomError(f"{path}: not a directory")
    if found.st_uid != os.geteuid():
        raise RoomError(f"{path}: belongs to user {found.st_uid}, not to us")
    if found.st_mode & 0o022:
        raise RoomError(f"{path}: others can write there; chmod go-w it, or name another room with -d")


class Room:
    """A directory that holds the FIFOs of one conversation."""

    keeps_asker_locks = True  # for the next asker; clean-up removes them

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | None = None) -> Room:
        """The room that is there; RoomError where there is none, or it is not ours."""
        room = cls(resolve(path))
        _check_directory(room.path)
        return room

    @classmethod
    def make_fresh(cls) -> Room:
        """A new room beside the default one, for one conversation."""
        return cls.make(os.path.join(_rooms(), f"chat-{os.getpid()}-{os.urandom(4).hex()}"))

    @classmethod
    def make(cls, path: str | None = None) -> Room:
        """The room, made with mode 0700 where it is missing."""
        room = cls(resolve(path))
        parent = os.path.dirname(room.path)
        try:
            os.makedirs(parent, mode=0o700, exist_ok=True)
            if parent == _per_user(os.path.dirname(parent)):
                _check_directory(parent)  # before anything is made in it
            with contextlib.suppress(FileExistsError):
                os.mkdir(room.path, _MADE_BY_US)
        except OSError as e:
            raise RoomError(f"{room.path}: cannot be made: {(e.strerror or str(e)).lower()}") from None
        _check_directory(room.path)
        return room

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
            lock = fifo.Lock.take(self.seat_lock(seat), Deadline.after(_DYING_S))
        except DeadlineError:
            who = self.sitting(seat).name()
            raise RoomError(f"{self.path}: the seat is taken by {who}; end it, or take another seat") from None
        lock.clear()  # what a dead member left there must not pass for ours
        return lock

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
            self.require(who.seat)  # in a room that was removed nobody will ever be ready
            if deadline.has_passed():
                is_what = {"free": "nobody took it", "died": "its member died"}.get(who.state, f"it is {who.state}")
                raise DeadlineError(f"{self.path}: seat {who.seat} was not ready before the deadline: {is_what}")
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
        try:
            chosen = set(self.pipes() if pipes is None else pipes)
            deadline = Deadline.after(0 if force else _NAMELESS_S)
            kept = self._remove_pipes(chosen, force, deadline)
            seats = None if pipes is None else {seat for pair in chosen for seat in pair}
            kept += self._remove_locks(seats, force, deadline)
        except RoomError:
            if os.path.lexists(self.path):
                raise
            return []  # another clean-up was faster
        with contextlib.suppress(OSError):  # not empty, or gone: either way nothing of ours is left to remove
            if os.lstat(self.path).st_mode & stat.S_ISVTX:
                os.rmdir(self.path)
        return list(dict.fromkeys(kept))

    def _remove_pipes(self, chosen: set[tuple[str, str]], force: bool, deadline: Deadline) -> list[str]:
        kept = []
        asked = set(self._lock_names())
        for a, b in sorted({(min(pair), max(pair)) for pair in chosen}):
            with contextlib.ExitStack() as locks:
                names = [a, b, *sorted({f"{a}_to_{b}", f"{b}_to_{a}"} & asked)]
                if not force and (use := self._lock_out(names, locks, deadline)):
                    kept.append(use)
                    continue
                for pair in sorted(chosen & {(a, b), (b, a)}):
                    kept += _unlink(self.pipe(*pair), stat.S_ISFIFO)
        return kept

    def _remove_locks(self, seats: set[str] | None, force: bool, deadline: Deadline) -> list[str]:
        kept = []
        left = {seat for pair in self.pipes() for seat in pair}
        for name in self._lock_names():
            its_seats = set(name.split("_to_"))
            if its_seats & left or (seats is not None and not its_seats <= seats):
                continue
            with contextlib.ExitStack() as locks:
                if not force and (use := self._lock_out([name], locks, deadline)):
                    kept.append(use)
                else:
                    kept += _unlink(os.path.join(self.path, f"{name}.lock"), stat.S_ISREG)
        return kept

    def _lock_names(self) -> list[str]:
        """The lock files of ours, without `.lock`; also those of seats whose pipes are gone."""
        return sorted(m[1] for name in self._names() if (m := _LOCK.fullmatch(name)) and self._is_lock(name))

    def _is_lock(self, file: str) -> bool:
        try:
            return bool(_LOCK_SAYS.fullmatch(fifo.look(os.path.join(self.path, file))[1]))
        except RoomError:
            return False  # another program's, that ends in .lock as well

    def _lock_out(self, names: Iterable[str], locks: contextlib.ExitStack, deadline: Deadline) -> str | None:
        """Take these locks, so that nobody sits down or asks while the pipes go; else who is in the way."""
        for name in names:
            while not (lock := fifo.Lock.try_take(os.path.join(self.path, f"{name}.lock"))):
                user = self._user(name)
                if user or deadline.has_passed():
                    return f"{user or name.split('_to_')[-1]} is in use and kept; end it, or use -f"
                time.sleep(fifo.RETRY_S)
            locks.enter_context(lock)
            lock.clear()  # else what a dead holder left there would pass for us
        return None

    def _user(self, lock_name: str) -> str | None:
        """Who holds a lock now, as far as its file says."""
        *asker, seat = lock_name.split("_to_")
        if not asker:
            who = self.sitting(seat)
            return who.name() if who.pid and who.state != "died" else None
        is_held, pid = fifo.look(self.asker_lock(asker[0], seat))
        return f"{seat}, asked by {asker[0]} (pid {pid.decode().strip()})," if is_held and pid.strip() else None


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
        self.keeps_asker_locks = names is not None  # else no clean-up would find it

    def pipe(self, sender: str, receiver: str) -> str:
        return self._paths[sender != self.sender]

    def asker_lock(self, asker: str, seat: str) -> str:
        return super().asker_lock(asker, seat) if self.keeps_asker_locks else f"{self._paths[0]}.lock"

    def sitting(self, seat: str) -> Sitting:
        return super().sitting(seat) if self.keeps_asker_locks else Sitting(self._paths[0], "free")
