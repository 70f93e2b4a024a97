"""A transcript's contents as one JSON object. Pure."""

from __future__ import annotations

import msgspec

from modelpipes.chat.contents import Contents


def to_json(contents: Contents, *, show_thinking: bool = False) -> Contents:
    """What is to be printed as one JSON object: exact, and without thoughts unless they are wanted."""
    if show_thinking:
        return contents
    turns = tuple(msgspec.structs.replace(turn, thinking="") for turn in contents.turns)
    return msgspec.structs.replace(contents, turns=turns)
