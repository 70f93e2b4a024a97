"""What the pipes cost: start-up, first token and streaming rate, side by side with direct HTTP.

    python -m tests.bench.overhead [--runs 40] [--json]

Prints medians and, first, ratios and differences against the baseline of the same run: these are what
holds on another machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelpipes.child import Child
from modelpipes.engine.lifecycle import Engine
from modelpipes.pipe.asker import Asker
from modelpipes.pipe.message import Delta, Reply, Say, new_id
from modelpipes.pipe.room import Room, star
from modelpipes.values.deadline import Deadline
from tests.models import scripted_model

STREAM_TOKENS = 1000
COMMANDS = {
    "setup-pipes": ["bob"],
    "list-seats": [],
    "ask-model": ["bob", "--max-seconds", "30", "hello"],
    "ping-pipes": ["bob", "--count", "1", "--warmup", "0"],
    "cleanup-pipes": ["-d", "/nonexistent"],
}


def in_turn(runs: int, *measures: Callable[[], float]) -> list[list[float]]:
    """The runs of each measure, taken in turn so that a drift of the machine meets all alike."""
    taken: list[list[float]] = [[] for _ in measures]
    for number in range(runs + 1):
        for values, measure in zip(taken, measures, strict=True):
            value = measure()
            if number:  # the first run warms up
                values.append(value)
    return taken


def median_of(taken: list[list[float]]) -> list[float]:
    return [statistics.median(values) for values in taken]


def run_s(argv: list[str], **environment: str) -> float:
    began_s = time.perf_counter()
    # Without a timeout: with one, Python looks for the end in steps of up to 50 ms.
    subprocess.run(argv, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def cpu_s(argv: list[str], **environment: str) -> float:
    """The processor time of a run, which others on the machine and the answering peer have little part in."""
    process = subprocess.Popen(argv, env=os.environ | environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: nobody may wait for it again
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return used.ru_utime + used.ru_stime


def direct(url: str, question: str, max_tokens: int) -> tuple[float, float, int]:
    """(first token, all, tokens) of one streamed answer over plain HTTP, in seconds."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    where = urlsplit(url)
    began_s = time.perf_counter()
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    first_s, tokens = 0.0, 0
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        if b'"content":"' in line:
            first_s = first_s or time.perf_counter()
            tokens += 1
    ended_s = time.perf_counter()
    connection.close()
    return first_s - began_s, ended_s - first_s, tokens


def through_pipes(room: Room, seat: str, question: str) -> tuple[float, float, int]:
    """The same through the pipes, the lock and the opening of both pipes included."""
    began_s = time.perf_counter()
    first_s, tokens = 0.0, 0
    with Asker(room, "hub", seat, silence_s=30, limit=Deadline.after(60)) as asker:
        for answer in asker.ask(Say(new_id(), "hub", seat, question)):
            if isinstance(answer, Delta):
                first_s = first_s or time.perf_counter()
            elif isinstance(answer, Reply):
                tokens = answer.usage.completion_tokens if answer.usage else 0
    return first_s - began_s, time.perf_counter() - first_s, tokens


def seat(room: Room, name: str, *options: str) -> Child:
    argv = [sys.executable, "-P", "-m", "modelpipes", "attach", name, "-d", room.path, *options]
    child = Child(argv, name=f"member {name}")
    room.wait_for([name], Deadline.after(30))
    return child


def start_up(runs: int, measure: Callable[..., float] = run_s) -> Iterator[tuple[str, list[list[float]]]]:
    """Each command that only touches FIFOs, at work, then `import click` and nothing: the seconds of each run."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        room = Room.make(os.path.join(folder, "room"))
        room.make_pipes(star("hub", ["bob"]))
        with seat(room, "bob", "--filter", "cat"):
            for name, arguments in COMMANDS.items():
                argv = [os.path.join(os.path.dirname(python), name), *arguments]
                yield (
                    name,
                    in_turn(
                        runs,
                        lambda argv=argv: measure(argv, PIPE_DIR=room.path),  # type: ignore[misc]  # bound now
                        lambda: measure([python, "-c", "import click"]),
                        lambda: measure([python, "-c", "pass"]),
                    ),
                )


def first_token(runs: int) -> list[list[float]]:
    """Over direct HTTP, and through the pipes: the seconds of each run to the first token."""
    with tempfile.TemporaryDirectory() as folder, Engine("tiny-chat", ctx_size=1024) as engine:
        room = Room.make(os.path.join(folder, "room"))
        room.make_pipes(star("hub", ["first"]))
        engine.be_ready(Deadline.after(60))
        with seat(room, "first", "--server", engine.base_url, "--max-tokens", "16", "--temperature", "0"):
            return in_turn(
                runs,
                lambda: direct(engine.base_url, "Hello.", 16)[0],
                lambda: through_pipes(room, "first", "Hello.")[0],
            )


def streaming(runs: int) -> list[list[float]]:
    """Over direct HTTP, and through the pipes: the tokens a second of each run."""

    def rate(figures: tuple[float, float, int]) -> float:
        return figures[2] / figures[1]

    with tempfile.TemporaryDirectory() as folder:
        room = Room.make(os.path.join(folder, "room"))
        room.make_pipes(star("hub", ["echo"]))
        model = scripted_model(Path(folder) / "endless.gguf", "one two three", endless=True)
        with Engine(str(model), ctx_size=4096) as engine:
            engine.be_ready(Deadline.after(60))
            with seat(
                room, "echo", "--server", engine.base_url, "--max-tokens", str(STREAM_TOKENS), "--temperature", "0"
            ):
                return in_turn(
                    runs,
                    lambda: rate(direct(engine.base_url, "Go.", STREAM_TOKENS)),
                    lambda: rate(through_pipes(room, "echo", "Go.")),
                )


def measure(runs: int) -> Iterator[dict[str, Any]]:
    for what, of in (("start-up of {}", run_s), ("start-up of {}, processor time", cpu_s)):
        for name, taken in start_up(runs, of):
            ours, base, bare = median_of(taken)
            yield {
                "what": what.format(name),
                "ratio": ours / base,
                "ours_ms": ours * 1000,
                "import_click_ms": base * 1000,
                "python_ms": bare * 1000,
            }
    http_s, pipes_s = median_of(first_token(runs))
    yield {
        "what": "first token of tiny-chat",
        "ratio": pipes_s / http_s,
        "added_ms": (pipes_s - http_s) * 1000,
        "pipes_ms": pipes_s * 1000,
        "http_ms": http_s * 1000,
    }
    http_rate, pipes_rate = median_of(streaming(max(5, runs // 4)))
    yield {
        "what": f"streaming {STREAM_TOKENS} tokens",
        "ratio": pipes_rate / http_rate,
        "pipes_tokens_per_second": pipes_rate,
        "http_tokens_per_second": http_rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="counted runs of each; the median is reported")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for figures in measure(given.runs):
        if given.json:
            print(json.dumps(figures), flush=True)
        else:
            rest = ", ".join(f"{key} {value:.2f}" for key, value in figures.items() if key not in ("what", "ratio"))
            print(f"{figures['what']}: ratio {figures['ratio']:.2f} ({rest})", flush=True)


if __name__ == "__main__":
    main()
