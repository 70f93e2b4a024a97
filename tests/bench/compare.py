"""Two results side by side: what of ours got better or worse beyond the noise."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tests.bench.results import Figure, Results
from tests.bench.spread import LEAST_CHANGE, NOISE_DEVIATIONS, Verdict, judge

RULE = (
    f"Changed: the medians differ by more than {NOISE_DEVIATIONS} times the sum of both runs' median absolute "
    f"deviations, and by more than {LEAST_CHANGE:.0%}. Ratios are compared where there are any, values else."
)

BUSY = 0.5  # load a core, from which on runs are no longer alike


class Change(NamedTuple):
    """One figure then and now."""

    figure: Figure
    verdict: Verdict
    was: float
    now: float
    is_ratio: bool

    def line(self) -> str:
        part, table, row, column = self.figure.name
        what = f"ratio to {self.figure.against}" if self.is_ratio else self.figure.unit
        change = f" ({(self.now / self.was - 1) * 100:+.0f} %)" if self.was else ""
        return f"{self.verdict}: {part}, {table}: {row}, {column}: {self.was:.4g} -> {self.now:.4g} {what}{change}"


def compare(old: Results, new: Results) -> list[Change]:
    """Every figure of ours that both have; values only where the machines are alike."""
    then = {figure.name: figure for figure in old.figures if figure.is_ours}
    changes = []
    for figure in new.figures:
        before = then.get(figure.name)
        if before is None or not figure.is_ours:
            continue
        is_ratio = bool(figure.ratio_runs and before.ratio_runs and figure.against == before.against)
        was, now = (before.ratio_runs, figure.ratio_runs) if is_ratio else (before.runs, figure.runs)
        if is_ratio or old.machine.is_like(new.machine):
            verdict = judge(was, now, lower_is_better=figure.lower_is_better)
            changes.append(Change(figure, verdict, median(was), median(now), is_ratio))
    return changes


def report(old: Results, new: Results, changes: Sequence[Change]) -> str:
    """What changed, and how it was judged."""
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("same", "unknown")}
    lines = [change.line() for kind in ("worse", "better") for change in changes if change.verdict == kind]
    lines = lines or ["nothing changed beyond the noise"]
    lines.append(f"{counts['same']} the same, {counts['unknown']} with too few runs to tell. {RULE}")
    if not old.machine.is_like(new.machine):
        lines.append(f"Another machine then, so only ratios were compared: {old.machine.name()}")
    if max(run.machine.load_before[0] / run.machine.cores for run in (old, new)) > BUSY:
        loads = " and ".join(f"{run.machine.load_before[0]:.1f}" for run in (old, new))
        lines.append(f"The machine had other work (load {loads} before); measure again when it is idle.")
    if old.quick or new.quick:
        lines.append("A quick run is too short to judge by.")
    return "\n".join(lines) + "\n"
