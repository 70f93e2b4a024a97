"""What a report tells as rows and columns, how they fit a terminal, and the plain table of light commands. Pure."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

from msgspec import Struct

from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.width import columns_of, without_beginning, without_middle

GAP = 2  # spaces between columns
# What the first and the last column keep of a terminal's width: at 80, two short ones have room between them.
FIRST_SHARE, LAST_SHARE = 4, 5


class Table(Struct, frozen=True):
    """Rows under their headers; columns of numbers and those named in `right` stand to the right.

    In a narrow terminal the columns of `spare` may be left out, in this order.
    """

    headers: Sequence[str]
    rows: Collection[Sequence[object]]
    right: Container[str] = ()
    spare: Iterable[str] = ()


class Column(Struct):
    """A column of a table; its cells are safe lines, the header the first of them."""

    header: str
    cells: list[str]
    is_right: bool
    width: int = 0


def columns(table: Table) -> list[Column]:
    """The columns of a table, whole."""
    values = list(zip(*table.rows, strict=True)) or [() for _ in table.headers]
    return [
        Column(header, [header, *map(_text, cells)], header in table.right or all(map(_is_number, cells)))
        for header, cells in zip(table.headers, values, strict=True)
    ]


def fit(table: Table, width: int | None = None) -> list[tuple[str, ...]]:
    """The lines of a table, the headers first, each cell padded to its column.

    With a `width`, in columns of a terminal, they are no wider, as far as that can be: columns of `spare` are left
    out until the others have room; then what is too long loses its middle in the first column and its beginning in the
    last (of a path, the end tells more).
    """
    shown = columns(table)
    for column in shown:
        column.width = max(map(columns_of, column.cells))
    if width is not None:
        _narrow(shown, width, table.spare)
    return list(zip(*map(_align, shown), strict=True))


def draw_table(table: Table, width: int | None = None) -> str:
    """A table with one line a row, each ended, fitted to a `width`.

    For commands that only touch FIFOs: importing tabulate takes longer than all else that `list-seats` does. Other
    reports are drawn by `drawing.draw`, which makes the same of them.
    """
    gap = " " * GAP
    return "".join(gap.join(line).rstrip() + "\n" for line in fit(table, width))


def _narrow(shown: list[Column], width: int, spare: Iterable[str]) -> None:
    """Leave out and shorten columns until a table has `width`."""
    first, last = shown[0], shown[-1]
    whole = first.width, last.width
    first.width = min(first.width, width // FIRST_SHARE)
    last.width = min(last.width, width // LAST_SHARE)
    for header in spare:
        if _sum(shown) <= width:
            break
        shown[:] = [column for column in shown if column.header != header]
    for column, most in zip((first, last), whole, strict=True):
        # The first has all that it needs, if it can be; the last what is left.
        column.width = min(most, column.width + max(width - _sum(shown), 0))
    first.cells = [without_middle(text, first.width) for text in first.cells]
    last.cells = [without_beginning(text, last.width) for text in last.cells]


def _sum(shown: list[Column]) -> int:
    return sum(column.width for column in shown) + GAP * (len(shown) - 1)


def _align(column: Column) -> list[str]:
    padded = ((text, " " * (column.width - columns_of(text))) for text in column.cells)
    return [blank + text if column.is_right else text + blank for text, blank in padded]


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float)


def _text(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return text if text.isprintable() else make_line(text)
