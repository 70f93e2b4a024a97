"""One seat's open ends: poll, framing and a deadline.

Reading never stops while it waits to write, so two full pipes cannot deadlock. A ping is answered here.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

import msgspec

from modelpipes.errors import DeadlineError, MessageError, MisuseError, PeerGone, RoomError
from modelpipes.lockfile import is_same
from modelpipes.pipe import fifo
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES, READ_BYTES, LineSplitter, encode, encode_plain
from modelpipes.pipe.message import Malformed, Message, Ping, Plain, Pong
from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline

LINGER_S = 0.1  # a pipe closes this long after its last use, if no newer line came: see close_idle
DYING_S = 0.02  # a killed process's pipes may be closed before its locks: it is not yet known that it died
UNENDED_S = 1.0  # for who writes a line in pieces, until that is told
CHECK_S = 1.0  # between looks at whether the pipes are still the ones that their paths name
PONGS_BYTES = MAX_MESSAGE_BYTES  # that wait for a peer that pings and does not read; further pings go unanswered

# glibc gives each block above 128 KiB fresh pages, and takes them back, until a larger one was freed
# (mallopt(3), M_MMAP_THRESHOLD): once is enough, touches no page, and saves a quarter of a round trip of 64 KiB.
bytes(2 << 20)


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A line came from a seat."""

    sender: str
    item: Message | Plain | Malformed


class Begun(msgspec.Struct, frozen=True, gc=False):
    """A line of a seat came in part; told where `watch_lines` was called, and then `look_at_unended` is to be."""

    sender: str


class Unended(msgspec.Struct, frozen=True, gc=False):
    """A line of a seat lacks its end: the `item` that it is without, or None where its writer may still end it."""

    sender: str
    line: bytes  # of a long one the beginning
    item: Message | Plain | Malformed | None


class Lost(msgspec.Struct, frozen=True, gc=False):
    """The last reader of our pipe to a seat has gone; the pipe is closed, what it held for the reader dropped."""

    receiver: str
    unsent_bytes: int


class Readable(msgspec.Struct, frozen=True, gc=False):
    """A watched descriptor can be read."""

    fd: int


Event: TypeAlias = Arrival | Begun | Lost | Readable


class _Inlet:
    """The read end of a pipe that leads to us."""

    __slots__ = ("fd", "keep_fd", "path", "sender", "splitter")

    def __init__(self, sender: str, path: str) -> None:
        self.sender = sender
        self.path = path
        self.fd, self.keep_fd = fifo.open_read(path)
        self.splitter = LineSplitter()

    def read(self) -> bytes:
        """What has come; nothing where another took it."""
        try:
            return os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise RoomError(f"{self.path}: cannot be read: {e.strerror}") from None

    def has_writers(self) -> bool:
        """Has anybody but us the write end open?"""
        keep_fd, self.keep_fd = self.keep_fd, -1  # should it not open again
        found, self.keep_fd = fifo.look_for_writers(self.fd, keep_fd)
        return found

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        if self.keep_fd >= 0:
            os.close(self.keep_fd)
        self.fd = self.keep_fd = -1


class _Outlet:
    """The write end of a pipe that leads away from us, and what waits for room in it."""

    __slots__ = ("closes", "fd", "is_fresh", "is_polled", "is_wide", "path", "receiver", "unsent", "unsent_bytes")

    def __init__(self, receiver: str, path: str, fd: int) -> None:
        self.receiver = receiver
        self.path = path
        self.fd = fd
        self.is_fresh = True  # nothing typed was written: a dead predecessor's half line may stand in the pipe
        self.unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.closes: Deadline | None = None  # when it may close: a plain answer was its last
        self.is_polled = True
        self.is_wide = False

    def add(self, data: memoryview) -> None:
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    def widen(self) -> None:
        """Make the pipe hold more, once: a large message then takes one write and one read, not one in 16."""
        if not self.is_wide:
            self.is_wide = True
            fifo.widen(self.fd)

    def flush(self) -> None:
        """Write what fits now; BrokenPipeError where the reader has gone."""
        while self.unsent:
            data = self.unsent[0]
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                return
            self.unsent_bytes -= written
            if written == len(data):
                self.unsent.popleft()
            else:
                self.unsent[0] = data[written:]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


P = ParamSpec("P")
R = TypeVar("R")


def _alone(method: Callable[Concatenate[Endpoint, P], R]) -> Callable[Concatenate[Endpoint, P], R]:
    """A method that no thread may call while another one is in any of these: it would tear a message in two.

    `post`, `send` and `receive` do the same in lines of their own, in a fifth of the time. Python changes threads at
    calls and loops, of which there is none between the look at the mark and its setting.
    """

    @functools.wraps(method)
    def call(self: Endpoint, /, *args: P.args, **options: P.kwargs) -> R:
        if self._is_in_use:
            raise self._misuse()
        self._is_in_use = True
        try:
            return method(self, *args, **options)
        finally:
            self._is_in_use = False

    return call


class Endpoint:
    """One seat's open ends. Used by one thread at a time, else MisuseError; `with` closes them all.

        with Endpoint(room, "hub") as hub:
            hub.listen("bob")
            hub.connect("bob", Deadline.after(5))
            hub.send("bob", Say(new_id(), "hub", "bob", "Hello"), Deadline.after(5))
            event = hub.receive(Deadline.after(30))

    `modelpipes.pipe.message` has what is sent and comes. To take a seat before others, hold `room.take_seat`.
    """

    def __init__(self, room: Room, seat: str) -> None:
        """Nothing is opened yet, and not looked whether the room has this seat."""
        self.room = room
        self.seat = seat
        self._poll = select.poll()
        self._ready = self._poll.poll
        self._first = 0  # of several ends that are ready, the one served first
        self._inlets: dict[str, _Inlet] = {}
        self._outlets: dict[str, _Outlet] = {}
        self._by_fd: dict[int, _Inlet | _Outlet | None] = {}  # None: a watched descriptor
        self._watches_lines = False
        self._unended: dict[_Inlet, Deadline | None] = {}  # with half a line, and when that is told, unless it was
        self._events: deque[Event] = deque()
        self._is_in_use = False  # by a thread that is in a method of ours

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_alone
    def close(self) -> None:
        """Close every end; what had not yet gone is lost."""
        ends: list[_Inlet | _Outlet] = [*self._inlets.values(), *self._outlets.values()]
        for end in ends:
            self._close(end)

    @_alone
    def listen(self, sender: str) -> None:
        """Open the pipe that leads here from a seat, unless it is open; RoomError where that cannot be."""
        self._listen(sender)

    def _listen(self, sender: str) -> None:
        if sender not in self._inlets:
            inlet = _Inlet(sender, self.room.pipe(sender, self.seat))
            self._inlets[sender] = inlet
            self._by_fd[inlet.fd] = inlet
            self._poll.register(inlet.fd, select.POLLIN)

    def listens_to(self) -> Iterable[str]:
        """The seats whose pipes to us are open."""
        return self._inlets.keys()

    @_alone
    def watch(self, fd: int) -> None:
        """Report a foreign descriptor as Readable for as long as it is."""
        self._by_fd[fd] = None
        self._poll.register(fd, select.POLLIN)

    @_alone
    def unwatch(self, fd: int) -> None:
        """Report it no longer."""
        if fd in self._by_fd:
            del self._by_fd[fd]
            self._poll.unregister(fd)

    @_alone
    def try_connect(self, receiver: str) -> bool:
        """Open the pipe to a seat, unless it is open; False while nobody reads there."""
        return self._try_connect(receiver)

    def _try_connect(self, receiver: str) -> bool:
        if outlet := self._outlets.get(receiver):
            return outlet.is_polled or self._use_again(outlet)
        path = self.room.pipe(self.seat, receiver)
        fd = fifo.open_write(path)
        if fd < 0:
            return False
        outlet = _Outlet(receiver, path, fd)
        self._outlets[receiver] = outlet
        self._by_fd[fd] = outlet
        self._poll.register(fd, 0)  # POLLERR, which tells that the reader died, needs no asking
        return True

    @_alone
    def connect(self, receiver: str, deadline: Deadline, *, was_taken: bool = False) -> None:
        """Open the pipe to a seat, waiting for its reader.

        A seat that nobody ever took is waited for; one whose member died, or is known to have been there
        (`was_taken`) and has left, raises PeerGone at once.
        """
        while not self._try_connect(receiver):
            who = self.room.sitting(receiver)
            if who.state == "died" and not self._try_connect(receiver):
                raise PeerGone(f"{who.name()} died; seat it again with attach-model")
            if who.state == "free" and was_taken and not self._try_connect(receiver):
                raise PeerGone(f"{receiver} has left; seat it again with attach-model")
            if deadline.has_passed():
                why = "nobody took the seat" if who.state == "free" else f"it is {who.state}, but did not listen"
                raise DeadlineError(f"{who.seat}: {why} before the deadline")
            self._wait(deadline.earlier(Deadline.after(fifo.RETRY_S)))

    def _use_again(self, outlet: _Outlet) -> bool:
        """Take a pipe that lingers into use, if it has a reader again; False while it has none."""
        if not fifo.has_reader(outlet.fd):
            return False
        self._poll.register(outlet.fd, 0)  # from now on its end is to be noticed, before anything is sent as well
        outlet.is_polled = True
        outlet.closes = None
        return True

    def is_typed(self, receiver: str) -> bool:
        """Does somebody read there who was not just given a plain answer?"""
        outlet = self._outlets.get(receiver)
        return outlet is not None and outlet.is_polled and not outlet.closes

    def is_connected(self, receiver: str) -> bool:
        """Is our pipe to a seat open, and was its reader there when last looked?"""
        outlet = self._outlets.get(receiver)
        return outlet is not None and outlet.is_polled

    def is_read(self, receiver: str) -> bool:
        """Is our pipe to a seat open, and has it a reader now? That of who was answered last may just have gone."""
        outlet = self._outlets.get(receiver)
        return outlet is not None and fifo.has_reader(outlet.fd)

    def unsent_bytes(self, receiver: str) -> int:
        """What waits for room in the pipe to a seat."""
        outlet = self._outlets.get(receiver)
        return outlet.unsent_bytes if outlet else 0

    def post(self, receiver: str, message: Message) -> bool:
        """Send without waiting: what does not fit now goes while we receive. False where nobody reads.

        MessageError for what is over 16 MiB as JSON, or is no Unicode text; the same for `send`.
        """
        if self._is_in_use:
            raise self._misuse()
        self._is_in_use = True
        try:
            line = encode(message)
            outlet = self._outlets.get(receiver)
            return outlet is not None and self._post(outlet, line)
        finally:
            self._is_in_use = False

    def _misuse(self) -> MisuseError:
        return MisuseError(f"the endpoint of {self.seat} is in use by another thread: one at a time")

    @_alone
    def post_plain(self, receiver: str, text: str) -> bool:
        """Send one plain line without waiting; the pipe then closes in `close_idle`. False where nobody reads."""
        line = encode_plain(text)
        outlet = self._outlets.get(receiver)
        if not outlet:
            return False
        return self._post(outlet, line, closes=Deadline.after(LINGER_S))

    def has_unread(self, sender: str) -> bool:
        """Did a seat write something that is not read yet?"""
        inlet = self._inlets.get(sender)
        return inlet is not None and fifo.is_readable(inlet.fd)

    @_alone
    def close_idle(self, owed: Collection[str] = ()) -> bool:
        """Close the pipes that were used no more for a while; False where one will soon be due.

        Closing at once would end the file for the next plain asker too, who may open the pipe as soon as
        the one before it has gone, having written its line: as long as that may be, or an answer is `owed`
        to a seat, the pipe stays open.
        """
        idle = [outlet for outlet in self._outlets.values() if outlet.closes and not outlet.unsent]
        lingering = [outlet for outlet in idle if outlet.receiver not in owed]
        for outlet in list(lingering):
            is_due = outlet.closes and outlet.closes.has_passed()
            if is_due and not self.has_unread(outlet.receiver):
                self._close(outlet)
                lingering.remove(outlet)
        return not lingering

    def _post(self, outlet: _Outlet, line: bytes, closes: Deadline | None = None) -> bool:
        """Write a line, which is plain if the pipe then `closes`; False where nobody reads."""
        outlet.closes = closes
        if outlet.is_fresh and closes is None:
            outlet.is_fresh = False
            line = b"\n" + line
        if outlet.unsent:
            outlet.add(memoryview(line))
            return True
        try:
            written = os.write(outlet.fd, line)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:
            outlet.add(memoryview(line))  # lost with what it carried
            self._lose(outlet)
            return False
        if written < len(line):
            outlet.widen()
            outlet.add(memoryview(line)[written:])
            return self._flush(outlet)
        return True

    def _flush(self, outlet: _Outlet) -> bool:
        try:
            outlet.flush()
        except BrokenPipeError:
            self._lose(outlet)
            return False
        if outlet.unsent:
            self._poll.modify(outlet.fd, select.POLLOUT)
        elif outlet.closes:
            outlet.closes = Deadline.after(LINGER_S)
        return True

    def send(self, receiver: str, message: Message, deadline: Deadline) -> None:
        """Send and wait until the pipe took it all; PeerGone where the reader goes, DeadlineError."""
        if self._is_in_use:
            raise self._misuse()
        self._is_in_use = True
        try:
            line = encode(message)
            outlet = self._outlets.get(receiver)
            is_sent = outlet is not None and self._post(outlet, line)
            while is_sent and self._outlets[receiver].unsent:
                if not self._wait(deadline):
                    raise DeadlineError(f"{receiver} did not read before the deadline")
                is_sent = self.is_connected(receiver)
            if not is_sent:
                raise self.gone(receiver)
        finally:
            self._is_in_use = False

    def gone(self, receiver: str) -> PeerGone:
        """The error that says who no longer reads."""
        dying = Deadline.after(DYING_S)
        while (who := self.room.sitting(receiver)).state not in ("free", "died") and not dying.has_passed():
            time.sleep(fifo.RETRY_S)
        fate = {"free": "has left", "died": "died"}.get(who.state, "closed its pipe")
        return PeerGone(f"{who.name() if who.pid else who.seat} {fate}; seat it again with attach-model")

    def receive(self, deadline: Deadline) -> Event | None:
        """The next event; None where the deadline passes first. RoomError where a pipe cannot be read."""
        if self._is_in_use:
            raise self._misuse()
        self._is_in_use = True
        try:
            events = self._events
            while not events:
                timeout_ms = deadline.poll_ms()
                ready = self._ready(timeout_ms)
                end = self._by_fd[ready[0][0]] if len(ready) == 1 else None
                if type(end) is _Inlet:  # as it mostly is, with one message, which passes no queue
                    data = end.read()
                    item = end.splitter.whole(data)
                    if item is None:
                        self._split(end, data)
                    elif type(item) is not Ping:
                        return Arrival(end.sender, item)
                    else:
                        self._answer(item, end.sender)
                else:
                    self._serve(ready)
                if timeout_ms == 0 and not events:
                    return None
            return events.popleft()
        finally:
            self._is_in_use = False

    def watch_lines(self) -> None:
        """Report a line that came in part as Begun."""
        self._watches_lines = True

    @property
    def has_unended(self) -> bool:
        """Is there a line that came in part? `look_at_unended` tells what becomes of it: the kernel does not."""
        return bool(self._unended)

    @_alone
    def look_at_unended(self) -> list[Unended]:
        """The lines without an end whose last writer has gone; and, once, those that nobody ended for a while.

        What else would come is another writer's, and is not to be one line with it. While a typed asker holds the
        seat, its lines are that asker's.
        """
        found: list[Unended] = []
        if self._events:
            return found  # what came before comes first; and in a flood of lines each would pay for the look
        for inlet, told in list(self._unended.items()):
            line = inlet.splitter.unended
            if not line:
                del self._unended[inlet]
            elif self.room.is_asked(inlet.sender, self.seat):
                continue
            elif inlet.has_writers():
                if told and told.has_passed():
                    self._unended[inlet] = None
                    found.append(Unended(inlet.sender, line, None))
            elif not fifo.is_readable(inlet.fd):  # what the last writer wrote is all read
                del self._unended[inlet]
                found.append(Unended(inlet.sender, line, inlet.splitter.end()))
        return found

    @_alone
    def refresh(self) -> list[str]:
        """Notice pipes that were removed or replaced: reopen these, close those; the senders that are gone."""
        gone = []
        for inlet in [i for i in self._inlets.values() if not is_same(i.fd, i.path)]:
            self._close(inlet)
            try:
                self._listen(inlet.sender)
            except RoomError:
                gone.append(inlet.sender)
        for outlet in [o for o in self._outlets.values() if not is_same(o.fd, o.path)]:
            self._lose(outlet)
        return gone

    def _wait(self, deadline: Deadline) -> bool:
        """One poll; what it tells becomes events. False if the deadline had passed before."""
        timeout_ms = deadline.poll_ms()
        self._serve(self._ready(timeout_ms))
        return timeout_ms != 0

    def _serve(self, ready: list[tuple[int, int]]) -> None:
        """What the ends that are ready tell becomes events."""
        if len(ready) > 1:  # poll reports them in one order: let another be the first each time
            self._first = first = (self._first + 1) % len(ready)
            ready = ready[first:] + ready[:first]
        for fd, mask in ready:
            end = self._by_fd.get(fd, -1)
            if type(end) is _Inlet:
                self._split(end, end.read())
            elif type(end) is _Outlet:
                if mask & (select.POLLERR | select.POLLNVAL):
                    if not self.has_unread(end.receiver):  # what it said before it left comes first
                        self._reader_left(end)
                else:
                    self._poll.modify(fd, 0)
                    self._flush(end)
            elif end is None:
                self._events.append(Readable(fd))

    def _split(self, inlet: _Inlet, data: bytes) -> None:
        """Answer the pings among what came from a seat; the rest becomes events."""
        sender = inlet.sender
        for item in inlet.splitter.feed(data):
            if type(item) is Ping:
                self._answer(item, sender)
            else:
                self._events.append(Arrival(sender, item))
        if self._watches_lines and inlet.splitter.is_amid_line:
            if inlet not in self._unended:
                self._events.append(Begun(sender))
            self._unended[inlet] = Deadline.after(UNENDED_S)

    def _answer(self, ping: Ping, sender: str) -> None:
        try:
            outlet = self._outlets.get(sender)
            if outlet is None or not outlet.is_polled:
                if not self._try_connect(sender):
                    return
                outlet = self._outlets[sender]
            if outlet.unsent_bytes < PONGS_BYTES:
                self._post(outlet, encode(Pong(ping.id, self.seat, sender, ping.content)))
        except (MessageError, RoomError):
            pass  # too large to go back, or no way back: its sender's own doing, who hears nothing

    def _reader_left(self, outlet: _Outlet) -> None:
        """Close the pipe of a reader that has gone: at once, if it left something that the next one must not read."""
        if outlet.unsent or fifo.unread_bytes(outlet.fd):
            self._lose(outlet)
            return
        self._poll.unregister(outlet.fd)  # POLLERR stays set
        outlet.is_polled = False
        if not outlet.closes:
            self._events.append(Lost(outlet.receiver, 0))
            outlet.closes = Deadline.after(LINGER_S)

    def _lose(self, outlet: _Outlet) -> None:
        self._events.append(Lost(outlet.receiver, outlet.unsent_bytes))
        self._close(outlet)

    def _close(self, end: _Inlet | _Outlet) -> None:
        if end.fd >= 0:
            if isinstance(end, _Inlet) or end.is_polled:
                self._poll.unregister(end.fd)
            del self._by_fd[end.fd]
        if isinstance(end, _Inlet):
            self._inlets.pop(end.sender, None)
            self._unended.pop(end, None)
        else:
            self._outlets.pop(end.receiver, None)
        end.close()
