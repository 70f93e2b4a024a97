"""All that can be read of a transcript, whatever the bytes are: a damaged one is shown as far as it goes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from modelpipes.chat.transcript import LINES, Choice, End, Header, Turn, Versioned
from modelpipes.values.formats import TRANSCRIPT

LARGEST = 1e12  # 30 years in ms: a number beyond it is nonsense, and need not take a line
NAMED_LINES = 4  # of many that are wrong, the first few are enough to go and look
_HEADER_BEGINS = b'{"type":"conversation"'
_T = TypeVar("_T")


class Ended(Struct, frozen=True, forbid_unknown_fields=True):
    """Why a leader ended the conversation after turn `after`; -1: before any."""

    after: int
    why: str


class Contents(Struct, frozen=True, forbid_unknown_fields=True):
    """All of a transcript that can be read, and what cannot; as JSON, what `show --format json` prints.

    Turns have the keys that they have in the transcript. Lines count from 1.
    """

    header: Header | None
    turns: tuple[Turn, ...] = ()
    ends: tuple[Ended, ...] = ()
    unreadable_lines: tuple[int, ...] = ()
    unknown_lines: tuple[int, ...] = ()  # of a type that a newer program may write
    partial_lines: tuple[int, ...] = ()  # only who spoke and the words could be read
    is_cut_off: bool = False  # the last line is half written
    choices: tuple[Choice, ...] = ()  # who a moderator, or the leader in its place, let speak

    @property
    def refusal(self) -> str:
        """Why a transcript of its version is not read, in a line; empty where it is."""
        return TRANSCRIPT.refusal(self.header.version) if self.header else ""

    @property
    def is_transcript(self) -> bool:
        """Is there anything of a conversation in it, or nothing at all?"""
        return bool(self.header or self.turns or self.ends) or not (self.unreadable_lines or self.unknown_lines)

    def complaints(self) -> list[str]:
        """What is wrong with it, each in a few words."""
        said = []
        if not self.header and (self.turns or self.ends or self.unreadable_lines or self.unknown_lines):
            said.append("has no header")
        if self.unreadable_lines:
            said.append(f"cannot be read, left out: {_name_lines(self.unreadable_lines)}")
        if self.unknown_lines:
            said.append(f"of a kind unknown here, left out: {_name_lines(self.unknown_lines)}")
        if self.partial_lines:
            said.append(f"shown in part: {_name_lines(self.partial_lines)}")
        numbers = [turn.turn for turn in self.turns]
        gap = next((n for n, turn in enumerate(numbers, numbers[0]) if n != turn), None) if numbers else None
        if gap is not None:
            said.append(f"turn {gap} is not where it should be")
        if self.is_cut_off:
            said.append("its last line is half written")
        if not (self.header or said):
            said.append("is empty")
        return said


class _Kind(Struct, frozen=True):
    type: str = "turn"


class _Words(Struct, frozen=True):
    """What a turn must have to be shown."""

    turn: int
    sender: str = field(name="from")
    content: str


def read(data: bytes) -> Contents:
    """All that can be read of a transcript; nothing is raised, whatever the bytes are."""
    header: Header | None = None
    turns: list[Turn] = []
    ends: list[Ended] = []
    choices: list[Choice] = []
    unreadable, unknown, partial = [], [], []
    is_cut_off = False
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found, is_whole = _read_line(line)
        if isinstance(found, Header) and not (header or turns or ends):
            header = found
        elif isinstance(found, Turn):
            turns.append(found)
        elif isinstance(found, Choice):
            choices.append(found)
        elif isinstance(found, End):
            ends.append(Ended(turns[-1].turn if turns else -1, found.why))
        elif found:
            unknown.append(number)
        elif number == len(lines) and (header or turns or _begins_header(line)):
            is_cut_off = True
        else:
            unreadable.append(number)
        if found and not is_whole and number not in unknown[-1:]:
            partial.append(number)
    return Contents(
        header, tuple(turns), tuple(ends), tuple(unreadable), tuple(unknown), tuple(partial), is_cut_off, tuple(choices)
    )


def _begins_header(line: bytes) -> bool:
    return line[: len(_HEADER_BEGINS)] == _HEADER_BEGINS[: len(line)]


def _read_line(line: bytes) -> tuple[Header | Turn | Choice | End | _Kind | None, bool]:
    """What a line says, None where it says nothing that can be read; and whether all of it was understood."""
    # Bytes that are no UTF-8 become U+FFFD: the words around them can still be read.
    text = line.decode("utf-8", "replace").encode()
    is_text, line = text == line, text
    found = _decode(line, _Kind)
    if found is None:
        return None, False
    if found.type == "conversation":
        if header := _decode(line, Header):
            return header, is_text
        version = _decode(line, Versioned)
        return (Header(version.version, "", ()) if version else None), False
    if found.type not in LINES:
        return found, True
    if found.type != "turn":
        return _decode(line, LINES[found.type]), is_text
    if turn := _decode(line, Turn):
        return (turn if abs(turn.turn) < LARGEST else None), is_text
    words = _decode(line, _Words)
    is_numbered = words and abs(words.turn) < LARGEST
    return (Turn(words.turn, words.sender, words.content) if words and is_numbered else None), False


def _decode(line: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _name_lines(numbers: Sequence[int]) -> str:
    """`line 3`, `lines 3, 5`, `lines 3, 5, 6, 7 and 12 more`."""
    named = ", ".join(map(str, numbers[:NAMED_LINES]))
    more = f" and {len(numbers) - NAMED_LINES} more" if len(numbers) > NAMED_LINES else ""
    return f"line{'s' * (len(numbers) > 1)} {named}{more}"
