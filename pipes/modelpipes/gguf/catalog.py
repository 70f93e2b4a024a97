"""The models on this machine: list them, and find the one that a name means."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from modelpipes.errors import FileError, UsageError
from modelpipes.gguf.modelfile import SUFFIX, ModelFile, Problem, printable, stem
from modelpipes.gguf.places import default_places, remembered
from modelpipes.gguf.scan import find_model_files

MAX_SHOWN = 4  # names or paths in one message


class Catalog(msgspec.Struct, frozen=True):
    """The models found, their headers unread, and what could not be read."""

    files: tuple[ModelFile, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def scan(cls, places: Sequence[str] = ()) -> Catalog:
        """All that lies in these folders; without any, where models usually lie (`default_places`)."""
        found = list(find_model_files(places or default_places()))
        return cls(
            tuple(each for each in found if isinstance(each, ModelFile)),
            tuple(each for each in found if isinstance(each, Problem)),
        )

    def find(self, name: str) -> ModelFile:
        """The model that a name means: as `find-gguf` prints it, else its file's name or a part that suffices.

        A part: the name without its tag (`llama3.1`, then `:latest` comes first) or in other capitals. Raises
        UsageError if it means several, FileError if it means none.
        """
        for match in (_is_name, _is_latest, _is_part):
            # One file under two names is one model.
            found = {file.stamp: file for file in self.files if match(file, name)}
            if len(found) > 1:
                shown = [f"{file.name} ({printable(file.path)})" for file in found.values()]
                raise UsageError(f"{name!r} means several models: {_some(shown)}: give the path of one")
            if found:
                return next(iter(found.values()))
        raise FileError(f"no model file {name!r}, nor a model of that name: {self._hint(name)}")

    def _hint(self, name: str) -> str:
        import difflib

        known = {file.name.lower(): file.name for file in self.files}
        near = [each for each in known if name.lower() in each] or difflib.get_close_matches(name.lower(), known)
        if near:
            return f"did you mean {_some([known[each] for each in near])}?"
        return f"run find-gguf to see what there is in {_some(default_places()) or 'a folder that you name'}"


def resolve(name_or_path: str) -> str:
    """The absolute path that a command's model FILE means: a path, or a name as `Catalog.find` takes it.

    Names are looked up where models usually lie and where `find-gguf` last looked. A file wins over a name, a name
    over a folder. What is written as a path is not looked up. Raises as `Catalog.find`.
    """
    path = os.path.abspath(os.path.expanduser(name_or_path)) if name_or_path else ""
    is_folder = os.path.isdir(path)
    if name_or_path.startswith(("/", ".", "~")) or (os.path.lexists(path) and not is_folder):
        return path
    try:
        return Catalog.scan([*default_places(), *remembered()]).find(name_or_path).path
    except FileError:
        if is_folder:
            return path
        raise


def _is_name(file: ModelFile, name: str) -> bool:
    return file.name == name


def _is_latest(file: ModelFile, name: str) -> bool:
    return file.name == f"{name}:latest"


def _is_part(file: ModelFile, name: str) -> bool:
    wanted = name.lower().removesuffix(SUFFIX)
    full = file.name.lower()
    model = full.rpartition("/")[2]
    base = os.path.basename(file.path).lower().removesuffix(SUFFIX)
    parts = (full, full.partition(":")[0], model, model.partition(":")[0], stem(file.path).lower(), base)
    return wanted in parts


def _some(items: Sequence[str]) -> str:
    more = [f"and {len(items) - MAX_SHOWN} more"] if len(items) > MAX_SHOWN else []
    return ", ".join([*items[:MAX_SHOWN], *more])
