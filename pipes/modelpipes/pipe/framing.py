"""Bytes to messages and back: one message a line. No file, no clock."""

from __future__ import annotations

import re

import msgspec

from modelpipes.errors import MessageError
from modelpipes.pipe.message import Malformed, Message, Plain

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # encoded, without the line's end; bounds what one peer can make another hold
_MAX_LINE_BYTES = MAX_MESSAGE_BYTES + 1
READ_BYTES = 256 << 10  # at a time: what a widened pipe holds
_BRACE = ord("{")
_HEAD_BYTES = 256  # of an unreadable line: enough to find its id, so that its asker can be told

_encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(Message).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last: brackets in brackets in …
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')


def encode(message: Message) -> bytes:
    """The message as one line, its end included.

    Raises MessageError where it is larger than MAX_MESSAGE_BYTES or holds lone surrogates.
    """
    try:
        line = _encode_lines([message])  # ends it without another copy
    except UnicodeEncodeError as e:
        raise MessageError(f"the message is not Unicode text: {e.reason}") from None
    if len(line) > _MAX_LINE_BYTES:
        raise MessageError(f"the message is {len(line) - 1} bytes encoded; at most {MAX_MESSAGE_BYTES} can travel")
    return line


def encode_plain(text: str) -> bytes:
    """Words without an envelope as one line, newlines made spaces.

    Raises MessageError where the line is larger than MAX_MESSAGE_BYTES.
    """
    words = " ".join(text.split("\n")).replace("\r", " ").encode("utf-8", "replace")
    if len(words) > MAX_MESSAGE_BYTES:
        raise MessageError(f"the answer is {len(words)} bytes; at most {MAX_MESSAGE_BYTES} can travel")
    return words + b"\n"


def decode(line: bytes | bytearray) -> Message | Plain | Malformed | None:
    """What one line says; None for an empty line, which means nothing."""
    if not line:
        return None
    if len(line) > MAX_MESSAGE_BYTES:
        return Malformed(f"a line longer than {MAX_MESSAGE_BYTES} bytes", _find_id(line))
    if line[0] == _BRACE:
        try:
            message: Message = _decode(line)
            return message
        except _UNREADABLE as e:
            return Malformed(f"not a message: {e}", _find_id(line))
    words = line.removesuffix(b"\r")
    return Plain(words.decode("utf-8", "replace")) if words else None


def _find_id(line: bytes | bytearray) -> str | None:
    match = _ID.search(line, 0, _HEAD_BYTES)
    return match[1].decode("ascii", "replace") if match else None


class LineSplitter:
    """Cuts a stream of bytes into lines and decodes them.

    Of a line that is too long only what shows it is kept; it is reported when it ends, and the next one survives.
    """

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line = bytearray()  # what came of the line that has not ended yet

    def whole(self, data: bytes) -> Message | None:
        """The message that these bytes are, and nothing else; None where they are more or less: `feed` takes them.

        So it mostly is, and then nothing is cut out, nothing looked at twice.
        """
        if data and data[0] == _BRACE and not self._line and data.find(b"\n") == len(data) - 1:
            try:
                message: Message = _decode(data)
                return message
            except _UNREADABLE:
                pass  # `feed` tells what is wrong with it
        return None

    def feed(self, data: bytes) -> list[Message | Plain | Malformed]:
        """The messages that these bytes complete, in order."""
        if (message := self.whole(data)) is not None:
            return [message]
        items: list[Message | Plain | Malformed] = []
        start, size = 0, len(data)
        while start < size:
            end = data.find(b"\n", start)  # bytes.split looks at one byte after the other
            if end < 0:
                self._keep(data[start:])
                break
            line: bytes | bytearray = data[start:end]
            start = end + 1
            if self._line:
                self._keep(line)
                line, self._line = self._line, bytearray()
            if (item := decode(line)) is not None:
                items.append(item)
        return items

    @property
    def is_amid_line(self) -> bool:
        """Has a line begun that has not ended yet?"""
        return bool(self._line)

    @property
    def unended(self) -> bytes:
        """What came of a line that has not ended yet, of a long one the beginning."""
        return bytes(self._line[:_HEAD_BYTES])

    def end(self) -> Message | Plain | Malformed | None:
        """What the line says that has not ended, as nobody is left who could end it; None where there is none."""
        line, self._line = self._line, bytearray()
        return decode(line)

    def _keep(self, part: bytes | bytearray) -> None:
        room = MAX_MESSAGE_BYTES + 1 - len(self._line)  # one byte more tells that it is too long
        self._line += part if len(part) <= room else part[:room]
