"""What a look at the data of a model file finds, as it is reported."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["nan", "infinity", "zeros", "unchecked"]
Severity: TypeAlias = Literal["error", "suspect", "unchecked"]
Verdict: TypeAlias = Literal["sound", "unchecked", "suspect", "damaged"]


class DataFinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wrong, or may be, where it shows first.

    `path` is the printable path of the file, of shards the one. `row` counts the rows of the tensor from 0, `block` the
    blocks (where the type has none, the values) of that row; `offset` is the byte of the file. `size_bytes` is the
    length of the zeros or of the number; 0 for what was not checked. `n_tensors` have the same.
    """

    kind: Kind
    severity: Severity
    path: str
    tensor: str
    type: str
    row: int
    block: int
    offset: int
    size_bytes: int
    n_tensors: int
    reason: str


class DataCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the tensors of a model hold: at most one finding of each sort, errors first.

    `verdict` is `damaged` where there is an error, else `suspect`, `unchecked` where nothing was found but some tensors
    have a type that is not known, else `sound`. `checked_bytes` were read.
    """

    verdict: Verdict
    checked_bytes: int
    findings: list[DataFinding]
