"""What a kept conversation depends on, as one value: two that are equal belong to engines that compute the same.

In it are

- the identity of each file that the engine loads (the model's shards, its draft, its projector, its adapters), and of
  any other that the user's arguments name, as a control vector or a template (see `gguf.identity`),
- every setting in force, and the user's arguments word for word (context, slots, cache types, the scales of adapters,
  rope, a window's size, …). Not each of them shapes a cache; of those that do not, a difference costs a cold cache,
- the program: which one, and its files as they are, for a build that is replaced reads its own files only.

So a cache never comes to where it means something else, nor to where llama-server would refuse it: a slot file is bound
to the number of slots (`--parallel`), to context and cache types, and what it says of the wrong number is "No available
space in KV cache or invalid slot save file".
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from modelpipes.engine.locate import Binary
from modelpipes.fit.flags import in_force
from modelpipes.fit.prediction import files_of
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.identity import Identity, Stamp, identify, stamp_of

LIBRARIES = ("libllama", "libggml", "libmtmd", "libserver")  # llama.cpp's own, beside its programs or in ../lib
DIGEST_BYTES = 16


@dataclass(frozen=True)
class CacheKey:
    """Of one engine, before it reads its files."""

    files: Identity
    spec: EngineSpec  # in force
    program: tuple[str, ...]
    build: Stamp

    @property
    def digest(self) -> str:
        """In one word, for others to compare; the same from one start to the next, of this process."""
        return blake2b(repr(self).encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).hexdigest()

    def stamp_now(self) -> Stamp:
        """Of the files that the engine has read, as they are now."""
        return stamp_of(*files_read(self.spec))

    def is_of_now(self) -> bool:
        """Whether they still are those; by their stamps, which cost no reading."""
        return self.stamp_now() == self.files.stamp


def key_of(spec: EngineSpec, binary: Binary) -> CacheKey:
    """What conversations depend on in an engine of this spec and program, if it were started now. Raises nothing."""
    told = in_force(spec)
    return CacheKey(identify(*files_read(told)), told, (binary.kind, *binary.argv), stamp_of(*_program_files(binary)))


def files_read(spec: EngineSpec) -> tuple[str, ...]:
    """The paths of all files that an engine with this spec reads, each once; of a set of shards, the first."""
    told = in_force(spec)
    return tuple(dict.fromkeys((*files_of(told), *_named_files(told.arguments))))


def _named_files(arguments: tuple[str, ...]) -> Iterator[str]:
    """Whatever of the arguments is the name of a file: FILE, --flag=FILE, FILE,FILE, FILE:SCALE."""
    for word in arguments:
        _, _, value = word.partition("=")
        for part in (word, value, *word.split(","), *value.split(",")):
            yield from (path for path in (part, part.rpartition(":")[0]) if path and os.path.isfile(path))


def _program_files(binary: Binary) -> list[str]:
    """The files that make the program: itself and llama.cpp's libraries beside it, or the wheel's."""
    if binary.kind == "embedded":
        wheel = importlib.util.find_spec("xllamacpp")
        folders = list(wheel.submodule_search_locations or ()) if wheel else []
        return [path for folder in folders for path in _files_in(folder, ("",)) if ".so" in os.path.basename(path)]
    program = os.path.realpath(shutil.which(binary.argv[0]) or binary.argv[0])
    beside = os.path.dirname(program)
    libraries = (beside, os.path.join(os.path.dirname(beside), "lib"))
    return [program, *(path for folder in libraries for path in _files_in(folder, LIBRARIES))]


def _files_in(folder: str, beginnings: tuple[str, ...]) -> list[str]:
    try:
        return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(beginnings))
    except OSError:
        return []
