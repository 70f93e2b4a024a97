"""Words that come in pieces, broken into lines of a terminal as they come. Pure."""

from __future__ import annotations

import re

from modelpipes.terminal.safetext import TAB_COLUMNS
from modelpipes.terminal.width import WIDEST_CELL, cells, columns_of

_TOKEN = r"\n|[^\S\n]+|\S+"


class Wrapper:
    """Breaks lines at spaces, so that no word is cut that a line can hold; wide characters need no space.

    Nothing is held back: a word that grows beyond the line is taken from its end, and put on the next. The width may
    change with every piece; the last column stays free, as a cursor behind it is on either line.
    """

    def __init__(self, used: int = 0) -> None:
        """`used` columns of the first line are taken already."""
        self._column = used
        self._is_begun = used > 0  # there is more in the line, before the word, than its indentation
        self._word = ""  # at the end of what came out, and how many columns it takes
        self._word_columns = 0

    def feed(self, text: str, columns: int) -> str:
        """The next piece, with what makes it fit."""
        width = max(columns - 1, WIDEST_CELL)
        out: list[str] = []
        for token in re.compile(_TOKEN).findall(text.replace("\t", " " * TAB_COLUMNS)):
            if token == "\n":
                self._break(out)
            elif token.isspace():
                self._end_word()
                if self._column + len(token) <= width:
                    out.append(token)
                    self._column += len(token)
                else:  # the line is full: the next word finds no room
                    self._column = width
            else:
                self._add(out, token, width)
        return "".join(out)

    def _add(self, out: list[str], piece: str, width: int) -> None:
        """Add to the word at the end."""
        before = self._word_columns
        whole = self._word + piece
        needed = columns_of(whole)
        if self._column + needed - before <= width:
            out.append(piece)
            self._column += needed - before
        elif self._is_begun and needed <= width and not _is_wide(whole):
            out.append(f"\x1b[{before}D\x1b[K" if before else "")
            self._break(out)
            out.append(whole)
            self._column = needed
        else:
            for cell, taken in ((char, 1) for char in piece) if piece.isascii() else cells(piece):
                if self._column + taken > width:
                    self._break(out)
                out.append(cell)
                self._column += taken
            whole, needed = "", 0  # what follows goes on where this ends, and is no longer moved
            self._is_begun = True
        self._word, self._word_columns = whole, needed

    def _end_word(self) -> None:
        if self._word:
            self._is_begun = True
        self._word, self._word_columns = "", 0

    def _break(self, out: list[str]) -> None:
        out.append("\n")
        self._column, self._is_begun = 0, False
        self._word, self._word_columns = "", 0


def _is_wide(word: str) -> bool:
    """Has it characters of two columns, as Chinese and Japanese write without spaces?"""
    return not word.isascii() and any(taken == WIDEST_CELL for _, taken in cells(word))
