"""Draw a table of text, as wide as it is or as a terminal allows. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from modelpipes.safetext import make_line

GAP = 2  # spaces between columns
MIN_FIRST, MIN_LAST = 24, 16  # columns of the terminal that the first and the last one keep


def draw_table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    width: int | None = None,
    *,
    right: Container[str] = (),
    spare: Iterable[str] = (),
) -> str:
    """A table with one line a row, each ended; columns of numbers and those named in `right` to the right.

    With a `width` it has no more columns of the terminal: those of `spare` are left out, in this order, until the
    others have room; then the last one loses the beginning of what is too long (the end of a path tells more), and
    the first one the end. Below what the others need, it is wider. Drawn here because importing tabulate takes longer
    than all else that `list-seats` does.
    """
    values = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in headers]
    numbers = {
        header for header, column in zip(headers, values, strict=True) if column and all(map(_is_number, column))
    }
    columns = {header: [header, *map(_text, column)] for header, column in zip(headers, values, strict=True)}
    widths = {header: max(map(_width, column)) for header, column in columns.items()}
    if width is not None:
        _narrow(columns, widths, width, spare)
    cells = [_align(column, widths[header], header in numbers or header in right) for header, column in columns.items()]
    gap = " " * GAP
    return "".join(gap.join(line).rstrip() + "\n" for line in zip(*cells, strict=True))


def _narrow(columns: dict[str, list[str]], widths: dict[str, int], width: int, spare: Iterable[str]) -> None:
    """Leave out and shorten columns until a table has `width`."""
    first, *_, last = [*columns, *columns]
    least = {**widths, first: min(widths[first], MIN_FIRST), last: min(widths[last], MIN_LAST)}
    for header in spare:
        if _sum(least) <= width:
            break
        del columns[header], widths[header], least[header]
    for header in (first, last):  # the first one has what the others leave, up to all that it needs; the last the rest
        left = width - _sum(least) + least[header]
        widths[header] = least[header] = max(least[header], min(widths[header], left))
    columns[first] = [_without_end(text, widths[first]) for text in columns[first]]
    columns[last] = [_without_beginning(text, widths[last]) for text in columns[last]]


def _sum(widths: dict[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _align(column: list[str], width: int, to_the_right: bool) -> list[str]:
    if to_the_right:
        return [" " * (width - _width(text)) + text for text in column]
    return [text + " " * (width - _width(text)) for text in column]


def _without_end(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[:-1]
    return text + "…"


def _without_beginning(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[1:]
    return "…" + text


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float)


def _text(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return text if text.isprintable() else make_line(text)


def _width(text: str) -> int:
    """Columns of the terminal that a text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)
