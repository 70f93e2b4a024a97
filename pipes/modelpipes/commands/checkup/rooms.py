"""The places for rooms, and the rooms that are there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

import msgspec

from modelpipes.errors import RoomError
from modelpipes.machine.checks import Check
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.room import HUB, Room, resolve, star
from modelpipes.values.units import format_count

SEATS = ("alice", "bob")
LINGER = ("/var/lib/systemd/linger", "/var/lib/elogind/linger")  # a file there for each user who lingers
LOGIND = "/run/systemd/seats"  # there while logind runs (sd-login's own test)


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What was read about $XDG_RUNTIME_DIR, which is `base`; `mode` and `owner` are None where nothing is there."""

    base: str
    mode: int | None
    owner: int | None
    user: int
    login_dir: str  # what logind made for this user; "" where it is not there
    lingers: bool | None  # whether it stays after the last logout; None where no logind runs


def check_rooms() -> list[Check]:
    """Whether rooms can be made here, where they would lie, and what became of those that were made."""
    return [
        judge_runtime(_read_runtime()),
        _check_place(),
        _check_default_room(),
        judge_stale_rooms([room.path for room in Room.orphans()]),
    ]


def judge_runtime(seen: Runtime) -> Check:
    """Whether the default room is where other shells of this user find it, and stays there."""
    name, base = "runtime", seen.base
    instead = f"export XDG_RUNTIME_DIR={seen.login_dir}" if seen.login_dir else "unset XDG_RUNTIME_DIR"
    if not base:
        if not seen.login_dir:
            return Check(name, "ok", "$XDG_RUNTIME_DIR is not set: rooms lie in the temporary folder")
        return Check(name, "warning", "$XDG_RUNTIME_DIR is not set: shells that logged in look elsewhere", instead)
    if not base.startswith("/"):
        return Check(name, "warning", f"$XDG_RUNTIME_DIR is {base!r}, no absolute path, and not used", instead)
    if seen.mode is None:
        return Check(name, "warning", f"{base} is not there, and not used: its user has logged out", instead)
    if not stat.S_ISDIR(seen.mode):
        return Check(name, "warning", f"{base} is no directory, and not used", instead)
    if seen.owner != seen.user:
        return Check(name, "warning", f"{base} belongs to user {seen.owner}, not to us, and is not used", instead)
    mode = f"{base}, mode {stat.S_IMODE(seen.mode):04o}"
    if seen.mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Check(name, "warning", f"{mode}: others can write there, and it is not used", f"chmod 0700 {base}")
    is_of_login = seen.login_dir != "" and f"{base}/".startswith(f"{seen.login_dir}/")
    if is_of_login and seen.lingers is False:
        advice = "before you leave a daemon or a room behind: loginctl enable-linger"
        return Check(name, "warning", f"{mode}: goes at your last logout, with all rooms", advice)
    return Check(name, "ok", f"{mode}, stays after logout" if is_of_login and seen.lingers else mode)


def judge_rooms(folder: str, mode: int, error: str) -> Check:
    """`error` is why no room could be made in `folder`; "" where one was, and removed again."""
    if error:
        advice = "let XDG_RUNTIME_DIR, or TMPDIR, name a folder of yours on a local disk"
        return Check("rooms", "missing", error, advice)
    return Check("rooms", "ok", f"{folder}, mode {stat.S_IMODE(mode):04o}: pipes can be made")


def judge_default_room(path: str, seats: Sequence[tuple[str, str]] | None, error: str) -> Check:
    """`seats` are (seat, state) of the room that commands use unless told; None where it is not made, or `error`."""
    if error:
        return Check("room", "warning", error, "name another room in $PIPE_DIR, or with -d")
    if seats is None:
        return Check("room", "ok", f"{path}: not made yet; setup-pipes makes it")
    died = [seat for seat, state in seats if state == "died"]
    taken = [seat for seat, state in seats if state not in ("died", "free")]
    found = f"{path}: {format_count(len(seats), 'seat')}, {len(taken)} taken"
    if not died:
        return Check("room", "ok", found)
    advice = f"attach-model {died[0]} …, or remove the room: cleanup-pipes -d {path}"
    return Check("room", "warning", f"{found}; killed were {', '.join(died)}", advice)


def judge_stale_rooms(paths: Sequence[str]) -> Check:
    """`paths` are rooms whose leaders were killed."""
    if not paths:
        return Check("stale-rooms", "ok", "none")
    left = f"{format_count(len(paths), 'room')} of killed leaders: {', '.join(paths)}"
    return Check("stale-rooms", "warning", left, f"the next chat-models removes them; or cleanup-pipes -d {paths[0]}")


def _read_runtime() -> Runtime:
    base, user = os.environ.get("XDG_RUNTIME_DIR", ""), os.geteuid()
    login = f"/run/user/{user}"
    mode, owner = _mode_and_owner(base)
    is_login_ours = _mode_and_owner(login)[1] == user
    lingers = None
    if os.path.isdir(LOGIND):
        import pwd

        with contextlib.suppress(KeyError):  # a user whom no password file knows does not log in
            name = pwd.getpwuid(user).pw_name
            lingers = any(os.path.exists(os.path.join(folder, name)) for folder in LINGER)
    return Runtime(
        base=base, mode=mode, owner=owner, user=user, login_dir=login if is_login_ours else "", lingers=lingers
    )


def _mode_and_owner(path: str) -> tuple[int | None, int | None]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return found.st_mode, found.st_uid


def _check_place() -> Check:
    """Make a room where chat-models would, and remove it: file systems without FIFOs, full ones, others' folders."""
    try:
        room = Room.make_fresh()
    except RoomError as error:
        return judge_rooms("", 0, str(error))
    folder, error_text, mode = os.path.dirname(room.path), "", 0
    try:
        mode = os.stat(folder).st_mode
        room.make_pipes(star(HUB, SEATS))
    except (RoomError, OSError) as error:
        error_text = str(error)
    finally:
        with contextlib.suppress(RoomError, OSError):  # other rooms lie in the folder
            clean_up(room)
            os.rmdir(folder)
    return judge_rooms(folder, mode, error_text)


def _check_default_room() -> Check:
    path = resolve(None)
    if not os.path.lexists(path):
        return judge_default_room(path, None, "")
    try:
        room = Room.open()
        seats = [(seat, room.sitting(seat).state) for seat in room.seats()]
    except RoomError as error:
        return judge_default_room(path, None, str(error))
    return judge_default_room(path, seats, "")
