"""The folders of models: which are looked in, and what lies there."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from modelpipes.gguf import places
from modelpipes.machine.checks import Check
from modelpipes.values.units import format_bytes, format_count


class Folder(msgspec.Struct, frozen=True):
    """What lies in a folder of models, if it is there."""

    n_models: int = 0
    size_bytes: int = 0
    n_problems: int = 0
    is_there: bool = True


def find_folders() -> dict[str, bool]:
    """The folders where find-gguf looks, or once looked, and whether somebody names them now."""
    named = [os.path.abspath(folder) for folder in places.default_places()]
    return {folder: folder in named for folder in [*named, *places.remembered()]}


def count_models(folder: str) -> Folder:
    """What lies in a folder; on a slow disk this takes long."""
    from modelpipes.gguf.catalog import Catalog

    if not os.path.exists(folder):
        return Folder(is_there=False)
    found = Catalog.scan([folder])
    return Folder(len(found.files), sum(file.size_bytes for file in found.files), len(found.problems))


def judge_folders(paths: Sequence[str], said: Sequence[Folder | None]) -> list[Check]:
    """`said` is what was counted in each of `paths`, None what took too long."""
    checks = []
    for path, folder in zip(paths, said, strict=True):
        if folder is None:
            check = Check("models", "warning", f"{path}: not counted in time", "again with a longer --timeout")
        elif not folder.is_there:
            check = Check("models", "missing", f"{path}: not there", "correct $SEARCH_PATH, or mount its disk")
        else:
            found = f"{path}: {format_count(folder.n_models, 'model file')}, {format_bytes(folder.size_bytes)}"
            check = Check("models", "ok", found)
            if folder.n_problems:
                found += f"; {format_count(folder.n_problems, 'file')} cannot be read"
                check = Check("models", "warning", found, "see why: find-gguf")
        checks.append(check)
    if any(folder is None or folder.n_models for folder in said):
        return checks
    advice = "put GGUF files into ~/models, or name their folder in $SEARCH_PATH"
    return [*checks, Check("models", "missing", "no model but the packaged tiny-chat", advice)]
