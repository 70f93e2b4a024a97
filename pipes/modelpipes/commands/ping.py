"""ping-pipes: measure round trips and throughput."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click

from modelpipes.commands.cli import options, values
from modelpipes.commands.views import ping as pingview
from modelpipes.errors import UsageError
from modelpipes.pipe.asker import Asker
from modelpipes.pipe.ping import MAX_SIZE_BYTES, Measurement
from modelpipes.pipe.pingpeer import PEER, seated_peer
from modelpipes.pipe.room import HUB, Room, seats_in_words
from modelpipes.terminal.drawing import SCREEN
from modelpipes.values.deadline import Deadline

SIZE_BYTES = 64
SWEEP_BYTES = tuple(64 * 4**power for power in range(8))  # to 1 MiB
COUNT = 1000
WARMUP_SHARE = 10  # of the count, one in so many
FLOOD_S = 3.0


@click.command(context_settings=options.settings)
@click.argument("seat", required=False, type=values.SEAT)
@options.directory
@click.option("--self", "is_self", is_flag=True, help="Ping a process of our own; needs no room, no seat.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Pings of each size.  [1000]")
@click.option("--size", type=options.BYTES, metavar="SIZE", help="Content of a message, as 64 or 4KiB.  [64]")
@click.option("--sweep", is_flag=True, help="Eight sizes, from 64 bytes to 1 MiB.")
@click.option("--interval", type=options.SECONDS_OR_0, help="From a ping to the next.  [0: when it is answered]")
@click.option("--warmup", type=click.IntRange(0), metavar="N", help="Pings that do not count.  [a tenth of --count]")
@click.option("--timeout", type=options.SECONDS, default="5", show_default=True, help="When a ping counts as lost.")
@click.option("--flood", is_flag=True, help="All that goes: one way with --self, else pings and pongs.")
@click.option("--seconds", type=options.SECONDS, help="End each size after this time.  [none; --flood: 3]")
@click.option("--pin", metavar="CPU[,CPU]", help="Run there; the peer of --self too, or on the second.")
@click.option("--histogram", is_flag=True, help="Draw how the round trips spread.")
@options.formats("table", "json")
@options.common
def command(seat: str | None, directory: str | None, **given: Any) -> None:
    """Measure round trips to a seat: how long, how they spread, how many a second.

    A ping is answered before any model work. Ctrl-C ends it with what came so far.

    \b
    Examples:
      ping-pipes --self
      ping-pipes bob --count 10000 --histogram
      ping-pipes --self --sweep --pin 0 --json
      ping-pipes --self --flood --size 4KiB --seconds 10
    """
    _check(seat, directory, given)
    measurement = _measurement(given)
    cpus = _read_cpus(given["pin"], given["is_self"])
    if cpus:
        os.sched_setaffinity(0, {cpus[0]})
    with contextlib.ExitStack() as stack:
        if given["is_self"]:
            room, to = stack.enter_context(seated_peer(cpus[-1] if cpus else None)), PEER
        else:
            room = Room.open(directory)
            to = _choose(room, seat)
        asker = stack.enter_context(Asker(room, HUB, to, silence_s=measurement.timeout_s, limit=Deadline.never()))
        endpoint = asker.connect()
        ends = pingview.End.of(HUB, os.getpid()), pingview.End.of(to, room.sitting(to).pid)
        measured: list[pingview.Measured] = []
        try:
            measurement.run(endpoint, to, measured)
        finally:
            pingview.write(measured, ends, given["format_"], as_list=given["sweep"], draws=given["histogram"])


def _check(seat: str | None, directory: str | None, given: dict[str, Any]) -> None:
    """Raise UsageError for what does not go together."""
    if given["is_self"] and (seat or directory):
        raise UsageError("--self has a peer and a room of its own; give neither a seat nor -d with it")
    if given["sweep"] and given["size"] is not None:
        raise UsageError("--sweep has sizes of its own; give no --size with it")
    if (given["size"] or 0) > MAX_SIZE_BYTES:
        raise UsageError(f"--size {given['size']}: at most {MAX_SIZE_BYTES} bytes can travel")
    if given["interval"] == float("inf"):
        raise UsageError("--interval none: no second ping would ever go")
    if given["histogram"] and given["format_"] != SCREEN:
        raise UsageError("--histogram is drawn for a person; give no --json or --format with it")
    for name in ("count", "interval", "warmup", "histogram"):
        if given["flood"] and given[name] not in (None, False):
            raise UsageError(f"--{name} is for pings one by one; --flood sends what goes for --seconds")


def _read_cpus(text: str | None, is_self: bool) -> list[int]:
    """The CPUs that --pin names: ours, then the peer's; UsageError where we may not run there."""
    if text is None:
        return []
    words = text.split(",")
    if len(words) > 1 + is_self:
        why = "one CPU, or two" if is_self else "one CPU: the seat is not ours to pin"
        raise UsageError(f"--pin {text}: give {why}")
    ours = os.sched_getaffinity(0)
    if not set(map(str, ours)).issuperset(words):
        raise UsageError(f"--pin {text}: not a CPU that we may run on; those are {pingview.cpu_ranges(ours)}")
    return [int(word) for word in words]


def _choose(room: Room, seat: str | None) -> str:
    """The seat to ping: the one named, else the only one there is."""
    if seat:
        room.require(seat)
        return seat
    seats = [each for each in room.seats() if each != HUB]
    if len(seats) != 1:
        raise UsageError(f"name the seat to ping, or --self; {room.path}: {seats_in_words(seats)}")
    return seats[0]


def _measurement(given: dict[str, Any]) -> Measurement:
    """What the options ask for."""
    seconds = given["seconds"] or (FLOOD_S if given["flood"] else float("inf"))
    count = given["count"] or COUNT
    return Measurement(
        sizes_bytes=SWEEP_BYTES if given["sweep"] else (SIZE_BYTES if given["size"] is None else given["size"],),
        timeout_s=options.bounded(given["timeout"]),
        seconds=options.bounded(seconds),
        count=count,
        warmup=count // WARMUP_SHARE if given["warmup"] is None else given["warmup"],
        interval_s=given["interval"] or 0.0,
        is_flood=given["flood"],
        is_one_way=given["is_self"],
    )
