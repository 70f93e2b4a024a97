r"""Server-sent events from the bytes that carry them, in whatever pieces these come; no I/O.

As in the HTML standard of WHATWG, 9.2.6 "Interpreting an event stream": lines end in \n, \r\n or \r, a BOM at the
beginning is dropped, the `data` lines of one event are joined with \n, a blank line ends it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"
RETRY_DIGITS = 9  # eleven days; more is no wait
LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class ServerEvent:
    """One event. `data` is UTF-8 for who reads it to decode; `id` the last one named so far."""

    data: bytes
    type: str = "message"
    id: str = ""
    field: str = "data"  # another one where `EventParser` was told to give its lines, too


class EventParser:
    """Feed it what comes; `retry_ms` is what the server wants to be waited before it is asked again, if it said."""

    def __init__(self, alone: Collection[str] = ()) -> None:
        """`alone`: fields that the standard does not know, of which each line counts as an event of its own."""
        self.retry_ms: int | None = None
        self._alone = frozenset(alone)
        self._beginning: bytes | None = b""  # as long as it may still be a BOM
        self._line: list[bytes] = []  # pieces of the line that has begun
        self._ended_in_cr = False  # a \n that follows belongs to it
        self._data: list[bytes] = []
        self._type = ""
        self._id = ""

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that this piece makes whole."""
        if self._beginning is not None:
            self._beginning += piece
            if len(self._beginning) < len(BOM) and BOM.startswith(self._beginning):
                return []
            piece, self._beginning = self._beginning.removeprefix(BOM), None
        if self._ended_in_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._ended_in_cr = False
        if not piece:
            return []
        self._ended_in_cr = piece.endswith(b"\r")
        *ended, begun = LINE_END.split(piece)
        events = []
        for line in ended:
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)
                self._line = []
            if (event := self._take(line)) is not None:
                events.append(event)
        if begun:
            self._line.append(begun)
        return events

    def rest(self) -> ServerEvent | None:
        """The event that has begun, by its lines that are whole; the standard drops it where the stream ends so."""
        return self._event() if self._data else None

    def _take(self, line: bytes) -> ServerEvent | None:
        """Take in a line; an event where it makes one whole."""
        if not line:
            event = self.rest()
            self._data, self._type = [], ""
            return event
        name, _, value = line.partition(b":")  # a comment has no name
        value = value.removeprefix(b" ")
        match name.decode("utf-8", "replace"):
            case "data":
                self._data.append(value)
            case "event":
                self._type = value.decode("utf-8", "replace")
            case "id":
                if b"\0" not in value:
                    self._id = value.decode("utf-8", "replace")
            case "retry":
                if value.isdigit() and len(value) <= RETRY_DIGITS:  # of bytes: ASCII alone
                    self.retry_ms = int(value)
            case field if field in self._alone:
                return ServerEvent(value, id=self._id, field=field)
        return None

    def _event(self) -> ServerEvent:
        return ServerEvent(b"\n".join(self._data), self._type or "message", self._id)
