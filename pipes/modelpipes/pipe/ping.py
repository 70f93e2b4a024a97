"""Round trips and floods over an endpoint: how long a message takes, and how many go in a second.

A ping is answered by the peer's endpoint itself, before any model work. What is measured is written into a
`RoundTrips` or a `Flood` of the caller's, who has what came so far where a measurement is broken off.
"""

from __future__ import annotations

import time
from array import array

import msgspec

from modelpipes.errors import DeadlineError, PeerError
from modelpipes.pipe.endpoint import Arrival, Endpoint, Lost
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.pipe.message import Delta, Ping, Pong, Reply, Say, load, new_id
from modelpipes.values.deadline import Deadline

MAX_SIZE_BYTES = MAX_MESSAGE_BYTES - 1024  # the envelope needs the rest: two seats, an id
WINDOW = 256  # messages of a flood for which the peer is waited for at once: enough that neither end stands idle
WINDOW_BYTES = 1 << 20  # their content in all; a peer that does not read leaves that much with us, and no more

_clock_ns = time.perf_counter_ns


class RoundTrips:
    """What pings of one size came to."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes  # of the content, without the envelope
        self.times_ns = array("Q")  # of the pings that were answered in time
        self.lost = 0  # the others
        self.seconds = 0.0  # all of them together

    @property
    def count(self) -> int:
        """Pings sent, lost ones as well."""
        return len(self.times_ns) + self.lost


class Flow(msgspec.Struct):
    """What one end of a flood saw of it."""

    messages: int = 0
    content_bytes: int = 0
    seconds: float = 0.0


class Flood:
    """What a flood of messages of one size came to, at the end that sent them and at the one that received."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.sent = Flow()
        self.received: Flow | None = None
        self.lost: int | None = None  # None: not known, the flood was broken off with messages on their way

    @property
    def count(self) -> int:
        return self.sent.messages


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure of a peer: for each size pings one by one, or a flood.

    A flood goes one way to a peer of ours, which counts it, else there and back. `seconds` bounds each size.
    """

    sizes_bytes: tuple[int, ...]
    timeout_s: float | None  # when a ping counts as lost
    seconds: float | None
    count: int = 0
    warmup: int = 0
    interval_s: float = 0.0
    is_flood: bool = False
    is_one_way: bool = False

    def run(self, endpoint: Endpoint, to: str, measured: list[RoundTrips | Flood]) -> None:
        """Measure each size; one stands in the list from its beginning, so it does whatever ends it.

        Raises PeerGone, DeadlineError where nothing comes back, PeerError where messages of a flood are lost.
        """
        for size_bytes in self.sizes_bytes:
            until = Deadline.after(self.seconds)
            if not self.is_flood:
                measured.append(trips := RoundTrips(size_bytes))
                measure_round_trips(
                    endpoint, to, trips, count=self.count, warmup=self.warmup, interval_s=self.interval_s,
                    timeout_s=self.timeout_s, until=until,
                )  # fmt: skip
                continue
            measured.append(flood := Flood(size_bytes))
            run_flood = flood_one_way if self.is_one_way else flood_with_pings
            run_flood(endpoint, to, flood, until=until, timeout_s=self.timeout_s)
            if flood.lost:
                raise PeerError(f"{flood.lost} of {flood.sent.messages} messages were lost on the way to {to} or back")


def measure_round_trips(
    endpoint: Endpoint,
    to: str,
    trips: RoundTrips,
    *,
    count: int,
    timeout_s: float | None,
    warmup: int = 0,
    interval_s: float = 0.0,
    until: Deadline,
) -> None:
    """Send pings to a seat, one after the other, and take the time of each until its pong is here.

    One not answered within `timeout_s` is lost. The first `warmup` do not count, and none of them may be lost.
    The next one goes when the last is answered, but not before `interval_s` after it; none goes after `until`.
    Raises PeerGone where the peer goes, DeadlineError where nothing comes back.
    """
    ping = Ping(new_id(), endpoint.seat, to, load(trips.size_bytes))
    for _ in range(warmup):
        if _round_trip_ns(endpoint, ping, Deadline.after(timeout_s)) is None:
            raise _no_answer(endpoint, to)
    began_ns = _clock_ns()
    try:
        for number in range(count):
            if number and until.has_passed():
                break
            due = Deadline.after(interval_s)
            took_ns = _round_trip_ns(endpoint, ping, Deadline.after(timeout_s))
            if took_ns is None:
                trips.lost += 1
                ping = msgspec.structs.replace(ping, id=new_id())  # its pong, should it still come, answers no other
            else:
                trips.times_ns.append(took_ns)
            if interval_s and number + 1 < count:
                _answer(endpoint, to, "", due.earlier(until))
    finally:
        trips.seconds = (_clock_ns() - began_ns) / 1e9
    if not trips.times_ns:
        raise _no_answer(endpoint, to)


def _round_trip_ns(endpoint: Endpoint, ping: Ping, deadline: Deadline) -> int | None:
    """From the ping to its pong, both typed; None where that does not come before the deadline."""
    began_ns = _clock_ns()
    # A peer that has not read the last ping gets no other: what it does not read stays with us.
    if not endpoint.unsent_bytes(ping.to) and not endpoint.post(ping.to, ping):
        raise endpoint.gone(ping.to)
    pong = _answer(endpoint, ping.to, ping.id, deadline)
    return _clock_ns() - began_ns if pong else None


def _answer(endpoint: Endpoint, to: str, message_id: str, deadline: Deadline) -> Pong | Reply | None:
    """The answer to a message; None where it does not come before the deadline. Whatever else comes is dropped."""
    while event := endpoint.receive(deadline):
        if type(event) is Arrival:
            item = event.item
            if (type(item) is Pong or type(item) is Reply) and item.reply_to == message_id:
                return item
            if deadline.has_passed():  # a peer may say other things faster than we can drop them
                return None
        elif type(event) is Lost:
            raise endpoint.gone(to)
    return None


def _no_answer(endpoint: Endpoint, to: str) -> DeadlineError:
    return DeadlineError(f"{endpoint.room.sitting(to).name()} did not answer a ping in time (--timeout)")


def flood_with_pings(endpoint: Endpoint, to: str, flood: Flood, *, until: Deadline, timeout_s: float | None) -> None:
    """Keep pings and pongs on their way, as many as the window allows, `until` a moment.

    The rest is lost where half a window does not come back within `timeout_s`. Raises PeerGone, DeadlineError
    where nothing comes back at all.
    """
    ping = Ping(new_id(), endpoint.seat, to, load(flood.size_bytes))
    window = _window(flood.size_bytes)
    sent, received = flood.sent, Flow()
    flood.received = received
    began_ns = _clock_ns()
    try:
        while True:
            is_over = until.has_passed()
            while not is_over and sent.messages - received.messages < window:
                if not endpoint.post(to, ping):
                    raise endpoint.gone(to)
                sent.messages += 1
            may_stay_out = 0 if is_over else window // 2
            patience = Deadline.after(timeout_s)
            while sent.messages - received.messages > may_stay_out and _answer(endpoint, to, ping.id, patience):
                received.messages += 1
            if is_over or sent.messages - received.messages > may_stay_out:
                break
    finally:
        for flow in (sent, received):
            flow.content_bytes = flow.messages * flood.size_bytes
            flow.seconds = (_clock_ns() - began_ns) / 1e9
    flood.lost = sent.messages - received.messages
    if not received.messages:
        raise _no_answer(endpoint, to)


def flood_one_way(endpoint: Endpoint, to: str, flood: Flood, *, until: Deadline, timeout_s: float | None) -> None:
    """Send one message after the other, as fast as the peer reads them, `until` a moment.

    They are deltas, and the peer is that of `pingpeer`: it counts them, and is asked at the end for its `Flow`.
    Raises PeerGone, DeadlineError where it does not read, or tell, within `timeout_s`.
    """
    delta = Delta(new_id(), endpoint.seat, to, "x" * flood.size_bytes)
    window = _window(flood.size_bytes)
    sent = flood.sent
    began_ns = _clock_ns()
    try:
        while not until.has_passed():
            patience = Deadline.after(timeout_s)
            for _ in range(window):
                endpoint.send(to, delta, patience)
                sent.messages += 1
    finally:
        sent.content_bytes = sent.messages * flood.size_bytes
        sent.seconds = (_clock_ns() - began_ns) / 1e9
    question, patience = Say(new_id(), endpoint.seat, to), Deadline.after(timeout_s)
    endpoint.send(to, question, patience)
    reply = _answer(endpoint, to, question.id, patience)
    if not isinstance(reply, Reply):
        raise DeadlineError(f"{endpoint.room.sitting(to).name()} did not tell in time what it received (--timeout)")
    flood.received = msgspec.json.decode(reply.content, type=Flow)
    flood.lost = sent.messages - flood.received.messages


def _window(size_bytes: int) -> int:
    return max(1, min(WINDOW, WINDOW_BYTES // max(1, size_bytes)))
