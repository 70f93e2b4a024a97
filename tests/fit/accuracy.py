"""How near the prediction comes to llama.cpp's own figures: `python -m tests.fit.accuracy [--all]`.

One line for each model: how many settings were measured, how many agree to the byte, and the worst compute
buffer and total. Without --all, those of the reference table and the models that are not exact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from modelpipes.errors import PipesError
from modelpipes.fit import predict_memory
from tests.fit.shapes import SHAPES
from tests.fit.table import CASES, Case

MIB = 1 << 20


class Miss(NamedTuple):
    """How far one measured setting was missed, in bytes; below zero: too little was predicted."""

    name: str
    estimate: str
    model: int
    context: int
    compute: Sequence[int]  # of every device, the host last
    measured_compute: Sequence[int]
    total: int
    measured_total: int

    @property
    def is_exact(self) -> bool:
        return not self.model and not self.context and not any(self.compute)

    @property
    def worst(self) -> int:
        """The compute buffer that was missed most."""
        return max(self.compute, key=abs)

    def is_near(self, share: float, mib: int) -> bool:
        """Whether every compute buffer is within this share or so many MiB."""
        pairs = zip(self.compute, self.measured_compute, strict=True)
        return all(abs(miss) <= max(share * measured, mib * MIB) for miss, measured in pairs)


def measure(case: Case) -> Miss | None:
    """One setting compared; None where llama.cpp refuses it, as we then do."""
    if case.figures is None:
        return None
    memory = predict_memory(case.header, case.settings)
    shares = [*memory.devices, memory.host]
    totals = [share.model_bytes + share.context_bytes + share.compute_bytes for share in shares]
    measured_total = sum(map(sum, case.figures))
    return Miss(
        case.name,
        memory.estimate,
        max(abs(share.model_bytes - figures.model) for share, figures in zip(shares, case.figures, strict=True)),
        max(abs(share.context_bytes - figures.context) for share, figures in zip(shares, case.figures, strict=True)),
        [share.compute_bytes - figures.compute for share, figures in zip(shares, case.figures, strict=True)],
        [figures.compute for figures in case.figures],
        sum(totals) - measured_total,
        measured_total,
    )


@cache
def misses(name: str) -> list[Miss]:
    """All settings of one model that llama.cpp takes."""
    return [miss for case in CASES[name] if (miss := measure(case)) is not None]


def report(names: Sequence[str], *, every: bool) -> str:
    """A table of the models, and a line that sums it up."""
    lines = [f"{'model':32} {'estimate':9} {'rows':>5} {'exact':>5}  {'worst compute':>14}  {'worst total':>13}"]
    rows = exact = near = 0
    for name in names:
        found = misses(name)
        n_exact = sum(miss.is_exact for miss in found)
        rows, exact, near = rows + len(found), exact + n_exact, near + sum(miss.is_near(0.03, 16) for miss in found)
        if not found or not (every or n_exact < len(found) or name in SHAPES):
            continue
        compute, total = max((miss.worst for miss in found), key=abs), max((miss.total for miss in found), key=abs)
        lines.append(
            f"{name:32} {found[0].estimate:9} {len(found):5} {n_exact:5}"
            f"  {compute / MIB:+10.2f} MiB  {total / MIB:+9.2f} MiB"
        )
    lines.append(f"{exact} of {rows} settings to the byte on every device and the host; {near} within 3 % or 16 MiB")
    return "\n".join(lines)


def main() -> None:
    try:
        print(report(list(CASES), every="--all" in sys.argv))
    except PipesError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
