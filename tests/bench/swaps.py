"""Swapping models through a real `serve-models`: what a swap takes, where the time goes, and how many there are.

    python -m tests.bench.swaps [--runs 15] [--requests 1000] [--large] [--json]

Scripted models, and a budget for so many of them. A swap is the time from a request to the first token, of a model that
is not in memory where another one is; beside it, in the same run and in turn, that of ending one engine and starting
another, with the token that proves it and nothing between, and of the same request asked of that engine directly.
Loads are those of four clients that choose among three models at random, two of which fit; beside them the fewest that
any order of these requests needs, by one who knows the future. Meanwhile /residency is sampled: more in use than the
budget ends the run. With `--large` also models of 1 GiB. The engine is the one that `attach-model` would take
($LLAMA_SERVER). The tables are Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import msgspec

from modelpipes.engine.answers import Piece
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import find_engine
from modelpipes.values.deadline import Deadline
from tests.models import scripted_model
from tests.serving.daemons import CTX_SIZE, NAMES, QUESTION, Served, predicted_bytes
from tests.serving.simulate import best_with_reordering

LIMIT_S = 120.0
CLIENTS = 4
TOKENS = 20
SEEDS = 5
SAMPLE_S = 0.02
PARTS = ("stop", "save", "load", "restore", "waited")  # figures of the daemon, in seconds

# What must hold.
SWAP_OVER_BARE_MS = 15.0
LARGE_SHARE = 1.05
FEW_LOADS = 9
LONGEST_WAIT_S = 0.4
LOADS_OVER_FEWEST = 1.5


class Swap(msgspec.Struct, frozen=True):
    """Medians in milliseconds; the parts add up to `whole`."""

    what: str
    runs: int
    decide: float
    save: float  # conversations, before the end
    stop: float
    load: float
    restore: float
    token: float  # from the engine to the first token
    whole: float
    worst: float
    bare_stop: float
    bare_load: float
    bare_token: float  # the same request, asked of the engine itself
    bare: float  # without that token


class Crowd(msgspec.Struct, frozen=True):
    """Loads of random clients, medians of the seeds; the longest wait for a first token of all."""

    requests: int
    seeds: int
    loads: float
    fewest: float
    ratio: float
    longest_s: float
    whole_s: float
    samples: int
    errors: int


class Gateway(Served):
    """A serve-models with three equal models, and room for some."""

    def prepare(self, fit: int, *, pad_mib: int = 0, memory: str = "") -> dict[str, Path]:
        files = {name: self.cwd / f"{name}.gguf" for name in NAMES}
        for file in files.values():
            if not file.exists():
                scripted_model(file, " on and on", endless=True, pad_mib=pad_mib)
        each = predicted_bytes(files[NAMES[0]])
        self.write(files, memory=f"budget = {each * fit + each // 2}\n{memory}")
        self.start()
        return files

    def first_token(self, name: str, tokens: int = 1) -> float:
        """Seconds to the first event of an answer, which is read to its end."""
        began = time.monotonic()
        events = self.stream(name, max_tokens=tokens)
        first = next(events)
        taken = time.monotonic() - began
        rest = [first, *events]
        if any('"error"' in event for event in rest) or rest[-1] != "[DONE]":
            raise RuntimeError(f"{name}: {rest}")
        return taken

    def figures(self) -> dict[str, float]:
        """Every one of the daemon's, by name."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def seconds(self) -> dict[str, float]:
        """What the daemon has spent on each of PARTS so far."""
        figures = self.figures()
        return {part: figures[f"modelpipes_pool_{part}_seconds_sum"] for part in PARTS}

    def loads(self) -> int:
        """How many there have been."""
        return int(self.figures()["modelpipes_pool_load_seconds_count"])


def measure_swap(folder: Path, runs: int, *, pad_mib: int = 0, memory: str = "", what: str = "") -> Swap:
    """Swaps through the gateway and bare ones, in turn."""
    with Gateway(folder / (what or "swap")) as gateway, contextlib.ExitStack() as stack:
        files = list(gateway.prepare(1, pad_mib=pad_mib, memory=memory).values())[:2]
        engines = cycle([stack.enter_context(Engine(str(file), ctx_size=CTX_SIZE)) for file in files])
        ending, starting = next(engines), next(engines)
        ending.be_ready(Deadline.after(LIMIT_S))
        for name in NAMES[:2] * 2:  # whether conversations can be kept is tried once
            gateway.first_token(name)
        swaps: list[dict[str, float]] = []
        for name in islice(cycle(NAMES[:2]), runs):
            before = gateway.seconds()
            whole = gateway.first_token(name)
            spent = {part: now - before[part] for part, now in gateway.seconds().items()}
            began = time.monotonic()
            ending.stop()
            stopped = time.monotonic()
            starting.be_ready(Deadline.after(LIMIT_S))
            ready = time.monotonic()
            with starting.client().stream(QUESTION, silence_s=LIMIT_S, max_tokens=1) as answer:
                next(piece for piece in answer if isinstance(piece, Piece))
                bare_token = time.monotonic() - ready
            ending, starting = starting, ending
            swaps.append(
                {
                    "decide": spent["waited"] - spent["stop"] - spent["load"],
                    "save": spent["save"],
                    "stop": spent["stop"] - spent["save"],
                    "load": spent["load"] - spent["restore"],
                    "restore": spent["restore"],
                    "token": whole - spent["waited"],
                    "whole": whole,
                    "bare_stop": stopped - began,
                    "bare_load": ready - stopped,
                    "bare_token": bare_token,
                    "bare": ready - began,
                }
            )
    medians = {part: statistics.median(swap[part] for swap in swaps) * 1000 for part in swaps[0]}
    worst = max(swap["whole"] for swap in swaps) * 1000
    return Swap(what=what or "tiny models", runs=runs, worst=worst, **medians)


def choices(seed: int, requests: int) -> list[list[str]]:
    """What each client asks for, in order."""
    chances = [random.Random(seed * CLIENTS + client) for client in range(CLIENTS)]
    return [[chance.choice(NAMES) for _ in range(requests // CLIENTS)] for chance in chances]


@contextlib.contextmanager
def sampled(gateway: Gateway) -> Iterator[list[int]]:
    """Look at /residency all the while; the bytes in use. RuntimeError where they are more than the budget."""
    used: list[int] = []
    over: list[object] = []
    has_ended = threading.Event()

    def look() -> None:
        while not has_ended.wait(SAMPLE_S):
            now = gateway.residency()
            used.append(now["used_bytes"])
            if now["used_bytes"] > now["budget_bytes"]:
                over.append(now)

    sampler = threading.Thread(target=look)
    sampler.start()
    try:
        yield used
    finally:
        has_ended.set()
        sampler.join()
    if over:
        raise RuntimeError(f"over the budget: {over[0]}")


def measure_loads(folder: Path, requests: int, seeds: int) -> Crowd:
    """Random clients, a daemon for each seed."""
    loads, fewest, ratios, waits, wholes = [], [], [], [], []
    samples = 0
    errors: list[str] = []
    for seed in range(seeds):
        with Gateway(folder / f"{requests}-{seed}") as gateway:
            gateway.prepare(2)
            asked = choices(seed, requests)

            def work(names: list[str], gateway: Gateway = gateway) -> None:
                for name in names:
                    try:
                        waits.append(gateway.first_token(name, TOKENS))
                    except (OSError, RuntimeError, http.client.HTTPException) as error:
                        errors.append(str(error))

            threads = [threading.Thread(target=work, args=(names,)) for names in asked]
            with sampled(gateway) as used:
                began = time.monotonic()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                wholes.append(time.monotonic() - began)
            samples += len(used)
            loads.append(gateway.loads())
            fewest.append(best_with_reordering(asked, 2))
            ratios.append(loads[-1] / fewest[-1])
    return Crowd(
        requests,
        seeds,
        statistics.median(loads),
        statistics.median(fewest),
        statistics.median(ratios),
        max(waits),
        statistics.median(wholes),
        samples,
        len(errors),
    )


def draw(headers: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines: list[Sequence[object]] = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def draw_swaps(swaps: list[Swap]) -> str:
    headers = ["ms, medians", "decide", "save", "stop", "load", "restore", "token", "request to token", "longest"]
    rows: list[list[object]] = []
    for swap in swaps:
        parts = (swap.decide, swap.save, swap.stop, swap.load, swap.restore, swap.token, swap.whole, swap.worst)
        rows.append([f"{swap.what}, {swap.runs} swaps", *(f"{part:.1f}" for part in parts)])
        bare = (swap.bare_stop, swap.bare_load, swap.bare_token, swap.bare + swap.bare_token)
        stop, load, token, whole = (f"{part:.1f}" for part in bare)
        rows.append(["bare stop and spawn, asked directly", "", "", stop, load, "", token, whole, ""])
    return draw(headers, rows)


def draw_crowds(crowds: list[Crowd]) -> str:
    headers = [
        f"{CLIENTS} clients, 3 models, 2 fit",
        "loads",
        "fewest",
        "ratio",
        "longest wait",
        "whole run",
        "samples over budget",
        "failed",
    ]
    rows: list[list[object]] = [
        [
            f"{one.requests} requests of {TOKENS} tokens, {one.seeds} seeds",
            f"{one.loads:g}",
            f"{one.fewest:g}",
            f"{one.ratio:.2f}",
            f"{one.longest_s:.3f} s",
            f"{one.whole_s:.2f} s",
            f"0 of {one.samples}",
            one.errors,
        ]
        for one in crowds
    ]
    return draw(headers, rows)


def judge(swaps: list[Swap], crowds: list[Crowd]) -> str:
    """What must hold, and whether it does."""
    tiny, few, many = swaps[0], crowds[0], crowds[-1]
    rows: list[tuple[str, float, float]] = [
        ("a swap beyond a bare one without its token, ms", SWAP_OVER_BARE_MS, tiny.whole - tiny.bare),
        (f"loads for {few.requests} requests", FEW_LOADS, few.loads),
        ("longest wait, s", LONGEST_WAIT_S, few.longest_s),
        (f"loads for {many.requests} requests, times the fewest", LOADS_OVER_FEWEST, many.ratio),
    ]
    rows += [
        (f"{one.what}: a swap, times a bare one with its token", LARGE_SHARE, one.whole / (one.bare + one.bare_token))
        for one in swaps[2:]
    ]
    return draw(
        ["it must hold", "at most", "found", "holds"],
        [[what, f"{most:g}", f"{found:.2f}", "yes" if found <= most else "NO"] for what, most, found in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="swaps")
    parser.add_argument("--requests", type=int, default=1000, help="of the long run; 0: none")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the short run")
    parser.add_argument("--large", action="store_true", help="also models of 1 GiB")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        swaps = [
            measure_swap(folder, given.runs),
            measure_swap(folder, given.runs, memory="keep_conversations = false", what="conversations not kept"),
        ]
        if given.large:
            swaps.append(measure_swap(folder, max(3, given.runs // 3), pad_mib=1024, what="models of 1 GiB"))
        crowds = [measure_loads(folder, 40, given.seeds)]
        if given.requests:
            crowds.append(measure_loads(folder, given.requests, 1))
    if given.json:
        print(msgspec.json.encode({"swaps": swaps, "crowds": crowds}).decode())
        return
    engine = find_engine()
    print(f"{engine.kind} {engine.version}\n")
    print(f"{draw_swaps(swaps)}\n\n{draw_crowds(crowds)}\n\n{judge(swaps, crowds)}")


if __name__ == "__main__":
    main()
