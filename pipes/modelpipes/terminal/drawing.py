"""The tables of reports, drawn by tabulate: for a terminal, or whole for another program, a page, an issue.

tabulate takes longer to import than click does, so only what draws imports it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelpipes.terminal.markdown import escape_cell
from modelpipes.terminal.table import Column, Table, columns, fit

SCREEN = "table"
DOCUMENTS = ("github", "tsv", "html")  # in these nothing is left out or shortened
# What Unicode calls lines, and some programs that read a document line by line; make_line knows those of ASCII.
SEPARATORS = str.maketrans("\u2028\u2029", "  ")


def draw(table: Table, format_: str = SCREEN, width: int | None = None) -> str:
    """A table in one of DOCUMENTS; else for a terminal, fitted to a `width`. Lines are ended, text of others is safe.

    `github`: a table of GitHub's Markdown. `tsv`: a line a row, tabs between cells, nothing quoted. `html`: a table
    element in ASCII, for a page of any encoding.
    """
    if format_ not in DOCUMENTS:
        return _draw_padded(fit(table, width)) + "\n"
    found = columns(table)
    for column in found:
        column.cells = [cell.translate(SEPARATORS) for cell in column.cells]
    if format_ == "tsv":
        return _draw_tsv(found) + "\n"
    if format_ == "github":
        for column in found:
            column.cells = [escape_cell(cell) for cell in column.cells]
    drawn = _draw_aligned(found, format_) + "\n"
    return drawn if format_ == "github" else drawn.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _draw_padded(lines: Sequence[Sequence[str]]) -> str:
    """Cells that we padded: tabulate gives every header room for two more, and measures some clusters otherwise."""
    from tabulate import tabulate

    return tabulate(lines[1:], headers=lines[0], tablefmt="plain", stralign=None, numalign=None, disable_numparse=True)


def _draw_aligned(found: Sequence[Column], format_: str) -> str:
    from tabulate import tabulate

    headers, rows = _split(found)
    sides = [("right" if column.is_right else "left") for column in found] if rows else None
    return tabulate(rows, headers=headers, tablefmt=format_, colalign=sides, disable_numparse=True)


def _draw_tsv(found: Sequence[Column]) -> str:
    """tabulate's own tsv pads its cells, and leaves out those at the end of a row that are empty."""
    from tabulate import TableFormat, tabulate

    def join(cells: list[str], widths: list[int], sides: list[str]) -> str:
        return "\t".join(cells)

    headers, rows = _split(found)
    form = TableFormat(None, None, None, None, join, join, 0, None)
    return tabulate(rows, headers=headers, tablefmt=form, stralign=None, numalign=None, disable_numparse=True)


def _split(found: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """The headers, and the rows below them."""
    headers, *rows = ([*line] for line in zip(*(column.cells for column in found), strict=True))
    return headers, rows
