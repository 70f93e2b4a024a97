"""Rate model files under one question, and remember the answers."""

from __future__ import annotations

import dataclasses
import math
import os
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from modelpipes.errors import ContradictionError, FileError, ModelFileError, UsageError
from modelpipes.fit.rating import Rating, Space, rate
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.cache import Cache
from modelpipes.gguf.modelfile import ModelFile
from modelpipes.gguf.types import file_type_name, type_name
from modelpipes.values.paths import cache_dir
from modelpipes.values.version import __version__

if TYPE_CHECKING:
    from modelpipes.gguf.header import Header

CACHE_FILE = "models.cache"
KEPT_ANSWERS = 4  # of each file: for the last settings and cards that were asked for
# A file may claim any number of parameters in tensors of unknown types; none has as many.
MAX_PARAMETERS = (1 << 63) - 1


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What a header says that does not depend on settings.

    `kind` is `model`, or what else a GGUF file is (`fit.hparams.classify`); `parameters` counts the elements of all
    tensors; `context_length` is the trained one, 0 where the file names none.
    """

    kind: str
    architecture: str
    parameters: int
    quantization: str
    context_length: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """A file's rating, or why there is none, found with so much host memory."""

    rating: Rating | None
    why_not: str = ""
    host_bytes: int = 0

    def holds(self, host_bytes: int) -> bool:
        """Whether it is the answer with another amount of host memory, too."""
        if self.rating is None or host_bytes == self.host_bytes:
            return True
        may_improve = self.rating.host_limits and host_bytes > self.host_bytes
        return self.rating.host_bytes <= host_bytes and not may_improve


class _Known(msgspec.Struct, frozen=True, array_like=True):
    facts: Facts
    answers: dict[str, Answer]  # by question


class Survey:
    """Rates files under one question: these settings, this space. What it learns is in the user's cache after it."""

    def __init__(self, settings: EngineSpec, space: Space | None, *, strict: bool = False, cached: bool = True) -> None:
        """Without a space, memory is predicted and nothing rated. `strict` reads every header, and walks it."""
        self._settings = settings
        self._space = space
        self._strict = strict
        self._host_bytes = space.host_bytes if space else 0
        devices = (*space.device_bytes, space.reserve_bytes) if space else ()
        self._question = " ".join(map(str, (*dataclasses.astuple(settings), *devices)))
        self._cache = Cache(os.path.join(cache_dir(), CACHE_FILE), _Known, _version()) if cached else None
        self.refusal = self._cache.refusal if self._cache else ""  # why what was kept is not used, in a line
        self._answers: dict[bytes, Answer] = {}  # by the signature of a header
        self.n_read = 0  # headers, from the disk

    def __enter__(self) -> Survey:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cache:
            self._cache.save()

    def ask(self, file: ModelFile) -> tuple[Facts, Answer]:
        """What a file is, and the answer to the question. Raises ModelFileError where it cannot be read."""
        known = self._cache.get(file.path, file.stamp) if self._cache and not self._strict else None
        answer = known and known.answers.get(self._question)
        if known and answer and answer.holds(self._host_bytes):
            return known.facts, answer
        from modelpipes.gguf.shards import read_model  # lazily: what is in the cache needs no reader

        header = read_model(file.path, strict=self._strict)
        self.n_read += 1
        facts = known.facts if known else facts_of(header)
        answer = self._answer(header, facts)
        if self._cache:
            others = [(key, each) for key, each in (known.answers if known else {}).items() if key != self._question]
            answers = dict([*others[1 - KEPT_ANSWERS :], (self._question, answer)])
            self._cache.put(file.path, file.stamp, _Known(facts, answers))
        return facts, answer

    def _answer(self, header: Header, facts: Facts) -> Answer:
        if facts.kind != "model":
            return Answer(None, f"{facts.kind}: not rated")
        answer = self._answers.get(header.signature)
        if answer is None:
            try:
                answer = Answer(rate(header, self._settings, self._space), host_bytes=self._host_bytes)
            except ContradictionError as error:
                answer = Answer(None, error.reason)
            except ModelFileError:
                raise
            except (FileError, UsageError) as error:  # what llama.cpp would refuse too
                answer = Answer(None, str(error))
            self._answers[header.signature] = answer
        return answer


def facts_of(header: Header) -> Facts:
    """What a header says that does not depend on settings."""
    from modelpipes.fit.hparams import classify

    arch = header.architecture or ""
    context = header.metadata.get(f"{arch}.context_length")
    return Facts(
        classify(header),
        arch,
        min(sum(math.prod(tensor.shape) for tensor in header.tensors), MAX_PARAMETERS),
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


def _version() -> str:
    """What the answers rest on: this release, and, as a checkout changes without one, its files that compute them."""
    package = os.path.dirname(os.path.dirname(__file__))
    folders = (os.path.join(package, *names) for names in (("fit",), ("fit", "compute"), ("gguf",)))
    sources = (entry for folder in folders for entry in os.scandir(folder) if entry.name.endswith(".py"))
    return f"{__version__} {max((entry.stat().st_mtime_ns for entry in sources), default=0)}"
