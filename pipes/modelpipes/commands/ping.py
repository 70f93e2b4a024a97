"""ping-pipes: measure round trips and throughput."""

from __future__ import annotations

import contextlib
import os

import click

from modelpipes import output
from modelpipes.asker import Asker
from modelpipes.commands import options, pingview
from modelpipes.deadline import Deadline
from modelpipes.errors import PeerError, UsageError
from modelpipes.ping import (
    MAX_SIZE_BYTES,
    Flood,
    RoundTrips,
    flood_one_way,
    flood_with_pings,
    measure_round_trips,
)
from modelpipes.pingpeer import PEER, seated_peer
from modelpipes.room import HUB, Room

SIZE_BYTES = 64
SWEEP_BYTES = tuple(64 * 4**power for power in range(8))  # 64 B to 1 MiB
COUNT = 1000
FLOOD_S = 3.0


@click.command(context_settings=options.settings)
@click.argument("seat", required=False)
@options.directory
@click.option("--self", "is_self", is_flag=True, help="Ping a process of our own; needs no room and no seat.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Pings of a size.  [1000]")
@click.option("--size", type=options.BYTES, metavar="SIZE", help="Of the content of each, as 64 or 4KiB.  [64]")
@click.option("--sweep", is_flag=True, help="Sizes from 64 bytes to 1 MiB, one after the other.")
@click.option("--interval", type=options.SECONDS_OR_0, help="From a ping to the next.  [0: at once when answered]")
@click.option("--warmup", type=click.IntRange(0), metavar="N", help="Pings before those counted.  [a tenth of them]")
@click.option(
    "--timeout", type=options.SECONDS, default="5", show_default=True, help="A ping unanswered so long is lost."
)
@click.option("--flood", is_flag=True, help="As many messages as go, one way with --self, else pings and pongs.")
@click.option("--seconds", type=options.SECONDS, help="End each size after so long.  [none; 3 with --flood]")
@click.option("--pin", metavar="CPU[,CPU]", help="Run on this CPU, and the peer of --self, or on the second.")
@click.option("--histogram", is_flag=True, help="Draw how the round trips spread.")
@options.as_json
@options.version
def command(
    seat: str | None, directory: str | None, is_self: bool, count: int | None, size: int | None, sweep: bool,
    interval: float | None, warmup: int | None, timeout: float, flood: bool, seconds: float | None, pin: str | None,
    histogram: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure how long a message takes to a seat and back: the spread, the rate, the losses.

    Pings are answered before any model work. Ctrl-C ends it, with what came so far.

    \b
    Examples:
      ping-pipes --self
      ping-pipes bob --count 10000 --histogram
      ping-pipes --self --sweep --pin 0 --json
      ping-pipes --self --flood --size 4KiB --seconds 10
    """
    if is_self and (seat or directory):
        raise UsageError("--self brings a peer and a room of its own; name no seat and no -d with it")
    if sweep and size is not None:
        raise UsageError("--sweep has sizes of its own; give no --size with it")
    if size is not None and size > MAX_SIZE_BYTES:
        raise UsageError(f"--size {size}: at most {MAX_SIZE_BYTES} bytes can travel")
    if flood and (count or warmup is not None or interval is not None or histogram):
        raise UsageError("--flood sends what goes for --seconds: no --count, --warmup, --interval and --histogram")
    if as_json and histogram:
        raise UsageError("--histogram draws, --json does not; give one of them")
    if interval == float("inf"):
        raise UsageError("--interval none: there would be no second ping")
    sizes = SWEEP_BYTES if sweep else (SIZE_BYTES if size is None else size,)
    cpus = _read_cpus(pin, is_self)
    if cpus:
        os.sched_setaffinity(0, {cpus[0]})
    count = count or COUNT
    warmup = count // 10 if warmup is None else warmup
    timeout_s = options.bounded(timeout)
    seconds = options.bounded(seconds or (FLOOD_S if flood else float("inf")))
    with contextlib.ExitStack() as stack:
        if is_self:
            room, to = stack.enter_context(seated_peer(cpus[-1] if cpus else None)), PEER
        else:
            room = Room.open(directory)
            to = _the_seat(room, seat)
        asker = stack.enter_context(Asker(room, HUB, to, silence_s=timeout_s, limit=Deadline.never()))
        endpoint = asker.connect()
        report = ...
