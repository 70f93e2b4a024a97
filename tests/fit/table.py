"""llama.cpp's own figures for many models under many settings, with the headers of the models.

Two tables (README.md says how they were measured): `reference.jsonl`, of the models in `shapes.py`, and
`archs.jsonl.gz`, of those in `archs.py` and of the tiny ones whose headers stand in the table itself.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modelpipes.fit.hparams import Hparams, read_hparams
from modelpipes.fit.placement import Weights, weigh
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header, Tensor
from modelpipes.gguf.types import TENSOR_TYPES
from tests.fit.archs import MODELS
from tests.fit.shapes import SHAPES

FOLDER = Path(__file__).parent
REFERENCE = FOLDER / "reference.jsonl"
ARCHS = FOLDER / "archs.jsonl.gz"

# How measuring ends where llama.cpp refuses a model or its settings, or stops itself.
NO_MODEL, NO_CONTEXT, ABORT = "no model", "no context", "abort"


class Figures(NamedTuple):
    """Bytes of one device, or of the host."""

    model: int
    context: int
    compute: int


class Case(NamedTuple):
    """One measured setting: figures of every device, the host last; None where llama.cpp refuses it."""

    name: str
    header: Header
    settings: EngineSpec
    figures: tuple[Figures, ...] | None


def make_header(name: str, metadata: Mapping[str, Any], tensors: list[tuple[str, int, tuple[int, ...]]]) -> Header:
    """A header as if it had been read from a file; tensors are name, type and shape."""
    infos, offset = [], 0
    for tensor, type, shape in tensors:
        kind = TENSOR_TYPES[type]
        n_bytes = math.prod(shape) // kind.block_size * kind.block_bytes
        infos.append(Tensor(tensor, shape, type, offset, n_bytes))
        offset += -(-n_bytes // 32) * 32
    return Header(name, metadata, tuple(infos), None, 3, "little", 32, 0, offset, name.encode())


@cache
def shape_header(name: str) -> Header:
    """The header of a model of `shapes.py` or `archs.py`."""
    model = SHAPES[name]() if name in SHAPES else MODELS[name].build()
    return make_header(name, model.metadata, [(tensor.name, int(tensor.type), tensor.dims) for tensor in model.tensors])


def reference_cases() -> Iterator[Case]:
    for line in REFERENCE.read_text().splitlines():
        row = json.loads(line)
        settings = EngineSpec(
            n_ctx=row["n_ctx"],
            n_ubatch=row["n_ubatch"],
            n_parallel=row["n_parallel"],
            kv_unified=row["kv_unified"],
            flash_attn=row["flash_attn"],
            type_k=row["type_k"],
            type_v=row["type_v"],
            n_gpu_layers=row["n_gpu_layers"],
            cpu_moe=row["cpu_moe"],
            n_outputs=row["n_outputs"],
            n_devices=row["ngpu"],
        )
        places = [*row["devices"], row["host"]]
        figures = tuple(Figures(place["model"], place["context"], place["compute"]) for place in places)
        yield Case(row["shape"], shape_header(row["shape"]), settings, figures)


def archs_cases() -> Iterator[Case]:
    """All settings of the table but those at which llama.cpp stopped itself."""
    with gzip.open(ARCHS, "rt") as file:
        all_settings = [read_settings(row) for row in json.loads(next(file))["settings"]]
        for line in file:
            row = json.loads(line)
            header = _read_header(row)
            for settings, figures in zip(all_settings, row["figures"], strict=True):
                if figures == ABORT:
                    continue
                measured = None if isinstance(figures, str) else tuple(Figures(*place) for place in figures)
                yield Case(row["name"], header, settings, measured)


def read_settings(row: Mapping[str, Any]) -> EngineSpec:
    split = row["tensor_split"]
    return EngineSpec(**{**row, "tensor_split": tuple(split) if split else None})


def _read_header(row: Mapping[str, Any]) -> Header:
    if "metadata" not in row:
        return shape_header(row["name"])
    return make_header(
        row["name"], row["metadata"], [(name, type, tuple(shape)) for name, type, shape in row["tensors"]]
    )


def _group(*tables: Iterator[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for table in tables:
        for case in table:
            groups.setdefault(case.name, []).append(case)
    return groups


CASES = _group(reference_cases(), archs_cases())


@cache
def weighed(name: str) -> tuple[Hparams, Weights]:
    """A measured model's hyper-parameters and weights."""
    header = CASES[name][0].header
    hparams = read_hparams(header)
    return hparams, weigh(header, hparams)
