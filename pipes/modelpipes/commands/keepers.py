"""Our processes that keep engines: who sits in the rooms that we know, and the servers that run."""

from __future__ import annotations

import contextlib
import os

from modelpipes.errors import RoomError
from modelpipes.gateway import record
from modelpipes.machine.keepers import Keeper
from modelpipes.pipe.room import Room, resolve


def find_keepers(directory: str | None) -> dict[int, Keeper]:
    """The members of the rooms that we know and the servers that run, by pid."""
    keepers = {daemon.pid: Keeper(server=daemon.listen) for daemon in record.running()}
    for room in _rooms(directory):
        with contextlib.suppress(RoomError):  # cleaned up in this moment
            for who in map(room.sitting, room.seats()):
                if who.pid is not None and who.state not in ("free", "died"):
                    path = os.fsencode(room.path).decode("utf-8", "replace")
                    keepers[who.pid] = Keeper(seat=who.seat, room=path)
    return keepers


def _rooms(directory: str | None) -> list[Room]:
    """The one that is named, the default one, and those beside it."""
    named = (Room(resolve(directory)), Room(resolve(None)))
    rooms = {room.path: room for room in (*named, *Room.all()) if room.is_ours()}
    return list(rooms.values())
