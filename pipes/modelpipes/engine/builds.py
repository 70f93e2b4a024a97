"""The engines that build-engine made: one folder each in the user's data directory, and what is known of it.

engines/b11434-cuda -> .b11434-cuda.1a2b3c/    bin/llama-server …, build.json
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator

import msgspec

from modelpipes.errors import EngineError, UsageError
from modelpipes.machine.kernel import read_cpu_features
from modelpipes.values.formats import BUILD, format_of
from modelpipes.values.paths import data_dir, make_private

# What the driver of a card makes; a build for a card serves where it is.
DEVICES = {"cuda": "/dev/nvidiactl", "rocm": "/dev/kfd", "vulkan": "/dev/dri"}
_RECORD = "build.json"


class Build(msgspec.Struct, frozen=True):
    """One build: the llama.cpp that was built, what for, how, and how fast it answers with tiny-chat."""

    version: str
    variant: str
    options: tuple[str, ...]
    cpu_features: tuple[str, ...]  # it was compiled for a CPU with these
    built_at: str
    tokens_per_second: float
    format: int = BUILD.version  # of this record; `version` is llama.cpp's

    @property
    def name(self) -> str:
        """Its name, and that of its folder."""
        return f"{self.version}-{self.variant}"

    @property
    def server(self) -> str:
        """The path of its llama-server."""
        return os.path.join(folder(), self.name, "bin", "llama-server")

    def runs_here(self) -> bool:
        """Has this machine the card and the CPU that it was built for?"""
        device = DEVICES.get(self.variant)
        return (device is None or os.path.exists(device)) and set(self.cpu_features) <= set(read_cpu_features())


def folder() -> str:
    """Where builds lie."""
    return os.path.join(data_dir(), "engines")


def builds() -> list[Build]:
    """All that are there and whole, the newest first, those for a card before those for the CPU.

    Those whose record is of a version to come are passed over: see `refusals`.
    """
    found = []
    for name, record in _records():
        with contextlib.suppress(msgspec.DecodeError):
            build = None if _refusal(name, record) else msgspec.json.decode(record, type=Build)
            if build and build.name == name and os.access(build.server, os.X_OK):
                found.append(build)
    return sorted(found, key=lambda build: (_number(build.version), build.variant != "cpu", build.name), reverse=True)


def refusals() -> list[str]:
    """Of each build whose record is of a version to come: why it is not used, in a line."""
    return [refusal for name, record in _records() if (refusal := _refusal(name, record))]


def check_replaceable(name: str) -> None:
    """EngineError where a build of this name is there whose record is of a version to come: it is left alone."""
    for there, record in _records():
        if there == name and (refusal := _refusal(name, record)):
            raise EngineError(f"{refusal}, or remove the build first: modelpipes build-engine --remove {name}")


def _records() -> Iterator[tuple[str, bytes]]:
    """The names that lead to a record, and the records."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder()) if not name.startswith(".")]
    for name in names:
        with contextlib.suppress(OSError), open(os.path.join(folder(), name, _RECORD), "rb") as file:
            yield name, file.read()


def _refusal(name: str, record: bytes) -> str:
    refusal = BUILD.refusal(format_of(record))
    return refusal and f"{os.path.join(folder(), name, _RECORD)}: {refusal}"


def _number(version: str) -> int:
    """Of "b11434" or "b11434-3-gabcdef" the build number; 0 for a tree that has none."""
    number = re.match(r"b(\d+)", version)
    return int(number[1]) if number else 0


def new_folder(name: str) -> str:
    """An empty folder for a build, which nobody sees before `publish`."""
    path = os.path.join(folder(), f".{name}.{os.urandom(4).hex()}")
    make_private(os.path.join(path, "bin"))
    return path


def publish(path: str, build: Build) -> None:
    """Let a folder from `new_folder` be the build of its name, in one step; what had the name goes."""
    with open(os.path.join(path, _RECORD), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(build)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    link = f"{path}.link"
    os.symlink(os.path.basename(path), link)
    os.replace(link, os.path.join(folder(), build.name))
    sweep()


def sweep() -> None:
    """Remove what no name leads to: builds that were replaced, or never finished. For the holder of the lock."""
    with contextlib.suppress(OSError):
        entries = os.listdir(folder())
        kept = {os.readlink(os.path.join(folder(), name)) for name in entries if not name.startswith(".")}
        for name in entries:
            if name.startswith(".") and name not in kept:
                path = os.path.join(folder(), name)
                os.unlink(path) if os.path.islink(path) else shutil.rmtree(path, ignore_errors=True)


def remove(name: str) -> None:
    """Remove a build; UsageError where there is none of that name. What runs from it goes on."""
    path = os.path.join(folder(), name)
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII) or not os.path.islink(path):
        there = ", ".join(build.name for build in builds()) or "none"
        raise UsageError(f"no build is called {name!r}; there are: {there}")
    os.unlink(path)
    sweep()
