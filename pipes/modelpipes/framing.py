"""Bytes to messages and back: one message a line. No file, no clock."""

from __future__ import annotations

import re

import msgspec

from modelpipes.errors import MessageError
from modelpipes.message import Malformed, Message, Plain

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # encoded, without the line's end; bounds what one peer can make another hold
_HEAD_BYTES = 256  # of an unreadable line: enough to find its id, so that its asker can be told

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')


def encode(message: Message) -> bytes:
    """The message as one line, its end included.

    Raises MessageError where it is larger than MAX_MESSAGE_BYTES or holds lone surrogates.
    """
    try:
        line = _encoder.encode(message)
    except UnicodeEncodeError as e:
        raise MessageError(f"the message is not Unicode text: {e.reason}") from None
    if len(line) > MAX_MESSAGE_BYTES:
        raise MessageError(f"the message is {len(line)} bytes encoded; at most {MAX_MESSAGE_BYTES} can travel")
    return line + b"\n"


def encode_plain(text: str) -> bytes:
    """Words without an envelope as one line, newlines made spaces.

    Raises MessageError where the line is larger than MAX_MESSAGE_BYTES.
    """
    words = " ".join(text.split("\n")).replace("\r", " ").encode("utf-8", "replace")
    if len(words) >= MAX_MESSAGE_BYTES:
        raise MessageError(f"the answer is {len(words)} bytes; at most {MAX_MESSAGE_BYTES} can travel")
    return words + b"\n"


def decode(line: bytes) -> Message | Plain | Malformed | None:
    """What one line says; None for an empty line, which means nothing."""
    if line.startswith(b"{"):
        try:
            message: Message = _decoder.decode(line)
            return message
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            return Malformed(f"not a message: {e}", _find_id(line))
    if not line or line.isspace():
        return None
    return Plain(line.decode("utf-8", "replace").removesuffix("\r"))


def _find_id(line: bytes) -> str | None:
    match = _ID.search(line, 0, _HEAD_BYTES)
    return match[1].decode("ascii", "replace") if match else None


class LineSplitter:
    """Cuts a stream of bytes into lines and decodes them; a line that is too long is skipped and reported."""

    __slots__ = ("_head", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""  # of a line that grew too long and is being skipped

    def feed(self, data: bytes) -> list[Message | Plain | Malformed]:
        """The messages that these bytes complete, in order."""
        if not self._parts and data.endswith(b"\n") and data.find(b"\n") == len(data) - 1:
            item = decode(data[:-1])
            return [] if item is None else [item]
        *ends, rest = data.split(b"\n")
        items = [item for end in ends if (item := self._complete(end)) is not None]
        if rest:
            self._keep(rest)
        return items

    def _complete(self, end: bytes) -> Message | Plain | Malformed | None:
        self._keep(end)
        line, head = b"".join(self._parts), self._head
        self._parts, self._size, self._head = [], 0, b""
        if head:
            return Malformed(f"a line longer than {MAX_MESSAGE_BYTES} bytes", _find_id(head))
        return decode(line)

    def _keep(self, part: bytes) -> None:
        if self._head:
            return
        self._parts.append(part)
        self._size += len(part)
        if self._size > MAX_MESSAGE_BYTES:
            self._head = b"".join(self._parts[:2])[:_HEAD_BYTES]
            self._parts, self._size = [b""], 0
