"""Words that come in pieces, broken into lines of a terminal as they come. Pure."""

from __future__ import annotations

import re

from modelpipes.terminal.safetext import TAB_COLUMNS
from modelpipes.terminal.width import WIDEST_CELL, cells, columns_of

_TOKEN = r"\n|[^\S\n]+|\S+"


class Wrapper:
    """Breaks lines at spaces, so that no word is cut that a line can hold; wide characters need no space.

    A word whose end has not come yet is held back. The width may change with every piece.
    """

    def __init__(self, used: int = 0) -> None:
        """`used` columns of the first line are taken already."""
        self._column = used
        self._is_begun = used > 0  # there is more in the line than its indentation
        self._held = ""

    @property
    def held(self) -> str:
        """What is to come after what came out: the space and the word that are not whole yet."""
        return self._held

    def feed(self, text: str, columns: int) -> str:
        """The next piece, with the newlines that make it fit."""
        columns = max(columns, WIDEST_CELL)
        text, self._held = self._held + text.replace("\t", " " * TAB_COLUMNS), ""
        out: list[str] = []
        space = ""
        tokens = re.compile(_TOKEN).findall(text)
        for number, token in enumerate(tokens, 1):
            if token == "\n":
                out.append("\n")
                self._column, self._is_begun, space = 0, False, ""
            elif token.isspace():
                space = token
            elif number < len(tokens):
                self._place(out, space, token, columns)
                space = ""
            else:
                self._hold(out, space, token, columns)
                space = ""
        self._held = self._held or space
        return "".join(out)

    def flush(self, columns: int) -> str:
        """What was held back: the text has ended."""
        held, self._held = self._held, ""
        out: list[str] = []
        word = held.lstrip()
        if word:
            self._place(out, held[: len(held) - len(word)], word, max(columns, WIDEST_CELL))
        return "".join(out)

    def _hold(self, out: list[str], space: str, word: str, columns: int) -> None:
        """Hold back a word that may go on: all of it, or its last character where it may be broken anywhere."""
        if columns_of(word) < columns and not _is_wide(word):
            self._held = space + word
            return
        last = word[-1] if word.isascii() else list(cells(word))[-1][0]
        if len(last) < len(word):
            self._place(out, space, word[: -len(last)], columns)
            space = ""
        self._held = space + last

    def _place(self, out: list[str], space: str, word: str, columns: int) -> None:
        """Put a word on this line, or on the next."""
        needed = columns_of(word)
        if self._column + len(space) + needed <= columns:
            self._put(out, space + word, len(space) + needed)
            return
        if needed <= columns and self._is_begun and not _is_wide(word):
            self._break(out)
            self._put(out, word, needed)
            return
        if self._column + len(space) < columns:  # its indentation stays, also where the word has to be cut
            self._put(out, space, len(space), is_word=False)
        for cell, taken in cells(word) if not word.isascii() else ((char, 1) for char in word):
            if self._column + taken > columns:
                self._break(out)
            self._put(out, cell, taken)

    def _put(self, out: list[str], text: str, columns: int, *, is_word: bool = True) -> None:
        out.append(text)
        self._column += columns
        self._is_begun |= is_word

    def _break(self, out: list[str]) -> None:
        out.append("\n")
        self._column, self._is_begun = 0, False


def _is_wide(word: str) -> bool:
    """Has it characters of two columns, as Chinese and Japanese write without spaces?"""
    return not word.isascii() and any(taken == WIDEST_CELL for _, taken in cells(word))
