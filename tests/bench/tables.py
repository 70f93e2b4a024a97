"""Results as tables, ratios first: for a terminal, and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tests.bench.results import Figure, Results

_UNITS = {"us": " µs", "ms": " ms", "per_second": "/s", "KiB": " KiB", "times": " times", "count": ""}
_THOUSAND = {"us": (" ms", 1000.0), "per_second": ("k/s", 1000.0)}


def quantity(value: float, unit: str) -> str:
    """A value with its unit, to three figures."""
    text = _UNITS[unit]
    if abs(value) >= 1000 and unit in _THOUSAND:
        text, divisor = _THOUSAND[unit]
        value /= divisor
    return f"{number(value)}{text}"


def number(value: float) -> str:
    """A number to three figures; whole from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def cell(figure: Figure) -> str:
    """What stands in the table for a figure: the ratio first."""
    value = quantity(figure.value, figure.unit)
    if figure.p99 is not None:
        value = f"{value} / {quantity(figure.p99, figure.unit)}"
    if figure.ratio is not None:
        value = f"{figure.ratio:.2f} ({value})" if figure.ratio < 100 else f"{figure.ratio:,.0f} ({value})"
    if figure.slope is not None and figure.slope_error is not None:
        value += f", {figure.slope:+.2g} ± {figure.slope_error:.1g} per 1000 turns"
    return value


def rows_of(figures: Sequence[Figure]) -> list[list[str]]:
    """The figures of one table: first the heads of its columns, then its rows, as they were measured."""
    columns = list(dict.fromkeys(figure.column for figure in figures))
    rows = list(dict.fromkeys(figure.row for figure in figures))
    found = {(figure.row, figure.column): cell(figure) for figure in figures}
    return [["", *columns], *([row, *(found.get((row, column), "–") for column in columns)] for row in rows)]


def title(figures: Sequence[Figure]) -> str:
    against = next((figure.against for figure in figures if figure.against), None)
    return figures[0].table + (f"; ratio to {against}" if against else "")


def terminal(results: Results) -> str:
    """Everything, for a terminal."""
    lines = []
    for table in _tables(results):
        rows = rows_of(table)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(title(table))
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.append("")
    for promise in results.promises:
        lines.append(f"{'holds' if promise.holds else 'BROKEN':8}{promise.what}: {promise.found} ({promise.bound})")
    lines += [f"skipped {skipped.what}: {skipped.why}" for skipped in results.skipped]
    return "\n".join([*lines, _machine(results)]) + "\n"


def markdown(results: Results) -> str:
    """Everything, as Markdown."""
    lines = [_machine(results), ""]
    for table in _tables(results):
        head, *rows = rows_of(table)
        lines += _markdown_rows([title(table), *head[1:]], rows)
    if results.promises:
        found = [[p.what, p.bound, p.found, "yes" if p.holds else "**no**"] for p in results.promises]
        lines += _markdown_rows(["it must hold", "bound", "found", "holds"], found)
    lines += [f"Skipped: {skipped.what}: {skipped.why}." for skipped in results.skipped]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(text.replace('|', '&#124;') for text in row)} |" for row in lines), ""]


def _tables(results: Results) -> list[list[Figure]]:
    return [list(table) for _, table in groupby(results.figures, lambda figure: (figure.part, figure.table))]


def _machine(results: Results) -> str:
    kind = "a quick run, which proves nothing" if results.quick else f"medians of {results.rounds} rounds"
    return f"{results.machine.name()}; {kind}; {results.began}"
