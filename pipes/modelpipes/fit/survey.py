"""Rate every model file that was found: the lines of find-gguf."""

from __future__ import annotations

import math
import os
import msgspec

from modelpipes.errors import ModelFileError, PipesError
from modelpipes.fit.hparams import classify
from modelpipes.fit.memory import FOLLOWED_BUILD
from modelpipes.fit.rating import Rating, Room, rate
from modelpipes.fit.settings import Settings
from modelpipes.gguf.cache import Cache
from modelpipes.gguf.header import Header
from modelpipes.gguf.modelfile import ModelFile, Problem
from modelpipes.gguf.shards import read_model
from modelpipes.gguf.types import file_type_name, type_name
from modelpipes.paths import cache_dir

CACHE_FILE = "models.cache"
CACHE_VERSION = f"1 {FOLLOWED_BUILD}"
KEPT_ANSWERS = 4  # of each file: for the last settings and cards that were asked for


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What a header says that does not depend on settings.

    `parameters` counts the elements of all tensors; `kind` is `model`, or what else a GGUF file is
    (`fit.hparams.classify`); `context_length` is the trained one, 0 where the file names none.
    """

    kind: str
    architecture: str
    parameters: int
    quantization: str
    context_length: int


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """A file's facts, and its rating under one question; without a rating, why there is none."""

    facts: Facts
    rating: Rating | None
    why_not: str = ""


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """A rating, or why there is none; with so many bytes of host memory to be had."""

    rating: Rating | None
    why_not: str
    host_bytes: int

    def holds(self, host_bytes: int) -> bool:
        """Whether it is the answer with another amount of host memory, too."""
        if host_bytes == self.host_bytes or self.rating is None:
            return True
        return self.rating.fit in ("fits", "tight") and self.rating.memory.host.total_bytes <= host_bytes


class _Cached(msgspec.Struct, array_like=True):
    facts: Facts
    answers: dict[str, _Answer]


class Survey:
    """Rates files under one question: these settings, this room. Keeps what it learns in the user's cache."""

    def __init__(self, settings: Settings, room: Room | None, *, strict: bool = False, cached: bool = True) -> None:
        """Without a room, memory is predicted and nothing rated. `strict` reads every header, and walks it."""
        self._settings = settings
        self._room = room
        self._strict = strict
        self._question = repr((settings, room and (room.device_bytes, room.reserve_bytes)))
        self._host_bytes = room.host_bytes if room else 0
        path = os.path.join(cache_dir(), CACHE_FILE)
        self._cache = Cache(path, _Cached, CACHE_VERSION) if cached else None
        self._known: dict[bytes, _Answer] = {}
        self.n_read = 0  # headers, from the disk
        self.n_rated = 0  # files

    def rate_file(self, file: ModelFile) -> Verdict | Problem:
        """One file's verdict, or the reason why it cannot be read."""
        try:
            verdict = self._judge(file)
        except ModelFileError as error:
            return Problem(error.path, error.reason, error.offset)
        self.n_rated += 1
        return verdict

    def _judge(self, file: ModelFile) -> Verdict:
        cached = self._cache.get(file.path, file.stamp) if self._cache and not self._strict else None
        answer = cached and cached.answers.get(self._question)
        if cached and answer and answer.holds(self._host_bytes):
            return Verdict(cached.facts, answer.rating, answer.why_not)
        header = read_model(file.path, strict=self._strict)
        self.n_read += 1
        facts = cached.facts if cached is not None else facts_of(header)
        answer = self._rate(header, facts)
        if self._cache:
            answers = {**(cached.answers if cached is not None else {}), self._question: answer}
            for old in list(answers)[:-KEPT_ANSWERS]:
                del answers[old]
            self._cache.put(file.path, file.stamp, _Cached(facts, answers))
        return Verdict(facts, answer.rating, answer.why_not)

    def save(self) -> None:
        """Keep what was learnt for the next time, if the disk takes it."""
        if self._cache:
            self._cache.save()

    def _rate(self, header: Header, facts: Facts) -> _Answer:
        if facts.kind != "model":
            return _Answer(None, f"{facts.kind}: not rated", self._host_bytes)
        known = self._known.get(header.signature)
        if known is None:
            try:
                known = _Answer(rate(header, self._settings, self._room), "", self._host_bytes)
            except ModelFileError:
                raise
            except PipesError as error:  # what llama.cpp would refuse too
                known = _Answer(None, str(error), self._host_bytes)
            self._known[header.signature] = known
        return known


def facts_of(header: Header) -> Facts:
    """What a header says that does not depend on settings."""
    metadata = header.metadata
    arch = header.architecture or ""
    context = metadata.get(f"{arch}.context_length")
    return Facts(
        classify(header),
        arch,
        sum(math.prod(tensor.shape) for tensor in header.tensors),
        _quantization(header),
        context if isinstance(context, int) else 0,
    )


def _quantization(header: Header) -> str:
    """The file type's name; without one, the tensor type that takes most of the file."""
    file_type = header.metadata.get("general.file_type")
    if isinstance(file_type, int):
        return file_type_name(file_type)
    sizes: dict[int, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + (tensor.n_bytes or 0)
    return type_name(max(sizes, key=lambda each: sizes[each])).upper() if sizes else ""
