"""What find-gguf reports of each model file: its line, chosen and ordered as asked."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from modelpipes.errors import ModelFileError
from modelpipes.fit.rating import Fit
from modelpipes.fit.shares import Memory
from modelpipes.fit.survey import Answer, Facts, Survey
from modelpipes.gguf.findings import DataCheck
from modelpipes.gguf.modelfile import ModelFile, Problem, path_base64, printable
from modelpipes.gguf.scan import find_model_files


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file; the fields are the keys of its JSON, and null is what is not known or was not asked for.

    `path` is printable; where the path itself is not, `path_bytes` is that in base64. `kind` is `model`, or what else
    the file is. `context_length` is the trained context; `memory` is for `context` tokens with all layers on the
    devices. `fit` holds at `fit_context` with `gpu_layers` of `n_layers` (the output is one) on the devices, and the
    experts on the host if `cpu_moe`; `reason` says what makes it so. `max_context` is the largest context at which
    all of it fits, 0 if there is none. `estimate` is `exact`, or `generic` where the architecture is not known.
    `advised_quantization` is what a use case has for models of that size; `data` is what a check of the data found.
    """

    path: str
    path_bytes: str | None
    name: str
    kind: str
    architecture: str
    parameters: int
    quantization: str
    size_bytes: int
    modified_s: float
    context_length: int | None
    context: int | None = None
    memory: Memory | None = None
    fit: Fit | None = None
    fit_context: int | None = None
    max_context: int | None = None
    gpu_layers: int | None = None
    n_layers: int | None = None
    cpu_moe: bool | None = None
    estimate: str | None = None
    reason: str = ""
    advised_quantization: str | None = None
    data: DataCheck | None = None

    @property
    def device_bytes(self) -> int | None:
        """Memory on all devices together."""
        return self.memory.device_bytes if self.memory else None

    @property
    def is_damaged(self) -> bool:
        """Whether a check of its data found an error."""
        return self.data is not None and self.data.verdict == "damaged"

    @property
    def host_bytes(self) -> int | None:
        """Memory on the host."""
        return self.memory.host.total_bytes if self.memory else None


class Filter(msgspec.Struct, frozen=True):
    """Which files to report. Architectures and quantisations are patterns as a shell's, in any capitals."""

    fits: bool = False
    min_bytes: int | None = None
    max_bytes: int | None = None
    modified_after_s: float | None = None
    architectures: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()

    def wants_file(self, file: ModelFile) -> bool:
        """Whether the file may be wanted, by what is known without its header."""
        size = file.size_bytes
        return (
            (self.min_bytes is None or size >= self.min_bytes)
            and (self.max_bytes is None or size <= self.max_bytes)
            and (self.modified_after_s is None or file.modified_ns / 1e9 >= self.modified_after_s)
        )

    def wants(self, line: Line) -> bool:
        """Whether a line of a file that `wants_file` let through is to be reported."""
        return (
            (not self.fits or line.fit == "fits")
            and _matches(line.architecture, self.architectures)
            and _matches(line.quantization, self.quantizations)
        )


class Listing(msgspec.Struct, frozen=True):
    """The lines asked for, what could not be read, and how many files could, asked for or not."""

    lines: list[Line]
    problems: list[Problem]
    n_files: int


def list_files(
    places: Iterable[str],
    survey: Survey,
    wanted: Filter,
    progress: Callable[[str], None] = lambda line: None,
    check: Callable[[ModelFile], DataCheck] | None = None,
) -> Listing:
    """The lines of the wanted files in these folders, in the order found; `progress` is told how far it is.

    `check` reads the data of a file that is wanted; it may raise ModelFileError, which makes a problem of the file.
    """
    lines: list[Line] = []
    problems: list[Problem] = []
    n_files = 0

    def tell(path: str) -> None:
        progress(f"{n_files} files, now {path}")

    for found in find_model_files(places, tell):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        if wanted.wants_file(found):
            tell(found.path)
            try:
                line = describe(found, *survey.ask(found))
                if wanted.wants(line):
                    lines.append(msgspec.structs.replace(line, data=check(found)) if check else line)
            except ModelFileError as error:
                problems.append(Problem(error.path, error.reason, error.offset))
                continue
        n_files += 1
    return Listing(lines, problems, n_files)


def describe(file: ModelFile, facts: Facts, answer: Answer) -> Line:
    """The line of one file."""
    line = Line(
        path=printable(file.path),
        path_bytes=path_base64(file.path),
        name=file.name,
        kind=facts.kind,
        architecture=printable(facts.architecture),
        parameters=facts.parameters,
        quantization=facts.quantization,
        size_bytes=file.size_bytes,
        modified_s=file.modified_ns / 1e9,
        context_length=facts.context_length or None,
        reason=answer.why_not,
    )
    rating = answer.rating
    if rating is None:
        return line
    replace = msgspec.structs.replace
    line = replace(line, context=rating.n_ctx, memory=rating.memory, estimate=rating.memory.estimate)
    if rating.fit is None:
        return line
    return replace(
        line, fit=rating.fit, fit_context=rating.fit_context, max_context=rating.max_context,
        gpu_layers=rating.gpu_layers, n_layers=rating.n_layers, cpu_moe=rating.cpu_moe, reason=rating.reason,
    )  # fmt: skip


_FIT_ORDER = {"fits": 0, "tight": 1, "partial": 2, "no": 3, None: 4}
# What each order puts first: the largest, the newest, what fits best.
SORTS: dict[str, Callable[[Line], Any]] = {
    "name": lambda line: 0,
    "size": lambda line: -line.size_bytes,
    "age": lambda line: -line.modified_s,
    "params": lambda line: -line.parameters,
    "memory": lambda line: -(line.device_bytes or 0),
    "fit": lambda line: (_FIT_ORDER[line.fit], -(line.device_bytes or 0)),
    "context": lambda line: -(line.max_context or 0),
}


def sort_lines(lines: list[Line], by: str, *, reverse: bool = False) -> None:
    """Order lines by one of SORTS; lines that are equal there, by name and path."""
    key = SORTS[by]
    lines.sort(key=lambda line: (key(line), line.name.lower(), line.path), reverse=reverse)


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(text.lower(), pattern.lower()) for pattern in patterns)
