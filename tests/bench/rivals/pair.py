"""The two processes of one rival."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from typing import Any

from tests.bench.rivals import Task, load


def answer_all(name: str, place: Any, tasks: Any) -> None:
    end = load(name)(place, is_asking=False)
    gc.freeze()  # as our commands do when they have loaded
    while True:
        try:
            task = tasks.recv()
        except EOFError:
            return
        end.answer(task)


def main() -> None:
    name, folder, cpu = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})
    os.chdir(folder)  # the name of a Unix socket is at most 107 bytes: theirs are relative
    rival = load(name)
    context = multiprocessing.get_context("spawn")
    ours, theirs = rival.prepare(folder)
    to_do, tasks = context.Pipe(duplex=False)
    peer = context.Process(target=answer_all, args=(name, theirs, to_do), daemon=True)
    peer.start()
    to_do.close()
    end = rival(ours, is_asking=True)
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        task = Task.parse(line)
        tasks.send(task)
        print(" ".join(map(str, end.ask(task))), flush=True)  # one write, also where Python does not buffer


if __name__ == "__main__":
    main()
