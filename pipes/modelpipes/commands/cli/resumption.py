"""What --resume takes from the transcript that it continues, unless an option says otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from modelpipes.commands.cli.reading import read_transcript
from modelpipes.errors import UsageError

if TYPE_CHECKING:
    from modelpipes.chat.transcript import Header

# parameter: (option, key of the header's settings)
SETTINGS = {
    "taking": ("--turns", "turns"),
    "rounds": ("--rounds", "rounds"),
    "stop_word": ("--stop-word", "stop_word"),
}


def header_of(given: dict[str, Any], names: Sequence[str]) -> Header | None:
    """How the conversation was begun that is to be continued; None where it was not, and these are to begin one.

    UsageError where there is none, nor anybody named. Who opens the file tells what else is wrong with it.
    """
    from modelpipes.chat.contents import read

    path = given["path"]
    if not path:
        raise UsageError("--resume needs the --transcript to continue")
    if not names and not os.path.exists(path):
        raise UsageError(f"{path}: no conversation to continue; name its members to begin one")
    contents = read(read_transcript(path)) if os.path.isfile(path) else None
    return contents.header if contents and not contents.refusal else None


def take_settings(ctx: click.Context, given: dict[str, Any], header: Header) -> Iterator[str]:
    """Put the settings of the conversation among those given; a line for each that was given and is not the same."""
    if given["labels"]:
        yield "--labels is left out: who is told names was settled when the conversation began"
    theirs: dict[str, Any] = {name: header.settings.get(key) for name, (_, key) in SETTINGS.items()}
    theirs |= {"moderator": header.moderator or None, "moderator_speaks": bool(header.moderator) and header.debates}
    named = {name: option for name, (option, _) in SETTINGS.items()}
    named |= {"moderator": "--moderator", "moderator_speaks": "--moderator-speaks"}
    if _is_given(ctx, "taking") and given["taking"] != "moderator":  # who chooses is then nobody's to say
        theirs |= {"moderator": None, "moderator_speaks": False}
    elif _is_given(ctx, "moderator"):
        theirs["taking"] = "moderator"
    for name, value in theirs.items():
        if not _is_given(ctx, name):
            given[name] = value if value is not None or name != "taking" else given[name]
        elif given[name] != value:
            yield f"{named[name]} {given[name]} in place of {'none' if value is None else value}"


def _is_given(ctx: click.Context, name: str) -> bool:
    """Was it typed, and not left to its default or to the configuration?"""
    return ctx.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
