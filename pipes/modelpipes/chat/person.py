"""The person at this terminal as a member, seated in a thread of ours."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from modelpipes.chat.guest import Guest
from modelpipes.chat.member import Member
from modelpipes.chat.voices.terminal import GuestVoice, TerminalVoice
from modelpipes.errors import PipesError
from modelpipes.pipe.room import Room
from modelpipes.terminal import lineeditor
from modelpipes.values.deadline import Deadline

SIT_DOWN_S = 5.0  # for the seat to be taken; a dying holder is waited for a part of it
STAND_UP_S = 2.0  # for the thread to end; it stands in the way of nothing


@contextlib.contextmanager
def seated_person(room: Room, seat: str) -> Iterator[Guest | None]:
    """Within, the person sits there: in a thread, for who types must stay in the foreground group of the terminal.

    At a terminal they have a line editor, and are the guest that is given; elsewhere lines are read from stdin.
    Raises RoomError where the seat is taken, DeadlineError where it cannot be had in time.
    """
    guest = Guest(seat) if lineeditor.is_possible() else None

    def leave() -> None:
        member.stop(0)

    member = Member(room, seat, GuestVoice(guest, leave=leave) if guest else TerminalVoice(seat, leave=leave))
    failed: list[PipesError] = []

    def sit() -> None:
        try:
            member.run()
        except PipesError as e:
            failed.append(e)

    def check() -> None:
        if failed:
            raise failed[0]

    thread = threading.Thread(target=sit, daemon=True)
    with guest or contextlib.nullcontext():
        thread.start()
        try:
            room.wait_for_process(seat, os.getpid(), Deadline.after(SIT_DOWN_S), check=check)
            check()
            yield guest
        finally:
            member.stop(0)
            thread.join(STAND_UP_S)
