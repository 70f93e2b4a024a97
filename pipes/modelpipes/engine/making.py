"""An engine made as it was wanted: what it computes on, from which source; or only the commands that would make it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from modelpipes.engine import build, hardware, sdist, source, variants
from modelpipes.engine.builds import Build
from modelpipes.errors import DeadlineError, Ended
from modelpipes.values.deadline import Deadline
from modelpipes.values.paths import build_dir


@dataclass(frozen=True)
class Wanted:
    """An engine to make: of a llama.cpp tree in a directory, else of a release, which is the one known to work."""

    variant: variants.Variant | Literal["auto"] = "auto"
    directory: str | None = None
    release: int | None = None
    jobs: int | None = None  # compilers at a time; None: as many as the machine bears

    @property
    def version(self) -> str:
        """Of the release."""
        return f"b{self.release or sdist.RELEASE}"


@dataclass(frozen=True)
class Commands:
    """The commands that would make an engine, a list of words each."""

    variant: str
    version: str
    commands: list[list[str]]


def describe(wanted: Wanted, report: Callable[[str], None]) -> Commands:
    """What `make` would run; `report` gets lines about the machine and the choice. Raises EngineError."""
    machine, choice = _choose(wanted, report)
    if wanted.directory:
        tree = source.local_source(wanted.directory)
    else:
        tree = source.Source(os.path.join(build_dir(), f"llama.cpp-{wanted.version}"), wanted.version)
    if not os.path.isdir(tree.path):
        report(f"the source of {tree.version} is fetched to {tree.path} first")
    jobs = wanted.jobs or build.jobs_here(choice)
    commands = [build.configuration(tree, choice, machine), build.compilation(tree, choice, machine, jobs)]
    return Commands(choice.variant, tree.version, commands)


def make(wanted: Wanted, report: Callable[[str], None], show: Callable[[str], None], deadline: Deadline) -> Build:
    """The engine, made, tried and kept; a release that is made already is not made again.

    `report` gets lines, `show` how far it is. What is broken off goes on where it stopped. Raises EngineError,
    DeadlineError.
    """
    machine, choice = _choose(wanted, report)
    if not wanted.directory and (made := build.already(wanted.version, choice, machine)):
        report(f"{made.name} is there, made {made.built_at[:10]}; --remove {made.name} to make it anew")
        return made
    jobs = wanted.jobs or build.jobs_here(choice)
    with build.lock():
        try:
            if wanted.directory:
                tree = source.local_source(wanted.directory)
            else:
                tree = source.packaged_source(build_dir(), wanted.release, report, deadline)
            report(f"building {tree.version} for {choice.variant}; the log is {build.log_of(tree, choice)}")
            made = build.build(tree, choice, machine, jobs=jobs, report=report, show=show, deadline=deadline)
        except (Ended, DeadlineError):
            report("run this again and it goes on where it stopped")
            raise
        if not wanted.directory:
            shutil.rmtree(tree.path, ignore_errors=True)
    report(f"{made.name} answers, {made.tokens_per_second:,.0f} tokens a second with tiny-chat")
    return made


def _choose(wanted: Wanted, report: Callable[[str], None]) -> tuple[hardware.Machine, variants.Choice]:
    """What this machine can build for; says why, and what is missing for more."""
    machine = hardware.look()
    choice = variants.choose(machine, wanted.variant)
    for line in (*choice.found, choice.why, *choice.missing):
        report(line)
    return machine, choice
