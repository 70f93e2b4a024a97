"""Colours of speakers, on terminals that want them."""

from __future__ import annotations

import os

# SGR: cyan, green, magenta, yellow, blue, and the bright ones of them; red is for what is wrong.
_SPEAKERS = (36, 32, 35, 33, 34, 96, 92, 95, 93, 94)


def has_colours() -> bool:
    """Does the person want more than plain text (NO_COLOR), and can the terminal (TERM=dumb)?"""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def coloured(text: str, number: int) -> str:
    """A text in the colour of the speaker of this number, counted from 0."""
    return f"\x1b[{_SPEAKERS[number % len(_SPEAKERS)]}m{text}\x1b[0m"
