"""The engines of this machine: which there are, and what each says of itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec

from modelpipes.engine import locate
from modelpipes.errors import EngineError, PipesError
from modelpipes.machine.cards import Cards
from modelpipes.machine.checks import Check, State


class Engine(msgspec.Struct, frozen=True):
    """What an engine says of itself, or why it does not run."""

    version: str = ""
    backend: str = ""
    error: str = ""


def find_engines() -> tuple[list[tuple[str, locate.Binary]], str]:
    """Their names and binaries, the one to use first; or why none could be looked for."""
    try:
        return list(locate.engines()), ""
    except EngineError as error:
        return [], str(error)


def ask_engine(engine: locate.Binary) -> Engine:
    """What it says of itself; this starts it."""
    try:
        if engine.kind == "embedded":
            _import_elsewhere("xllamacpp")
        _ = engine.flags  # raises where it is no engine
        return Engine(engine.version, engine.backend)
    except (PipesError, ImportError) as error:  # a module without its package's metadata
        return Engine(error=str(error))


def _import_elsewhere(module: str) -> None:
    """EngineError unless the module can be imported; a process of its own dies in our place of a wrong wheel."""
    argv = [sys.executable, "-P", "-c", f"import {module}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EngineError(f"{module} cannot be imported: {said[-1] if said else f'exit code {done.returncode}'}")


def judge_engines(
    names: Sequence[tuple[str, str]], said: Sequence[Engine | None], cards: Cards | None, error: str, get_one: str
) -> list[Check]:
    """`names` are (name, path) of engines, the one to use first, `said` what each answered; None is too late.

    `error` is why none could be looked for, as "what is wrong: what to do"; else "".
    """
    if error:
        found, _, advice = error.rpartition(": ")
        return [Check("engine", "missing", found, advice)]
    if not names:
        return [Check("engine", "missing", "no engine on this machine", get_one)]
    checks: list[Check] = []
    for (name, path), engine in zip(names, said, strict=True):
        is_first = not checks
        about = f"{name}: {path}" if path else name
        if engine is None:
            check = Check("engine", "warning", f"{about}: did not answer in time", "again with a longer --timeout")
        elif engine.error:
            state: State = "missing" if is_first else "warning"
            instead = "mend it, or name another in $LLAMA_SERVER" if is_first else "mend or remove it"
            check = Check("engine", state, f"{name if path in engine.error else about}: {engine.error}", instead)
        elif is_first and cards and cards.cards and engine.backend == "cpu":
            found = f"{about}, {engine.version or 'version unknown'}, cpu: it leaves the card unused"
            check = Check("engine", "warning", found, "compile one for the card: modelpipes build-engine")
        else:
            check = Check("engine", "ok", f"{about}, {engine.version or 'version unknown'}, {engine.backend}")
        checks.append(check)
    return checks
