"""The folders that we write to: what lies there, what bounds it, how it is emptied."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from modelpipes.engine import builds
from modelpipes.engine.logs import FILE_LIMIT_BYTES
from modelpipes.gateway import record
from modelpipes.gguf.cache import MAX_FILE_BYTES
from modelpipes.gguf.places import MAX_MEMORY_BYTES
from modelpipes.machine.checks import Check
from modelpipes.pipe.room import Room, folder_of_rooms
from modelpipes.terminal.typed import KEPT_BYTES
from modelpipes.values import paths
from modelpipes.values.deadline import Deadline
from modelpipes.values.units import format_bytes


class Place(NamedTuple):
    """A folder of ours, made or not yet; `bound` says what keeps it small, `emptied_by` is a line for a shell."""

    name: str
    path: str
    bound: str
    emptied_by: str


class Size(msgspec.Struct, frozen=True):
    """What the files of a folder have; `is_whole` is false where not all of them were counted."""

    size_bytes: int = 0
    is_whole: bool = True
    is_there: bool = True


class WrittenFolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder that we write to; what lies in another one of the list counts there alone.

    `is_there` is false where it is not made yet, null where that was not known in time. `size_bytes` is at least so
    much where `is_whole` is false, and null where nothing was counted in time. `bound` says what keeps it small;
    `emptied_by` is a line for a shell, empty where there is nothing to remove.
    """

    name: str
    path: str
    is_there: bool | None
    size_bytes: int | None
    is_whole: bool
    bound: str
    emptied_by: str


def find_places() -> list[Place]:
    """All folders that commands write to unless they are told another file."""
    files = shlex.quote(paths.cache_dir())
    cache, log = format_bytes(MAX_FILE_BYTES + MAX_MEMORY_BYTES), format_bytes(2 * FILE_LIMIT_BYTES)
    told = [
        ("rooms", folder_of_rooms(), "pipes and locks alone, which go with their leader or a clean-up", _clean_rooms()),
        ("logs", paths.logs_dir(), f"at most {log} for each model and address of serve-models", ""),
        ("daemons", record.folder(), "a line for each serve-models that runs", ""),
        ("conversations", paths.slots_dir(), "they go with the serve-models that keeps them", ""),
        ("cache", paths.cache_dir(), f"at most {cache}", f"find {files} -maxdepth 1 -type f -delete"),
        ("sources", paths.build_dir(), "no bound: each llama.cpp that was built", ""),
        ("typed", paths.state_dir(), f"at most {format_bytes(KEPT_BYTES)}", ""),
        ("engines", builds.folder(), "no bound: each that build-engine made", _remove_builds()),
    ]
    places = [Place(name, path, bound, line or f"rm -r {shlex.quote(path)}") for name, path, bound, line in told]
    # Without a runtime folder, daemons are recorded where the logs are.
    return list({place.path: place for place in reversed(places)}.values())[::-1]


def measure(path: str, limit: Deadline, but: Collection[str] = ()) -> Size:
    """What the files below a folder have, as far as they are counted at the limit, without those below others."""
    size_bytes, is_whole = 0, True
    left = [path]
    if not os.path.lexists(path):
        return Size(is_there=False)
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if limit.has_passed():
                        return Size(size_bytes, is_whole=False)
                    if not entry.is_dir(follow_symlinks=False):
                        size_bytes += entry.stat(follow_symlinks=False).st_size
                    elif entry.path not in but:
                        left.append(entry.path)
        except FileNotFoundError:  # it went while we looked
            pass
        except OSError:  # not ours to read
            is_whole = False
    return Size(size_bytes, is_whole)


def tell(places: Sequence[Place], said: Sequence[Size | None]) -> list[WrittenFolder]:
    """`said` is what was counted in each of `places`, None what took too long."""
    told = []
    for place, size in zip(places, said, strict=True):
        is_there = None if size is None else size.is_there
        size_bytes, is_whole = (None, False) if size is None else (size.size_bytes, size.is_whole)
        emptied_by = "" if is_there is False else place.emptied_by
        told.append(WrittenFolder(place.name, place.path, is_there, size_bytes, is_whole, place.bound, emptied_by))
    return told


def judge_written(folders: Sequence[WrittenFolder]) -> list[Check]:
    """A line for each."""
    checks = []
    for folder in folders:
        if folder.is_there is False:
            size = "not there yet"
        elif folder.size_bytes is None:
            size = "not counted in time"
        else:
            size = f"{'' if folder.is_whole else 'at least '}{format_bytes(folder.size_bytes)}"
        found = f"{folder.name} in {folder.path}: {size}; {folder.bound}"
        advice = f"to empty it: {folder.emptied_by}" if folder.emptied_by else ""
        checks.append(Check("folder", "ok", found, advice))
    return checks


def _clean_rooms() -> str:
    rooms = [room.path for room in Room.all() if room.path != record.folder()]
    return "; ".join(f"cleanup-pipes -d {shlex.quote(path)}" for path in rooms)


def _remove_builds() -> str:
    made = [f"modelpipes build-engine --remove {build.name}" for build in builds.builds()]
    return "; ".join(made)
