"""Remove what a room may contain, if it is ours and nobody uses it, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable

from modelpipes.errors import RoomError
from modelpipes.lockfile import RETRY_S
from modelpipes.pipe.room import MADE_BY_US, Room, is_per_user, is_seat, parse_pipe
from modelpipes.values.deadline import Deadline

NAMELESS_S = 5.0  # a lock whose holder says nothing is another clean-up's, or a member's that just came
_LOCK_SAYS = re.compile(rb"\s*|\d+\s*|\{\"seat\":.*", re.DOTALL)  # nothing, an asker's pid, or a Sitting


def clean_up(
    room: Room,
    pipes: Iterable[tuple[str, str]] | None = None,
    *,
    force: bool = False,
    tell: Callable[[str], None] = lambda path: None,
) -> list[str]:
    """Remove these pipes, or all that a room may contain; what was kept, each with its reason.

    A seat in use is kept, unless forced. Lock files go with the last pipe of their seats, and the
    room itself when it is empty, if we made it. `tell` hears of each pipe, and of the room, when it
    has gone. RoomError where what lies there is no room.
    """
    try:
        chosen = set(room.pipes() if pipes is None else pipes)
        deadline = Deadline.after(0 if force else NAMELESS_S)
        kept = _remove_pipes(room, chosen, force, deadline, tell)
        seats = None if pipes is None else {seat for pair in chosen for seat in pair}
        kept += _remove_locks(room, seats, force, deadline)
    except RoomError:
        if os.path.lexists(room.path):
            raise
        return []  # another clean-up was faster
    with contextlib.suppress(OSError):  # not empty, or gone: either way nothing of ours is left to remove
        if os.lstat(room.path).st_mode & MADE_BY_US & stat.S_ISVTX:
            os.rmdir(room.path)
            tell(room.path)
            if is_per_user(os.path.dirname(room.path)):
                os.rmdir(os.path.dirname(room.path))
    return list(dict.fromkeys(kept))


def pipes_of_prefix(room: Room, prefix: str) -> list[tuple[str, str]]:
    """The pipes from and to the seats PREFIX1, PREFIX2 …"""
    is_numbered = re.compile(rf"{re.escape(prefix)}\d+").fullmatch
    return [pair for pair in room.pipes() if any(map(is_numbered, pair))]


def _remove_pipes(
    room: Room, chosen: set[tuple[str, str]], force: bool, deadline: Deadline, tell: Callable[[str], None]
) -> list[str]:
    kept = []
    asked = set(_lock_names(room))
    for a, b in sorted({(min(pair), max(pair)) for pair in chosen}):
        with contextlib.ExitStack() as locks:
            names = [a, b, *sorted({f"{a}_to_{b}", f"{b}_to_{a}"} & asked)]
            if not force and (use := _lock_out(room, names, locks, deadline)):
                kept.append(use)
                continue
            for pair in sorted(chosen & {(a, b), (b, a)}):
                kept += _unlink(room.pipe(*pair), stat.S_ISFIFO, tell)
    return kept


def _remove_locks(room: Room, seats: set[str] | None, force: bool, deadline: Deadline) -> list[str]:
    kept = []
    left = {seat for pair in room.pipes() for seat in pair}
    for name in _lock_names(room):
        its_seats = set(name.split("_to_"))
        if its_seats & left or (seats is not None and not its_seats <= seats):
            continue
        with contextlib.ExitStack() as locks:
            if not force and (use := _lock_out(room, [name], locks, deadline)):
                kept.append(use)
            else:
                kept += _unlink(os.path.join(room.path, f"{name}.lock"), stat.S_ISREG)
    return kept


def _lock_names(room: Room) -> list[str]:
    """The lock files of ours, without `.lock`; also those of seats whose pipes are gone."""
    return sorted(name.removesuffix(".lock") for name in room.names() if _is_lock(room, name))


def _is_lock(room: Room, file: str) -> bool:
    stem = file.removesuffix(".lock")
    if stem == file or not (is_seat(stem) or parse_pipe(stem)):
        return False
    try:
        return bool(_LOCK_SAYS.fullmatch(room.look(os.path.join(room.path, file))[1]))
    except RoomError:
        return False  # another program's, that ends in .lock as well


def _lock_out(room: Room, names: Iterable[str], locks: contextlib.ExitStack, deadline: Deadline) -> str | None:
    """Take these locks, so that nobody sits down or asks while the pipes go; else who is in the way."""
    for name in names:
        while not (lock := room.try_take(os.path.join(room.path, f"{name}.lock"))):
            user = _user(room, name)
            if user or deadline.has_passed():
                return f"{user or name.split('_to_')[-1]} is in use and kept; end it, or use -f"
            time.sleep(RETRY_S)
        locks.enter_context(lock)
        lock.clear()  # else what a dead holder left there would pass for us
    return None


def _user(room: Room, lock_name: str) -> str | None:
    """Who holds a lock now, as far as its file says."""
    *asker, seat = lock_name.split("_to_")
    if not asker:
        who = room.sitting(seat)
        return who.name() if who.pid and who.state != "died" else None
    is_held, pid = room.look(room.asker_lock(asker[0], seat))
    return f"{seat}, asked by {asker[0]} (pid {pid.decode().strip()})," if is_held and pid.strip() else None


def _unlink(path: str, is_kind: Callable[[int], bool], tell: Callable[[str], None] = lambda path: None) -> list[str]:
    try:
        found = os.lstat(path)
        if not is_kind(found.st_mode) or found.st_uid != os.geteuid():
            return [f"{path}: not made by setup-pipes, kept"]
        os.unlink(path)
        tell(path)
    except FileNotFoundError:
        pass
    except OSError as e:
        return [f"{path}: cannot be removed: {(e.strerror or str(e)).lower()}"]
    return []
