"""A seat held for a program that opens the FIFOs itself."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
from collections.abc import Sequence

import msgspec

from modelpipes.child import Child
from modelpipes.errors import RoomError
from modelpipes.lockfile import is_same
from modelpipes.pipe import fifo
from modelpipes.pipe.room import Room, Sitting, exports
from modelpipes.values.deadline import Deadline

TICK_S = 0.5  # pipes that were made, replaced or removed are noticed within one
SIGNALLED = 128  # and the signal's number, as a shell counts


def variables(room: Room, seat: str) -> dict[str, str]:
    """What tells a program in a seat where it is: its seat, its room, and its pipes as setup-pipes names them."""
    pipes = {name: room.pipe(*pair) for name, pair in exports(seat, room.senders_to(seat)).items()}
    return {"MODELPIPES_SEAT": seat, "PIPE_DIR": room.path, **pipes}


def hold(room: Room, seat: str, argv: Sequence[str]) -> int:
    """Take a seat, run a program in it until it ends, and return its exit code; a signal's as a shell counts.

    The seat is `loading` until the program reads one of the pipes that lead to it, then `ready`. From then on these
    pipes do not end for it when a writer goes. Where the seat is removed the program is ended, and the code is 0.
    Raises RoomError where the seat is taken, ProgramError where the program cannot be started.
    """
    env = os.environ | variables(room, seat)
    with room.take_seat(seat) as lock:
        has_left = False  # else who waits for the seat is to learn that it died
        try:
            with Child(argv, name=argv[0], env=env, is_attached=True) as child, _WriteEnds(room, seat) as ends:
                code: int | None = None
                command = shlex.join(argv)
                who = Sitting(seat, "loading", os.getpid(), f"hold {command}", command=command)
                lock.write(msgspec.json.encode(who) + b"\n")
                while not lock.is_lost() and (code := child.exit_code()) is None and ends.open_new():
                    if who.state == "loading" and ends.are_read():
                        who = msgspec.structs.replace(who, state="ready")
                        lock.write(msgspec.json.encode(who) + b"\n")
                    _wait(child, TICK_S if who.state == "ready" else fifo.RETRY_S)
            has_left = not code
        except BaseException:
            has_left = True
            raise
        finally:
            if has_left:
                lock.clear()
    return 0 if code is None else SIGNALLED - code if code < 0 else code


def _wait(child: Child, seconds: float) -> None:
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    poll.poll(Deadline.after(seconds).poll_ms())


class _WriteEnds:
    """A write end of each pipe that leads to a seat: while we hold it the pipe does not end for its reader.

    One can be opened only when somebody reads there, and is never a reader itself: who writes learns at once when the
    program reads no more.
    """

    def __init__(self, room: Room, seat: str) -> None:
        self._room = room
        self._seat = seat
        self._fds: dict[str, int] = {}

    def __enter__(self) -> _WriteEnds:
        return self

    def __exit__(self, *_: object) -> None:
        for sender in list(self._fds):
            os.close(self._fds.pop(sender))

    def open_new(self) -> bool:
        """Open those that have a reader by now; False where no pipe leads to the seat any more."""
        try:
            paths = {sender: self._room.pipe(sender, self._seat) for sender in self._room.senders_to(self._seat)}
        except RoomError:
            return False  # the room is gone
        for sender, fd in list(self._fds.items()):
            if sender not in paths or not is_same(fd, paths[sender]):
                os.close(self._fds.pop(sender))
        for sender in paths.keys() - self._fds.keys():
            with contextlib.suppress(RoomError):  # removed amid our look
                if (fd := fifo.open_write(paths[sender])) >= 0:
                    self._fds[sender] = fd
        return bool(paths)

    def are_read(self) -> bool:
        """Has one of them had a reader?"""
        return bool(self._fds)
