"""What the gateway costs: the same requests to an engine directly and through it, in turn.

python -m tests.bench.gateway                 everything, about a minute
python -m tests.bench.gateway --quick         does it run? The figures prove nothing
python -m tests.bench.gateway --engine llama-server
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from modelpipes.engine.locate import EngineChoice
from modelpipes.serving.gateway import GatewaySettings, make_app
from modelpipes.serving.listening import Server
from tests.models import scripted_model
from tests.serving.pools import ENGINE_KEY, SmallPool

WORDS = " and so on it goes without an end in sight for as long as one cares to listen"
MANY_STREAMS = 200
PARALLEL = 4
KEPT_REQUESTS = 50  # on one connection: llama-server closes it after 100
START_S = 30.0
STREAM_S = 120.0  # for all of many streams together


@dataclass(frozen=True)
class Place:
    """Where a request goes."""

    host: str
    port: int
    key: str

    def request(self, **body: Any) -> bytes:
        text = json.dumps({"model": "endless", "messages": [{"role": "user", "content": "Go on."}]} | body).encode()
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        return head.encode() + text

    def connect(self) -> socket.socket:
        connected = socket.create_connection((self.host, self.port), START_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected


def ask_kept(connected: socket.socket, request: bytes) -> None:
    """One request on a connection that stays open; its answer has a length."""
    connected.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connected)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode() + body.decode())
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    while len(body) < length:
        body += _some(connected)


def ask_stream(place: Place, request: bytes) -> tuple[float, float, int]:
    """One stream on a new connection: seconds to the first token and to the end, and the tokens."""
    began = time.perf_counter()
    first = 0.0
    data = bytearray()
    with place.connect() as connected:
        connected.sendall(request)
        while not data.endswith(b"\n0\r\n\r\n"):
            data += _some(connected)
            if not first and b'"content":"' in data:
                first = time.perf_counter() - began
    if not data.startswith(b"HTTP/1.1 200") or b"[DONE]" not in data:
        raise RuntimeError(bytes(data[-500:]).decode())
    return first, time.perf_counter() - began, data.count(b'"content":"')


def _some(connected: socket.socket) -> bytes:
    data = connected.recv(1 << 18)
    if not data:
        raise RuntimeError("the connection was closed")
    return data


def hold_streams(place: Place, request: bytes, count: int) -> tuple[float, int]:
    """So many streams at once: seconds until all have ended, and how many were whole."""
    began = time.perf_counter()
    tails: dict[socket.socket, bytes] = {}
    whole = 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(count):
            connected = stack.enter_context(place.connect())
            connected.sendall(request)
            selector.register(connected, selectors.EVENT_READ)
            tails[connected] = b""
        while tails and time.perf_counter() - began < STREAM_S:
            for key, _ in selector.select(1.0):
                connected = key.fileobj  # type: ignore[assignment] # what we registered
                data = connected.recv(1 << 18)
                tails[connected] = (tails[connected] + data)[-64:]
                if not data or tails[connected].endswith(b"\n0\r\n\r\n"):
                    whole += b"[DONE]" in tails.pop(connected)
                    selector.unregister(connected)
    return time.perf_counter() - began, whole


def in_turn(rounds: int, direct: Callable[[], float], through: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Both, one after the other, so often."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(direct())
        ours.append(through())
    return theirs, ours


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def show_added(what: str, direct: list[float], through: list[float]) -> None:
    """A line: direct, through, and what is added, in milliseconds."""
    added = [(percentile(through, share) - percentile(direct, share)) * 1000 for share in (0.5, 0.99)]
    print(
        f"{what:<34} direct {median(direct) * 1000:6.2f} ms   through {median(through) * 1000:6.2f} ms   "
        f"added p50 {added[0]:+.2f}  p99 {added[1]:+.2f} ms"
    )


async def _serve(kind: EngineChoice, model: str) -> None:
    """The gateway and its engine, until stdin ends; where they are goes to stdout."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
    pool = SmallPool({"endless": model}, kind=kind, parallel=PARALLEL, ctx_size=4096)
    server = Server(make_app(pool, GatewaySettings()), "127.0.0.1:0")
    await server.start()
    try:
        (await pool.acquire("endless")).release()
        port = int(pool.engines["endless"].base_url.rpartition(":")[2])
        print(json.dumps({"gateway": server.listen.port, "engine": port}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await server.stop(1.0)
        pool.close()


@contextlib.contextmanager
def serving(kind: EngineChoice) -> Iterator[tuple[Place, Place, int]]:
    """An engine and a gateway before it, in a process of its own: both places, and the gateway's pid."""
    with tempfile.TemporaryDirectory() as folder:
        model = scripted_model(Path(folder) / "endless.gguf", WORDS, endless=True)
        command = [sys.executable, "-m", "tests.bench.gateway", "--serve", str(model), "--engine", kind]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                where = json.loads(process.stdout.readline())
                engine = Place("127.0.0.1", where["engine"], ENGINE_KEY)
                yield engine, Place("127.0.0.1", where["gateway"], ""), process.pid
            finally:
                process.stdin.close()


def memory_mib(pid: int, field: str) -> float:
    """A figure of /proc/PID/status in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def measure(kind: EngineChoice, *, is_quick: bool) -> None:
    with serving(kind) as (direct, through, pid):
        rounds = 20 if is_quick else 500
        one = {place: place.request(max_tokens=1) for place in (direct, through)}
        pairs = []
        for _ in range(rounds // KEPT_REQUESTS + 1):
            with direct.connect() as a, through.connect() as b:
                pairs.append(
                    in_turn(
                        KEPT_REQUESTS,
                        functools.partial(timed, functools.partial(ask_kept, a, one[direct])),
                        functools.partial(timed, functools.partial(ask_kept, b, one[through])),
                    )
                )
        show_added("one token, kept connection", *(list(itertools.chain(*side)) for side in zip(*pairs, strict=True)))

        def ask_new(place: Place) -> None:
            with place.connect() as connected:
                ask_kept(connected, one[place])

        timings = in_turn(rounds, lambda: timed(lambda: ask_new(direct)), lambda: timed(lambda: ask_new(through)))
        show_added("one token, new connection", *timings)

        few = {place: place.request(max_tokens=8, stream=True) for place in (direct, through)}
        timings = in_turn(
            rounds, lambda: ask_stream(direct, few[direct])[0], lambda: ask_stream(through, few[through])[0]
        )
        show_added("stream, first token", *timings)

        long = {place: place.request(max_tokens=500, stream=True) for place in (direct, through)}

        def rate(place: Place) -> float:
            first, whole, tokens = ask_stream(place, long[place])
            return tokens / (whole - first)

        slow, fast = in_turn(2 if is_quick else 15, lambda: rate(direct), lambda: rate(through))
        share = median(ours / theirs for theirs, ours in zip(slow, fast, strict=True))
        print(f"{'stream, rate':<34} direct {median(slow):,.0f}/s   through {median(fast):,.0f}/s   {share:.3f} of it")

        began, count, failed = time.perf_counter(), 50 if is_quick else 2000, 0
        for _ in range(count):
            try:
                ask_stream(through, few[through])
            except (RuntimeError, OSError):
                failed += 1
        print(f"{f'{count} streams back to back':<34} {failed} failed, in {time.perf_counter() - began:.1f} s")

        many = 20 if is_quick else MANY_STREAMS
        took, whole = hold_streams(through, through.request(max_tokens=50, stream=True), many)
        print(f"{f'{many} streams at once':<34} {whole} whole, in {took:.1f} s")
        print(f"{'memory of the gateway':<34} {memory_mib(pid, 'VmRSS'):.0f} MiB, most {memory_mib(pid, 'VmHWM'):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--engine", choices=("embedded", "llama-server"), default="embedded")
    parser.add_argument("--serve", metavar="MODEL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(given.engine, given.serve))
    else:
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, engine: {given.engine}")
        measure(given.engine, is_quick=given.quick)


if __name__ == "__main__":
    main()
