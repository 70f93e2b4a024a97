"""How many columns of a terminal a text takes, and texts cut and folded to so many. Pure.

What a reader sees as one character (a letter with its marks, a family of emoji: Unicode's grapheme cluster, UAX #29)
is measured whole and never cut. Only where one is wider than any single character, as a long chain of Hangul letters
may be, its characters count each for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

ELLIPSIS = "…"  # one column; a text that only we shortened is measured without wcwidth
WIDEST_CELL = 2
INDENT = "  "


def columns_of(text: str) -> int:
    """Columns that a text takes, as wcwidth knows them: two for a wide character, none for a combining one."""
    if text.isascii() or text.replace(ELLIPSIS, "").isascii():
        return len(text)
    return sum(columns for _, columns in cells(text))


def clip(text: str, columns: int) -> str:
    """The beginning of a text, as much as fits."""
    return text[: _end_of_piece(text, 0, columns)]


def without_middle(text: str, columns: int) -> str:
    """The text, or its two ends around an ellipsis where it is wider."""
    if columns_of(text) <= columns:
        return text
    end = _tail(text, columns // 2)
    return f"{clip(text, columns - 1 - columns_of(end))}{ELLIPSIS}{end}"


def without_beginning(text: str, columns: int) -> str:
    """The text, or its end after an ellipsis where it is wider."""
    return text if columns_of(text) <= columns else ELLIPSIS + _tail(text, columns - 1)


def fold(line: str, columns: int) -> Iterator[str]:
    """The pieces of a line, none wider; broken at a space where there is one, but not in its indentation.

    `columns` is at least WIDEST_CELL.
    """
    start = 0
    while (end := _end_of_piece(line, start, columns)) < len(line):
        space = line.rfind(" ", start, end + 1)
        if space > start and not line[start:space].isspace():
            yield line[start:space]
            start = space + 1
        else:
            yield line[start:end]
            start = end
    yield line[start:]


def fit(lines: Iterable[tuple[str, str]], columns: int | None) -> Iterator[str]:
    """Lines, each after its prefix, ended; folded to fit, and then none begins where only a whole line does."""
    for prefix, line in lines:
        free = None if columns is None else columns - len(prefix or INDENT)
        pieces = [line] if free is None else fold(line, max(WIDEST_CELL, free))
        for number, piece in enumerate(pieces):
            yield f"{prefix or INDENT * (number > 0)}{piece}".rstrip(" ") + "\n"


def _end_of_piece(text: str, start: int, columns: int) -> int:
    """Where a piece from `start` ends that fills the columns, spaces not considered."""
    if text.isascii():
        return min(start + max(columns, 0), len(text))
    end = start
    for cell, taken in cells(text, start):
        columns -= taken
        if columns < 0:
            return end
        end += len(cell)
    return end


def _tail(text: str, columns: int) -> str:
    """The end of a text, as much as fits."""
    if text.isascii():
        return text[max(len(text) - max(columns, 0), 0) :]
    begin = len(text)
    for cell, taken in reversed(list(cells(text))):
        columns -= taken
        if columns < 0:
            break
        begin -= len(cell)
    return text[begin:]


def cells(text: str, start: int = 0) -> Iterator[tuple[str, int]]:
    """What is never cut, from `start` on, and the columns that each takes."""
    from wcwidth import iter_graphemes, wcswidth  # its import takes longer than all else that a command for FIFOs does

    for cluster in iter_graphemes(text, start):
        columns = max(wcswidth(cluster), 0)  # -1 of a control character
        if columns <= WIDEST_CELL:
            yield cluster, columns
        else:
            yield from ((char, max(wcswidth(char), 0)) for char in cluster)
