"""Start-up of each command, and what the pipes add to a model's first token and stream; see overhead.py."""

from __future__ import annotations

import os
import sys
from functools import partial

from modelpipes.commands import VERBS
from modelpipes.engine.locate import find_engine
from modelpipes.errors import EngineError
from tests.bench import overhead
from tests.bench.record import Record
from tests.bench.results import figure

START_UP, OVERHEAD = "start-up", "overhead"
PYTHON, HTTP, PIPES = "python -c pass", "direct HTTP", "modelpipes"
HELP, AT_WORK = "--help", "at work"
CLICK, PROCESSOR = "python -c 'import click'", "processor time of a command at work"
RUNS_A_ROUND = 3  # a start takes a twentieth of a second


def measure_start_up(record: Record) -> None:
    """Every command's help against an interpreter that does nothing; those that only touch FIFOs at work as well."""
    runs = record.rounds * RUNS_A_ROUND
    folder = os.path.dirname(sys.executable)
    commands = [command for command, _ in VERBS.values() if command]
    there = [command for command in commands if os.path.exists(os.path.join(folder, command))]
    for command in [command for command in commands if command not in there]:
        record.skip(command, f"not in {folder}; reinstall the checkout")
    record.say(f"{START_UP}: {runs} runs of {', '.join(there)}")
    argvs = [[sys.executable, "-c", "pass"], *([os.path.join(folder, command), HELP] for command in there)]
    taken = overhead.in_turn(runs, *(partial(overhead.run_s, argv) for argv in argvs))
    bare = taken[0]
    _add(record, PYTHON, HELP, bare, bare, is_ours=False)
    for command, seconds in zip(there, taken[1:], strict=True):
        _add(record, command, HELP, seconds, bare)
    if record.is_quick:
        record.skip("commands at work", "a quick run")
        return
    for command, (seconds, _, nothing) in overhead.start_up(runs):
        _add(record, command, AT_WORK, seconds, nothing)
    for command, (seconds, click, _) in overhead.start_up(runs, overhead.cpu_s):
        in_ms, click_ms = [run * 1000 for run in seconds], [run * 1000 for run in click]
        record.add(figure(START_UP, PROCESSOR, command, "", "ms", in_ms, base=(CLICK, click_ms), is_ours=True))


def _add(
    record: Record, row: str, column: str, seconds: list[float], bare: list[float], *, is_ours: bool = True
) -> None:
    in_ms, bare_ms = [run * 1000 for run in seconds], [run * 1000 for run in bare]
    record.add(figure(START_UP, "start-up", row, column, "ms", in_ms, base=(PYTHON, bare_ms), is_ours=is_ours))


def measure_overhead(record: Record) -> None:
    """First token and stream through the pipes against the same over HTTP."""
    try:
        engine = find_engine()
    except EngineError as e:
        record.skip("first token and streaming", str(e))
        return
    runs = record.rounds * RUNS_A_ROUND
    record.say(f"{OVERHEAD}: {runs} first tokens, {record.rounds} streams")
    table = f"a model's answer ({engine.kind} engine)"
    http_s, pipes_s = overhead.first_token(runs)
    rates = overhead.streaming(record.rounds)
    for row, seconds, rate, is_ours in ((HTTP, http_s, rates[0], False), (PIPES, pipes_s, rates[1], True)):
        record.add(
            figure(
                OVERHEAD, table, row, "first token of tiny-chat", "ms", [run * 1000 for run in seconds],
                base=(HTTP, [run * 1000 for run in http_s]), is_ours=is_ours,
            ),
            figure(
                OVERHEAD, table, row, f"{overhead.STREAM_TOKENS} tokens streamed", "per_second", rate,
                base=(HTTP, rates[0]), lower_is_better=False, is_ours=is_ours,
            ),
        )  # fmt: skip
