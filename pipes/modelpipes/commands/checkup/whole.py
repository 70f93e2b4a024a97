"""All that check-system looks at, one check after another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from modelpipes.commands.checkup.asking import asking
from modelpipes.commands.checkup.engines import Engine, find_engines, judge_engines
from modelpipes.commands.checkup.folders import Folder, find_folders, judge_folders
from modelpipes.commands.checkup.rooms import check_rooms
from modelpipes.commands.checkup.serving import check_extras, check_port, judge_daemons
from modelpipes.commands.checkup.written import Size, WrittenFolder, find_places, tell
from modelpipes.commands.cli.configured import Configured
from modelpipes.config.settings import DEFAULT_LISTEN
from modelpipes.engine import builds, locate
from modelpipes.gateway import record
from modelpipes.machine import checks
from modelpipes.machine.bus import find_display_vendors
from modelpipes.machine.cards import Cards
from modelpipes.machine.checks import Check
from modelpipes.machine.disk import read_disk
from modelpipes.machine.kernel import read_pipe_limits
from modelpipes.machine.memory import read_memory
from modelpipes.pipe.fifo import WIDE_BYTES
from modelpipes.values import paths
from modelpipes.values.deadline import Deadline
from modelpipes.values.version import __version__

NEEDED = frozenset({"kernel", "rooms", "engine"})  # without one of these no two models talk
BUILD_BYTES = 500_000_000  # what build-engine asks for
CACHE_BYTES = 50_000_000  # headers of some thousand models
COUNTING_SHARE = 0.8  # of the time: what was counted by then is told, what was never answered is not


class System(NamedTuple):
    """What was found: how each part stands, and the folders that we write to."""

    checks: list[Check]
    folders: list[WrittenFolder]


def can_talk(checks: Iterable[Check]) -> bool:
    """Could two models talk to each other here?"""
    return not any(check.state == "missing" and check.name in NEEDED for check in checks)


def check_all(deadline: Deadline, configured: Configured) -> System:
    """Look at everything; what has not answered at the deadline is said to be late."""
    system = _check_system()
    if not can_talk(system):
        return System(system, [])  # what is asked from here on is there on Linux alone
    engines, engine_error = find_engines()
    folders = find_folders()
    questions = [["cards"], *(["engine", engine.kind, *engine.argv] for _, engine in engines)]
    questions += [["folder", folder] for folder in folders]
    places = find_places()
    moment_s = str(time.monotonic() + COUNTING_SHARE * deadline.remaining_s())
    others = [place.path for place in places]
    questions += [["written", moment_s, place.path, *others] for place in places]
    with asking(questions, deadline) as answers:
        before = [*_check_pipes(), *check_rooms(), *_check_machine()]
        daemons = [(daemon.pid, daemon.listen) for daemon in record.running()]
        listen = configured.loaded.config.server.listen if configured.loaded else DEFAULT_LISTEN
        after = [
            *judge_daemons(daemons),
            *_judge_refused("daemon", record.refusals(None)),
            *check_port(listen, daemons),
            *check_extras(),
        ]
    cards, *rest = (answers.get(number) for number in range(len(questions)))
    found_cards = _as(Cards, cards)
    said = [_as(Engine, value) for value in rest[: len(engines)]]
    counted, sizes = rest[len(engines) : -len(places)], rest[-len(places) :]
    counts = {folder: _as(Folder, value) for folder, value in zip(folders, counted, strict=True)}
    for folder, count in list(counts.items()):
        if count and not count.is_there and not folders[folder]:
            del counts[folder]  # where find-gguf once looked, and nobody asks for it now
    names = [(name, engine.argv[0] if engine.kind == "llama-server" else "") for name, engine in engines]
    found = [
        *system,
        _check_configuration(configured),
        *before,
        *judge_engines(names, said, found_cards, engine_error, locate.GET_ONE),
        *_judge_refused("engine", builds.refusals()),
        *checks.judge_cards(found_cards, find_display_vendors()),
        *judge_folders(list(counts), list(counts.values())),
        *after,
    ]
    return System(found, tell(places, [_as(Size, size) for size in sizes]))


def _check_system() -> list[Check]:
    uname, version = os.uname(), ".".join(map(str, sys.version_info[:3]))
    return [
        Check("python", "ok", f"{version} ({sys.executable}), modelpipes {__version__}"),
        checks.judge_kernel(uname.sysname, uname.release),
    ]


def _check_configuration(configured: Configured) -> Check:
    if configured.mistake:
        advice = "correct it: until then what reads it ends with exit code 2"
        return Check("config", "warning", str(configured.mistake), advice)
    return Check("config", "ok", configured.path or f"none: {paths.config_file()} is not there")


def _judge_refused(name: str, refusals: Iterable[str]) -> Iterator[Check]:
    """Records of a version to come, each told as "what it is: what to do"."""
    for refusal in refusals:
        found, _, advice = refusal.rpartition(": ")
        yield Check(name, "warning", found, advice)


def _check_pipes() -> list[Check]:
    limits = read_pipe_limits()
    return [
        checks.judge_pipe_size(limits.max_bytes, WIDE_BYTES),
        checks.judge_pipe_pages(limits.soft_pages, limits.hard_pages, WIDE_BYTES // os.sysconf("SC_PAGESIZE")),
    ]


def _check_machine() -> list[Check]:
    memory = read_memory()
    data, cache = paths.data_dir(), paths.cache_dir()
    return [
        checks.judge_disk("data", read_disk(data), data, BUILD_BYTES, "an engine that build-engine makes"),
        checks.judge_disk("cache", read_disk(cache), cache, CACHE_BYTES, "what find-gguf remembers"),
        checks.judge_memory(memory.available_bytes, memory.total_bytes),
    ]


def _as(kind: type[Any], value: Any) -> Any:
    return None if value is None else msgspec.convert(value, kind)
