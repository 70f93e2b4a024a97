"""A directory of FIFOs: its seats, their names, and who sits where."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from modelpipes import lockfile
from modelpipes.errors import DeadlineError, LockError, PeerGone, RoomError, UsageError
from modelpipes.pipe import fifo
from modelpipes.pipe.message import Sampling
from modelpipes.values.deadline import Deadline
from modelpipes.values.formats import SEAT, format_of
from modelpipes.values.paths import runtime_dir
from modelpipes.values.units import format_share

HUB = "hub"
SEAT_RULE = "a seat's name is 1 to 32 of a-z, 0-9, '.' and '-', begins with a letter or digit, and ends not in .lock"
_SEAT_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-")
_SEAT_LENGTH = 32
MADE_BY_US = stat.S_ISVTX | 0o700  # the sticky bit changes nothing in a 0700 directory; it tells clean-up whose it is
_DYING_S = 2.0  # how long a second member waits for the first to be gone
_COMMAND_CHARS = 80  # of a command, for a message to a person
_ADVICE = {  # by the kind of a LockError
    "missing": "; run setup-pipes first, or name the room with -d",
    "strange": " and run setup-pipes again",
    "refused": "",
}

State: TypeAlias = Literal["free", "died", "loading", "ready", "busy"]


class Loading(msgspec.Struct, frozen=True):
    """How much of its files a model has read that is being loaded."""

    done_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        return format_share(self.done_bytes, self.total_bytes)


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of the model that makes the answers, and what it is told first; nothing of a program."""

    file: str = ""  # its path here
    engine: str = ""  # which program computes, and its build
    system: str | None = None  # as it was written, with places to be filled in; None: the default, empty: nothing
    manner: Literal["full", "brief"] = "full"  # of the default
    folds_system: bool = False  # its template refuses a system role
    sampling: Sampling | None = None


class Sitting(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who sits in a seat and what it does; the one line of the seat's lock file.

    The line begins with the seat, by which clean-up knows it; it is of the version that it states in `format`, or 1.
    """

    seat: str
    state: State
    pid: int | None = None
    voice: str = ""  # what makes the answers: "model tiny-chat", "filter cat"
    queue: int = 0  # messages waiting
    answers: int = 0  # given so far
    command: str = ""
    about: About | None = None
    loading: Loading | None = None  # while it loads, where that can be seen

    @property
    def takes_messages(self) -> bool:
        """Does a member sit there that has loaded?"""
        return self.state in ("ready", "busy")

    def name(self) -> str:
        """The seat, its process and its command, for a message to a person."""
        command = self.command if len(self.command) <= _COMMAND_CHARS else f"{self.command[: _COMMAND_CHARS - 1]}…"
        about = ([f"pid {self.pid}"] if self.pid else []) + ([command] if command else [])
        return f"{self.seat} ({', '.join(about)})" if about else self.seat


_sitting = msgspec.json.Decoder(Sitting)


def is_seat(name: str) -> bool:
    """May a seat have this name? Not one in .lock: a_to_b.lock is the lock of b's asker, and no pipe to b.lock."""
    is_short = 0 < len(name) <= _SEAT_LENGTH
    return is_short and name[0] not in ".-" and _SEAT_CHARS.issuperset(name) and not name.endswith(".lock")


def parse_pipe(name: str) -> tuple[str, str] | None:
    """(sender, receiver) of a pipe's name; None where it is no pipe's."""
    sender, separator, receiver = name.partition("_to_")
    return (sender, receiver) if separator and is_seat(sender) and is_seat(receiver) else None


def check_seat(name: str) -> str:
    """The name, if a seat may have it; UsageError otherwise."""
    if not is_seat(name):
        raise UsageError(f"'{name}' cannot be a seat: {SEAT_RULE}")
    return name


def seat_variable(seat: str) -> str:
    """A seat's name as it stands in a shell variable."""
    return seat.upper().replace(".", "_").replace("-", "_")


def seats_in_words(seats: Sequence[str]) -> str:
    """The seats of a room, for a message to a person."""
    return f"its seats are {', '.join(seats)}" if seats else "it has no seats"


def star(hub: str, seats: Sequence[str], *, mesh: bool = False) -> list[tuple[str, str]]:
    """(sender, receiver) of every pipe between the hub and each seat; with mesh, also of seats among each other."""
    if hub in seats:
        raise UsageError(f"'{hub}' is the hub; name another seat, or another --hub")
    seats = list(dict.fromkeys(seats))
    pairs = [pair for seat in seats for pair in ((hub, seat), (seat, hub))]
    return pairs + [(a, b) for a in seats for b in seats if mesh and a != b]


def exports(hub: str, seats: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(sender, receiver) of the hub's pipes by the variables that name them to a shell.

    UsageError where two seats would share a variable.
    """
    named: dict[str, str] = {}
    for seat in seats:
        other = named.setdefault(seat_variable(seat), seat)
        if other != seat:
            raise UsageError(f"{other} and {seat} would both be PIPE_TO_{seat_variable(seat)}; rename one")
    return {
        variable: pair
        for name, seat in named.items()
        for variable, pair in ((f"PIPE_TO_{name}", (hub, seat)), (f"PIPE_FROM_{name}", (seat, hub)))
    }


def resolve(path: str | None) -> str:
    """The directory that is meant by what a person named: theirs, and nobody else's to write.

    None is $PIPE_DIR, else the default room. A directory that others can write, such as /tmp, gives a
    per-user directory inside it.
    """
    path = path or os.environ.get("PIPE_DIR")
    if not path:
        return os.path.join(folder_of_rooms(), "default")
    path = os.path.abspath(os.path.expanduser(path))
    try:
        found = os.stat(path)
    except OSError:
        return path
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022:
        return os.path.join(_per_user(path), "default")
    return path


def folder_of_rooms() -> str:
    """Where rooms lie unless another place is named."""
    return runtime_dir() or _per_user(os.path.abspath(os.environ.get("TMPDIR") or "/tmp"))


def _per_user(shared: str) -> str:
    return os.path.join(shared, f"modelpipes-{os.geteuid()}")


def is_per_user(path: str) -> bool:
    """Is it the directory of ours inside one that others can write?"""
    return path == _per_user(os.path.dirname(path))


def _check_directory(path: str) -> None:
    """Raise RoomError unless the path is a directory of ours that nobody else can write."""
    try:
        found = os.lstat(path)
    except OSError:
        raise RoomError(f"{path}: no room there; run setup-pipes first, or name the room with -d") from None
    parent = os.path.dirname(path)
    if is_per_user(parent):
        _check_directory(parent)  # its name can be guessed: somebody else may have made it first
    if stat.S_ISLNK(found.st_mode):
        raise RoomError(f"{path}: a symbolic link, which is never followed; name the directory itself with -d")
    if not stat.S_ISDIR(found.st_mode):
        raise RoomError(f"{path}: not a directory")
    if found.st_uid != os.geteuid():
        raise RoomError(f"{path}: belongs to user {found.st_uid}, not to us")
    if found.st_mode & 0o022:
        raise RoomError(f"{path}: others can write there; chmod go-w it, or name another room with -d")


class Room:
    """A directory that holds the FIFOs of one conversation; `path` is its absolute path.

        room = Room.make("talk", ["alice", "bob"])
        for seat in room.seats():
            print(room.sitting(seat))

    It holds nothing open. `clean_up` removes it.
    """

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
        """A new room beside the default one, for one conversation of this process."""
        return cls.make(os.path.join(folder_of_rooms(), f"chat-{os.getpid()}-{os.urandom(4).hex()}"))

    @classmethod
    def all(cls) -> list[Room]:
        """Our rooms in the folder where they lie unless another is named, by path."""
        paths: list[str] = []
        with contextlib.suppress(OSError, RoomError):  # no such directory, or not ours alone: nothing there is ours
            _check_directory(folder_of_rooms())
            paths = [os.path.join(folder_of_rooms(), name) for name in sorted(os.listdir(folder_of_rooms()))]
        return [room for room in map(cls, paths) if room.is_ours()]

    @classmethod
    def orphans(cls) -> list[Room]:
        """The fresh rooms of processes that were killed before they could remove them."""
        rooms = []
        for room in cls.all():
            kind, _, rest = os.path.basename(room.path).partition("-")
            pid, _, _ = rest.partition("-")
            if kind == "chat" and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                rooms.append(room)
        return rooms

    def is_ours(self) -> bool:
        """Is it a directory of ours that nobody else can write?"""
        try:
            _check_directory(self.path)
        except RoomError:
            return False
        return True

    @classmethod
    def make(cls, path: str | None = None, seats: Sequence[str] = (), *, hub: str = HUB) -> Room:
        """The room, made with mode 0700 where it is missing, with pipes between the hub and each of these seats.

        None is $PIPE_DIR, else the default room. What is there already stays. Raises RoomError where it cannot be
        made or others can write there, UsageError for a name that no seat can have.
        """
        pairs = star(check_seat(hub), [check_seat(seat) for seat in seats])
        room = cls(resolve(path))
        try:
            try:
                room._make_directory()
            except FileNotFoundError:
                room._make_directory()  # a clean-up took the empty parent in that moment
        except OSError as e:
            raise RoomError(f"{room.path}: cannot be made: {(e.strerror or str(e)).lower()}") from None
        _check_directory(room.path)
        room.make_pipes(pairs)
        return room

    def _make_directory(self) -> None:
        parent = os.path.dirname(self.path)
        os.makedirs(parent, mode=0o700, exist_ok=True)
        if is_per_user(parent):
            _check_directory(parent)  # before anything is made in it
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, MADE_BY_US)

    def pipe(self, sender: str, receiver: str) -> str:
        """The path of a FIFO, which may not be there."""
        return os.path.join(self.path, f"{sender}_to_{receiver}")

    def seat_lock(self, seat: str) -> str:
        """The path of the lock file that a member holds."""
        return os.path.join(self.path, f"{seat}.lock")

    def asker_lock(self, asker: str, seat: str) -> str:
        """The path of the lock file that an asker holds for one exchange."""
        return os.path.join(self.path, f"{asker}_to_{seat}.lock")

    @contextlib.contextmanager
    def _locking(self) -> Iterator[None]:
        """Within, what is wrong with a lock file is wrong with the room."""
        try:
            yield
        except LockError as error:
            raise RoomError(f"{error}{_ADVICE[error.kind]}") from None

    def look(self, lock: str) -> tuple[bool, bytes]:
        """Whether somebody holds a lock file of the room, and what it says; (False, b"") where there is none."""
        with self._locking():
            return lockfile.look(lock)

    def take(self, lock: str, deadline: Deadline) -> lockfile.Lock:
        """Wait for a lock of the room; DeadlineError where its holder keeps it."""
        with self._locking():
            return lockfile.Lock.take(lock, deadline)

    def try_take(self, lock: str) -> lockfile.Lock | None:
        """Take a lock of the room if it is free, whoever waits for it."""
        with self._locking():
            return lockfile.Lock.try_take(lock)

    def make_pipes(
        self, pairs: Iterable[tuple[str, str]], tell: Callable[[str, bool], None] = lambda path, is_new: None
    ) -> list[str]:
        """Make the pipes that are missing; the paths of all, in the order given.

        `tell` hears of each, and whether it is new, as soon as it is there.
        """
        paths = [self.pipe(*pair) for pair in pairs]
        for path in paths:
            tell(path, fifo.make(path))
        return paths

    def pipes(self) -> list[tuple[str, str]]:
        """(sender, receiver) of every pipe, sorted."""
        return sorted(pair for name in self.names() if (pair := parse_pipe(name)))

    def senders_to(self, seat: str) -> list[str]:
        """Every seat with a pipe to this one, sorted."""
        return [sender for sender, receiver in self.pipes() if receiver == seat]

    def seats(self) -> list[str]:
        """Every seat that a pipe leads to, sorted."""
        return sorted({receiver for _, receiver in self.pipes()})

    def names(self) -> list[str]:
        """Everything that lies in the room."""
        try:
            return os.listdir(self.path)
        except OSError:
            raise RoomError(f"{self.path}: the room is gone; run setup-pipes again") from None

    def require(self, seat: str) -> None:
        """Raise RoomError, naming the seats there are, unless a pipe leads to this one."""
        check_seat(seat)
        seats = self.seats()
        if seat not in seats:
            raise RoomError(f"{self.path}: no seat '{seat}'; {seats_in_words(seats)}; add it with setup-pipes")

    def sitting(self, seat: str) -> Sitting:
        """Who sits there now; state "died" where the last one was killed, "free" where nobody is.

        "loading" where its line cannot be read, which `check_line` tells of.
        """
        is_held, line = self.look(self.seat_lock(seat))
        try:
            who = None if SEAT.refusal(format_of(line)) else _sitting.decode(line)
        except msgspec.DecodeError:
            who = None
        if who is None:
            return Sitting(seat, "loading") if is_held else Sitting(seat, "free")
        return who if is_held else msgspec.structs.replace(who, state="died", queue=0)

    def check_line(self, seat: str) -> None:
        """Raise RoomError where who sits there keeps a line of a version to come."""
        is_held, line = self.look(path := self.seat_lock(seat))
        if is_held and (refusal := SEAT.refusal(format_of(line))):
            raise RoomError(f"{path}: {refusal}")

    def is_asked(self, asker: str, seat: str) -> bool:
        """Does a typed asker hold this seat's lock towards the other now?"""
        return self.look(self.asker_lock(asker, seat))[0]

    def take_seat(self, seat: str) -> lockfile.Lock:
        """Take a seat for this process; RoomError, naming the holder, where it is taken."""
        self.require(seat)
        try:
            lock = self.take(self.seat_lock(seat), Deadline.after(_DYING_S))
        except DeadlineError:
            who = self.sitting(seat).name()
            raise RoomError(f"{self.path}: the seat is taken by {who}; end it, or take another seat") from None
        lock.clear()  # what a dead member left there must not pass for ours
        return lock

    def wait_for(
        self,
        seats: Iterable[str],
        deadline: Deadline,
        *,
        silence_s: float | None = None,
        grace_s: float = _DYING_S,
    ) -> None:
        """Return when these seats are ready or busy; DeadlineError at the deadline, RoomError as `check_line`.

        DeadlineError also where one shows no life for `silence_s` (None: for however long): a member that loads shows
        life, an empty seat does not. PeerGone where a member died and nobody took its seat again within `grace_s`: a
        script that restarts a member and then waits for it finds the dead one's traces at first.
        """
        grace = Deadline.after(grace_s)
        quiet = Deadline.after(silence_s)

        def answers(who: Sitting) -> bool:
            nonlocal quiet
            if who.state == "loading":
                quiet = Deadline.after(silence_s)
            if who.takes_messages:
                return True
            if who.state == "died" and grace.has_passed():
                raise PeerGone(f"{who.name()} died; seat it again with attach-model")
            self.require(who.seat)  # in a room that was removed nobody will ever be ready
            self.check_line(who.seat)
            return False

        def is_too_late() -> bool:
            return deadline.has_passed() or quiet.has_passed()

        for seat in seats:
            quiet = Deadline.after(silence_s)
            who, is_there = self._watch(seat, answers, is_too_late)
            if not is_there:
                is_what = {"free": "nobody took it", "died": "its member died"}.get(who.state, f"it is {who.state}")
                is_what += f" ({who.loading})" if who.loading else ""
                raise DeadlineError(f"{self.path}: seat {seat} was not ready before the deadline: {is_what}")

    def wait_for_process(
        self,
        seat: str,
        pid: int,
        deadline: Deadline,
        *,
        check: Callable[[], None],
        tell: Callable[[Sitting], None] = lambda who: None,
    ) -> None:
        """Return when this process sits there, ready or busy; DeadlineError at the deadline.

        `check` raises where the process will never come; `tell` hears of each look at it until it is there.
        """

        def is_there(who: Sitting) -> bool:
            if who.pid == pid and who.takes_messages:
                return True
            check()
            tell(who)
            return False

        if not self._watch(seat, is_there, deadline.has_passed)[1]:
            raise DeadlineError(f"no member ready in seat {seat} before the deadline")

    def wait_for_leaving(self, seat: str, pid: int | None, deadline: Deadline) -> None:
        """Return when this process sits there no longer, or at the deadline: until then its seat looks taken."""
        self._watch(seat, lambda who: who.state in ("free", "died") or who.pid not in (None, pid), deadline.has_passed)

    def _watch(
        self, seat: str, is_wanted: Callable[[Sitting], bool], is_too_late: Callable[[], bool]
    ) -> tuple[Sitting, bool]:
        """Look at a seat until who sits there is wanted, or it is too late: who did last, and whether they are.

        What `is_wanted` raises ends it. Polled, as the kernel has no event for a lock.
        """
        while not (is_there := is_wanted(who := self.sitting(seat))) and not is_too_late():
            time.sleep(fifo.RETRY_S)
        return who, is_there


class PipePair(Room):
    """Two FIFOs named directly, wherever they lie: one that we write to, one that we read from."""

    def __init__(self, to_pipe: str, from_pipe: str) -> None:
        super().__init__(os.path.dirname(os.path.abspath(to_pipe)))
        self._paths = os.path.abspath(to_pipe), os.path.abspath(from_pipe)
        names = parse_pipe(os.path.basename(to_pipe))
        self.sender, self.receiver = names or (HUB, "peer")
        self.keeps_asker_locks = names is not None  # else no clean-up would find it

    @classmethod
    def exported(cls, seat: str) -> PipePair | None:
        """The pipes to and from a seat that the environment names, as `setup-pipes --print-env` says them."""
        name = seat_variable(seat)
        to_pipe, from_pipe = os.environ.get(f"PIPE_TO_{name}"), os.environ.get(f"PIPE_FROM_{name}")
        return cls(to_pipe, from_pipe) if to_pipe and from_pipe else None

    def pipe(self, sender: str, receiver: str) -> str:
        return self._paths[sender != self.sender]

    def asker_lock(self, asker: str, seat: str) -> str:
        return super().asker_lock(asker, seat) if self.keeps_asker_locks else f"{self._paths[0]}.lock"

    def sitting(self, seat: str) -> Sitting:
        return super().sitting(seat) if self.keeps_asker_locks else Sitting(self._paths[0], "free")
