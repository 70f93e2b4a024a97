"""Find model files under folders, each by the name that people know it by; no header is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from modelpipes.gguf import huggingface, ollama
from modelpipes.gguf.modelfile import Candidate, ModelFile, Problem, group_shards, printable, shard_paths
from modelpipes.gguf.places import known_places, lm_studio_places
from modelpipes.gguf.walk import Walk, check_file


def find_model_files(
    places: Iterable[str], entering: Callable[[str], None] = lambda folder: None
) -> Iterator[ModelFile | Problem]:
    """Every model file in these folders (or files), and a problem for each that looks like one and is none.

    A file that is found by several paths under one name is one model; under two names, two. Raises nothing:
    a place that is not there is a problem too. Hidden folders are passed over, but for the known places of
    models. Ollama's store and Hugging Face's cache are read as what they are, wherever they lie. `entering` is told
    each folder: there may be many, and no model.
    """
    walk = Walk(entering)
    listed: set[tuple[str, tuple[int, ...]]] = set()
    for place in places:
        # An empty name is a variable that a script forgot to set, not the folder we are in.
        for found in _find_in_place(os.path.abspath(place) if place else "", walk):
            if isinstance(found, Problem):
                yield found
            elif (known := (found.name, found.stamp)) not in listed:
                listed.add(known)
                yield found


def _find_in_place(place: str, walk: Walk) -> Iterator[ModelFile | Problem]:
    if not os.path.isdir(place):
        yield from _find_file(place)
        return
    yield from _find_in_folder(place, walk)
    below = os.path.join(place, "")
    for known in known_places():
        if known.startswith(below) and os.path.isdir(known):
            yield from _find_in_folder(known, walk)


def _find_file(path: str) -> Iterator[ModelFile | Problem]:
    named = check_file(path)
    if isinstance(named, Problem):
        yield named
        return
    shards = (check_file(shard) if shard != path else named for shard in shard_paths(path))
    yield from group_shards(shard for shard in shards if isinstance(shard, Candidate))


def _find_in_folder(root: str, walk: Walk) -> Iterator[ModelFile | Problem]:
    publishers = lm_studio_places()
    for folder in walk.folders(root):
        yield from folder.problems
        yield from group_shards(folder.files, _publisher_prefix(folder.path, publishers))
        if ollama.is_store(folder.subfolders):
            folder.subfolders = [name for name in folder.subfolders if name not in ollama.SUBFOLDERS]
            yield from ollama.find_in_store(folder.path)
        elif huggingface.is_repository(folder.path, folder.subfolders):
            folder.subfolders = []
            yield from huggingface.find_in_repository(folder.path, walk)


def _publisher_prefix(folder: str, publishers: list[str]) -> str:
    """PUBLISHER/MODEL/ for a folder that LM Studio keeps so; else nothing."""
    for place in publishers:
        if folder.startswith(place) and os.path.dirname(os.path.dirname(folder)) == place:
            return printable(os.path.join(os.path.relpath(folder, place), ""))
    return ""
