"""The cache of Hugging Face's hub: `models--ORG--NAME/snapshots/REVISION/…`, links into `blobs/`.

A model is called `ORG/NAME`, as everywhere on the hub; where one repository holds several, its quantisation
tells them apart, as in `llama-server -hf ORG/NAME:Q4_K_M`. Source: huggingface_hub, "Understand caching".
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from modelpipes.gguf.modelfile import ModelFile, Problem, group_shards, printable, stem
from modelpipes.gguf.walk import Walk, read_small_file

_PREFIX = "models--"
# What llama-quantize and the makers of quantised models end a file's name with.
_QUANTISATION = r".*?[-._]((?:UD-)?(?:I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
# Files that go with a model and are none.
_COMPANIONS = ("mmproj", "imatrix")
MAX_REVISION_BYTES = 64  # refs/main holds a commit's name, 40 digits


class _Found(NamedTuple):
    model: ModelFile
    revision: str
    place: str  # in the revision, without suffix and shard number


def is_repository(folder: str, subfolders: list[str]) -> bool:
    """Whether a folder with these subfolders is a repository of the cache."""
    return "snapshots" in subfolders and os.path.basename(folder).startswith(_PREFIX)


def find_in_repository(repository: str, walk: Walk) -> Iterator[ModelFile | Problem]:
    """Every model of a repository, each revision's; a file that several revisions share, once."""
    snapshots = os.path.join(repository, "snapshots")
    try:
        revisions = sorted(os.listdir(snapshots))
    except OSError as error:
        yield Problem(snapshots, f"the folder cannot be read: {error.strerror}")
        return
    current = _current_revision(repository)
    found: dict[tuple[str, tuple[int, ...]], _Found] = {}
    for revision in sorted(revisions, key=lambda name: name != current):
        root = os.path.join(snapshots, revision)
        for folder in walk.folders(root):
            yield from folder.problems
            for model in group_shards(folder.files):
                if isinstance(model, Problem):
                    yield model
                else:
                    place = os.path.relpath(os.path.join(folder.path, stem(model.path)), root)
                    found.setdefault((place, model.stamp), _Found(model, revision, place))
    yield from _name_all(_hub_name(repository), list(found.values()))


def quantisation_of(name: str) -> str | None:
    """The quantisation that a file's name ends with, in capitals."""
    match = re.fullmatch(_QUANTISATION, name, re.IGNORECASE | re.DOTALL)
    return match[1].upper() if match else None


def _name_all(hub_name: str, found: list[_Found]) -> Iterator[ModelFile]:
    newest: dict[str, str] = {}
    for each in found:  # those of the current revision come first
        newest.setdefault(each.place, each.revision)
    models = [place for place in newest if not _is_companion(place)]
    n_alike = Counter(quantisation_of(place) for place in models)
    for model, revision, place in found:
        quantisation = None if _is_companion(place) else quantisation_of(place)
        if models == [place]:
            name = hub_name
        elif quantisation and n_alike[quantisation] == 1:
            name = f"{hub_name}:{quantisation}"
        else:
            name = f"{hub_name}:{printable(place)}"
        if newest[place] != revision:
            name += f"@{printable(revision[:7])}"
        yield msgspec.structs.replace(model, name=name)


def _is_companion(place: str) -> bool:
    return os.path.basename(place).lower().startswith(_COMPANIONS)


def _hub_name(repository: str) -> str:
    return printable(os.path.basename(repository).removeprefix(_PREFIX).replace("--", "/", 1))


def _current_revision(repository: str) -> str:
    try:
        return os.fsdecode(read_small_file(os.path.join(repository, "refs", "main"), MAX_REVISION_BYTES)).strip()
    except OSError:
        return ""  # a download of one revision leaves no reference
