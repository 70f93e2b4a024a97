"""What a command reads: lines of stdin, however they arrive."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.commands.cli import reading
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from modelpipes.pipe.sidebyside import Unfit
from modelpipes.values.deadline import Deadline


def lines_of(pieces: list[bytes]) -> list[str | Unfit]:
    """The lines of a stdin that brings these pieces, then ends."""
    coming = [*(piece for piece in pieces if piece), b""]
    lines, taken = reading.Lines(Deadline.never()), []
    with patch.object(reading, "_read_some", lambda limit: coming.pop(0)):
        while not lines.is_over:
            taken += lines.take(waits=True)
    return taken


def expected_of(data: bytes) -> list[str | None]:
    """As an editor counts lines; None for one that is no text."""
    ends = data.split(b"\n")
    if not ends[-1]:
        ends.pop()
    texts: list[str | None] = []
    for end in ends:
        try:
            texts.append(end.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            texts.append(None)
    return texts


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"\r\n", b"\n\n", "é\n".encode(), b"\xc3"])))
def test_lines_are_the_same_however_their_bytes_are_cut(pieces: list[bytes]) -> None:
    taken = [None if isinstance(line, Unfit) else line for line in lines_of(pieces)]
    assert taken == expected_of(b"".join(pieces))


@pytest.mark.parametrize(("over", "fits"), [(0, True), (1, False), (9_000_000, False)])
def test_a_line_longer_than_can_travel_is_told_and_the_next_one_is_read(over: int, fits: bool) -> None:
    long = b"x" * (MAX_MESSAGE_BYTES + over)
    cuts = range(0, len(long), 65536)
    first, second, third = lines_of([b"a\n", *(long[cut : cut + 65536] for cut in cuts), b"\nb\n"])
    assert (first, third) == ("a", "b")
    assert isinstance(second, str) is fits
    if isinstance(second, Unfit):
        assert second.reason == "too-large"
        assert len(second.shown) < 1000


def test_the_beginning_of_a_long_line_is_shown_without_half_a_character() -> None:
    (line,) = lines_of(["é".encode() * (MAX_MESSAGE_BYTES // 2), "é".encode()])
    assert isinstance(line, Unfit)
    assert line.shown == "é" * 100 + "…"
