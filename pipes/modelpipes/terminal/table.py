"""Draw a table of text, as wide as it is or as a terminal allows. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.width import columns_of, without_beginning, without_middle

GAP = 2  # spaces between columns
# What the first and the last column keep of a terminal's width: at 80, two short ones have room between them.
FIRST_SHARE, LAST_SHARE = 4, 5


def draw_table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    width: int | None = None,
    *,
    right: Container[str] = (),
    spare: Iterable[str] = (),
) -> str:
    """A table with one line a row, each ended; columns of numbers and those named in `right` to the right.

    With a `width`, in columns of a terminal, it is no wider, as far as that can be: columns of `spare` are left out,
    in this order, until the others have room; then what is too long loses its middle in the first column and its
    beginning in the last (of a path, the end tells more). Drawn here because importing tabulate takes longer than all
    else that `list-seats` does.
    """
    values = list(zip(*rows, strict=True)) or [() for _ in headers]
    columns = {header: [header, *map(_text, column)] for header, column in zip(headers, values, strict=True)}
    numbers = {header for header, column in zip(headers, values, strict=True) if all(map(_is_number, column))}
    widths = {header: max(map(columns_of, column)) for header, column in columns.items()}
    if width is not None:
        _narrow(columns, widths, width, spare)
    aligned = [
        _align(column, widths[header], to_the_right=header in numbers or header in right)
        for header, column in columns.items()
    ]
    gap = " " * GAP
    return "".join(gap.join(line).rstrip() + "\n" for line in zip(*aligned, strict=True))


def _narrow(columns: dict[str, list[str]], widths: dict[str, int], width: int, spare: Iterable[str]) -> None:
    """Leave out and shorten columns until a table has `width`."""
    names = list(columns)
    first, last = names[0], names[-1]
    least = widths | {first: min(widths[first], width // FIRST_SHARE), last: min(widths[last], width // LAST_SHARE)}
    for header in spare:
        if _sum(least) <= width:
            break
        del columns[header], widths[header], least[header]
    for header in (first, last):  # the first has all that it needs, if it can be; the last what is left
        free = max(width - _sum(least), 0)
        widths[header] = least[header] = min(widths[header], least[header] + free)
    columns[first] = [without_middle(text, widths[first]) for text in columns[first]]
    columns[last] = [without_beginning(text, widths[last]) for text in columns[last]]


def _sum(widths: dict[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _align(column: list[str], width: int, *, to_the_right: bool) -> list[str]:
    padded = ((text, " " * (width - columns_of(text))) for text in column)
    return [blank + text if to_the_right else text + blank for text, blank in padded]


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float)


def _text(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return text if text.isprintable() else make_line(text)
