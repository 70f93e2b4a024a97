"""Swapping models through a real `serve-models`: what a swap takes, and how many there are.

    python -m tests.bench.swaps [--runs 15] [--requests 1000] [--large] [--json]

Scripted models, and a budget for so many of them. A swap is the time from a request to the first token, of a model that
is not in memory where another one is; beside it, in the same run, that of ending one engine and starting another, with
the token that proves it, and nothing between. Loads are those of four clients that choose among three models at random,
two of which fit; beside them the fewest that any order of these requests needs, by one who knows the future. With
`--large` also models of 1 GiB. The engine is the one that `attach-model` would take ($LLAMA_SERVER).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from modelpipes.child import Child
from modelpipes.deadline import Deadline
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import find_engine
from modelpipes.serving.budget import Place, predict
from modelpipes.table import draw_table
from tests.models import scripted_model
from tests.serving.simulate import best_with_reordering

LIMIT_S = 120.0
NAMES = "abc"
CLIENTS = 4
TOKENS = 20
SEEDS = 5
MAX_WAIT_S = 0.3


class Gateway:
    """A serve-models with three equal models, and room for some."""

    def __init__(self, folder: Path, fit: int, pad_mib: int = 0) -> None:
        files = [folder / f"{name}{pad_mib}.gguf" for name in NAMES]
        for file in files:
            if not file.exists():
                scripted_model(file, " on and on", endless=True, pad_mib=pad_mib)
        each = predict(
            str(files[0]), Place(0, True), ctx_size=512, parallel=1, kv_type="f16", gpu_layers=None, cpu_moe=False
        )
        self.files = [str(file) for file in files]
        self.budget = each.card * fit + each.card // 2
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        tables = [
            f"[memory]\nbudget = {self.budget}\nmin_resident_s = 0\nmax_wait_s = {MAX_WAIT_S}",
            *(f'[models.{name}]\nfile = "{file}"\nctx_size = 512' for name, file in zip(NAMES, files, strict=True)),
        ]
        self.config = folder / f"{fit}-{pad_mib}.toml"
        self.config.write_text("\n".join(tables))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        argv = [sys.executable, "-P", "-m", "modelpipes", "serve", f"--listen=127.0.0.1:{self.port}", str(self.config)]
        with Child(argv, name="serve-models"):
            deadline = Deadline.after(LIMIT_S)
            while True:
                deadline.check("serve-models")
                with contextlib.suppress(OSError):
                    self.get("/health")
                    break
                time.sleep(0.01)
            yield

    def get(self, path: str) -> str:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def ask(self, name: str, tokens: int = 1) -> float:
        """Seconds to the first event of an answer, which is read to its end."""
        messages = [{"role": "user", "content": "Hello."}]
        body = json.dumps({"model": name, "messages": messages, "max_tokens": tokens, "stream": True})
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as connection:
            began = time.monotonic()
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            first = response.readline()
            taken = time.monotonic() - began
            if response.status != http.client.OK or not first.startswith(b"data: {") or b'"error"' in first:
                raise RuntimeError(f"{name}: {response.status} {first!r} {response.read()!r}")
            response.read()
            return taken

    def loads(self) -> int:
        """How many there have been."""
        (line,) = [line for line in self.get("/metrics").splitlines() if "_load_seconds_count " in line]
        return int(float(line.split()[1]))

    def check_budget(self) -> None:
        """RuntimeError where more is in use than may be."""
        residency = json.loads(self.get("/residency"))
        if residency["used_bytes"] > residency["budget_bytes"]:
            raise RuntimeError(f"over the budget: {residency}")


def measure_swap(folder: Path, runs: int, pad_mib: int = 0) -> dict[str, Any]:
    """Milliseconds of swaps through the gateway and of bare ones, in turn."""
    gateway = Gateway(folder, 1, pad_mib)
    swaps, bare = [], []
    with gateway.running(), contextlib.ExitStack() as stack:
        gateway.ask("a")
        engines = cycle([stack.enter_context(Engine(file, ctx_size=512)) for file in gateway.files[:2]])
        ending, starting = next(engines), next(engines)
        ending.be_ready(Deadline.after(LIMIT_S))
        for name in islice(cycle("ba"), runs):
            swaps.append(gateway.ask(name) * 1000)
            began = time.monotonic()
            ending.stop()
            starting.be_ready(Deadline.after(LIMIT_S))
            bare.append((time.monotonic() - began) * 1000)
            ending, starting = starting, ending
    return {
        "what": f"swap, models of {f'{pad_mib} MiB' if pad_mib else '260 KB'}, ms",
        "found": statistics.median(swaps),
        "beside": statistics.median(bare),
        "worst": max(swaps),
    }


def choices(seed: int, requests: int) -> list[list[str]]:
    """What each client asks for, in order."""
    chooses = [random.Random(seed * CLIENTS + client) for client in range(CLIENTS)]
    return [[chosen.choice(NAMES) for _ in range(requests // CLIENTS)] for chosen in chooses]


def measure_loads(folder: Path, requests: int, seeds: int) -> dict[str, Any]:
    """Loads of random clients, the fewest possible ones, and the longest wait for a first token in ms."""
    gateway = Gateway(folder, 2)
    loads, least, waits = [], [], []
    with gateway.running():
        for seed in range(seeds):
            before, asked = gateway.loads(), choices(seed, requests)
            failed: list[Exception] = []
            longest = [0.0] * CLIENTS

            def work(client: int, names: list[str], longest: list[float], failed: list[Exception]) -> None:
                try:
                    for name in names:
                        longest[client] = max(longest[client], gateway.ask(name, TOKENS))
                        gateway.check_budget()
                except (OSError, RuntimeError, http.client.HTTPException) as error:
                    failed.append(error)

            threads = [
                threading.Thread(target=work, args=(client, names, longest, failed))
                for client, names in enumerate(asked)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failed:
                raise failed[0]
            loads.append(gateway.loads() - before)
            least.append(best_with_reordering(asked, 2))
            waits.append(max(longest) * 1000)
    return {
        "what": f"loads, {requests} requests of {CLIENTS} clients, {seeds} seeds; longest wait, ms",
        "found": statistics.median(loads),
        "beside": statistics.median(least),
        "worst": max(waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--large", action="store_true", help="also models of 1 GiB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        os.environ |= {name: str(folder / name) for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME")}
        (folder / "XDG_RUNTIME_DIR").mkdir(mode=0o700)
        rows = [measure_swap(folder, options.runs)]
        if options.large:
            rows.append(measure_swap(folder, max(3, options.runs // 3), 1024))
        rows += [measure_loads(folder, 40, SEEDS), measure_loads(folder, options.requests, 1)]
    if options.json:
        print(json.dumps(rows))
        return
    engine = find_engine()
    shown = [
        (
            row["what"],
            f"{row['found']:.1f}",
            f"{row['beside']:.1f}",
            f"{row['found'] / row['beside']:.2f}",
            f"{row['worst']:.0f}",
        )
        for row in rows
    ]
    headers = [f"{engine.kind} {engine.version}", "found", "bare, or fewest", "ratio", "longest"]
    print(draw_table(shown, headers, right=("found", "bare, or fewest", "ratio", "longest")), end="")


if __name__ == "__main__":
    main()
