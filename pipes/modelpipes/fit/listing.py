"""What find-gguf reports of a file: one line, chosen and ordered as asked. Pure."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec

from modelpipes.fit.survey import Verdict
from modelpipes.gguf.modelfile import ModelFile, path_base64, printable

FIT_ORDER = {"fits": 0, "tight": 1, "partial": 2, "no": 3, None: 4}


class Line(msgspec.Struct, frozen=True):
    """One file. Sizes are in bytes, contexts in tokens; null is what is not known or was not asked for.

    `path` is printable; where that is not the path itself, `path_bytes` is the path in base64. `memory` is for
    `n_ctx` tokens with all layers on the devices. `gpu_layers` of `n_layers` go there under `fit`, with
    `cpu_moe` the experts stay on the host.
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
    n_ctx: int | None
    memory: dict[str, Any] | None
    fit: str | None
    reason: str
    max_context: int | None
    gpu_layers: int | None
    n_layers: int | None
    cpu_moe: bool | None
    estimate: str | None

    @property
    def device_bytes(self) -> int | None:
        """Memory on all devices together."""
        if self.memory is None:
            return None
        return sum(sum(share.values()) for share in self.memory["devices"])


def describe(file: ModelFile, verdict: Verdict) -> Line:
    """The line of one file."""
    facts, rating = verdict.facts, verdict.rating
    memory = rating and {
        "devices": [asdict(share) for share in rating.memory.devices],
        "host": asdict(rating.memory.host),
    }
    rated = rating if rating and rating.fit else None
    return Line(
        path=printable(os.path.abspath(file.path)),
        path_bytes=path_base64(os.path.abspath(file.path)),
        name=file.name,
        kind=facts.kind,
        architecture=printable(facts.architecture),
        parameters=facts.parameters,
        quantization=facts.quantization,
        size_bytes=file.size_bytes,
        modified_s=file.modified_ns / 1e9,
        context_length=facts.context_length or None,
        n_ctx=rating and rating.n_ctx,
        memory=memory,
        fit=rated and rated.fit,
        reason=rating.reason if rating else verdict.why_not,
        max_context=rated and rated.max_context,
        gpu_layers=rated and rated.gpu_layers,
        n_layers=rating and rating.n_layers,
        cpu_moe=rated and rated.cpu_moe,
        estimate=rating and rating.memory.estimate,
    )


class Filter(msgspec.Struct, frozen=True):
    """Which lines to report. Architectures and quantisations are patterns as a shell's, in any capitals."""

    fits: bool = False
    min_size: int | None = None
    max_size: int | None = None
    modified_after_s: float | None = None
    architectures: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()

    def wants_file(self, file: ModelFile) -> bool:
        """Whether the file may be wanted, by what is known without its header."""
        size = file.size_bytes
        return (
            (self.min_size is None or size >= self.min_size)
            and (self.max_size is None or size <= self.max_size)
            and (self.modified_after_s is None or file.modified_ns / 1e9 >= self.modified_after_s)
        )

    def wants(self, line: Line) -> bool:
        return (
            (not self.fits or line.fit == "fits")
            and _matches(line.architecture, self.architectures)
            and _matches(line.quantization, self.quantizations)
        )


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(text.lower(), pattern.lower()) for pattern in patterns)


# What each order puts first: the largest, the newest, what fits best.
SORTS: dict[str, Callable[[Line], Any]] = {
    "size": lambda line: -line.size_bytes,
    "age": lambda line: -line.modified_s,
    "name": lambda line: 0,
    "fit": lambda line: (FIT_ORDER[line.fit], -(line.device_bytes or 0)),
    "memory": lambda line: -(line.device_bytes or 0),
    "params": lambda line: -line.parameters,
    "context": lambda line: -(line.max_context or 0),
}


def sort_lines(lines: list[Line], by: str, *, reverse: bool = False) -> None:
    """Order lines by one of SORTS; lines that are equal there, by name and path."""
    key = SORTS[by]
    lines.sort(key=lambda line: (key(line), line.name.lower(), line.path), reverse=reverse)
