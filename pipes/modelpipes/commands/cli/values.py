"""What an option or argument may be given, for shells to complete it: seats, folders, files, models, cards.

Nothing is opened here but lock files and small records, nothing is started, and no name costs more than a look at
folders for SCAN_S. What is slow to load is loaded when a shell asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from modelpipes.errors import PipesError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SCAN_S = 0.3  # for folders with models; a person who pressed TAB waits
HERE = ("/", ".", "~")  # what begins so is a path, and no name

# What may be meant, and where that is no file, a few words about it.
Meant: TypeAlias = "Iterable[str | tuple[str, str] | CompletionItem]"


class Text(click.ParamType[str]):
    """Text, taken as it is. `meant` tells what it may be, of what is typed so far; the shell sorts out what fits."""

    name = "text"

    def __init__(self, meant: Callable[[click.Context, str], Meant]) -> None:
        self._meant = meant

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [_item(each) for each in self._meant(ctx, incomplete)]


class Paired(Text):
    """NAME=VALUE of chat-models, for the member NAME; where `is_shared`, VALUE for all of them too."""

    def __init__(self, value: click.ParamType[Any], *, is_shared: bool) -> None:
        super().__init__(lambda ctx, incomplete: [f"{name}=" for name in ctx.meta.get("names", ())])
        self._value = value
        self._is_shared = is_shared

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from modelpipes.pipe.room import is_seat

        name, is_pair, rest = incomplete.partition("=")
        if is_pair and is_seat(name):
            found = self._value.shell_complete(ctx, param, rest)
            for item in found:
                if item.type == "plain":  # a path stays apart: the shell completes it
                    item.value = f"{name}={item.value}"
            return found
        if not self._is_shared:  # NAME is the person's to choose
            return []
        return [*self._value.shell_complete(ctx, param, incomplete), *super().shell_complete(ctx, param, incomplete)]


def _item(meant: str | tuple[str, str] | CompletionItem) -> CompletionItem:
    from click.shell_completion import CompletionItem  # lazily: only a completion needs it

    if isinstance(meant, CompletionItem):
        return meant
    return CompletionItem(meant) if isinstance(meant, str) else CompletionItem(meant[0], help=meant[1])


def path(incomplete: str, type: str = "file", suffix: str = "") -> CompletionItem:
    """A path that begins so, for the shell to complete; where a suffix is given, folders and files that end so."""
    from click.shell_completion import CompletionItem

    return CompletionItem(incomplete, type=type, suffix=suffix)


def seats_of(ctx: click.Context) -> Iterator[tuple[str, str]]:
    """The seats of the room in force, but for the hub, each with what it does."""
    from modelpipes.pipe.room import HUB, Room
    from modelpipes.terminal.safetext import make_line

    with contextlib.suppress(PipesError):  # no room, no seats
        room = Room.open(ctx.params.get("directory"))
        for seat in room.seats():
            if seat != HUB:
                who = room.sitting(seat)
                yield seat, make_line(f"{who.state}, {who.voice}" if who.voice else who.state)


def model_names(incomplete: str) -> Iterator[str]:
    """The models that find-gguf would list, as far as a short look finds them."""
    from modelpipes.gguf.modelfile import ModelFile
    from modelpipes.gguf.places import default_places, remembered
    from modelpipes.gguf.scan import find_model_files
    from modelpipes.values.deadline import Deadline

    deadline = Deadline.after(SCAN_S)

    def enter(folder: str) -> None:
        deadline.check("models listed")

    with contextlib.suppress(PipesError):
        for found in find_model_files([*default_places(), *remembered()], enter):
            if isinstance(found, ModelFile) and found.name.startswith(incomplete):
                yield found.name


def models_of(config: str) -> list[str]:
    """The models that a configuration of serve-models names."""
    import tomllib

    try:
        with open(config, "rb") as file:
            return list(tomllib.load(file).get("models", {}))
    except (OSError, ValueError):  # it is being written, or gone
        return []


def _models(ctx: click.Context, incomplete: str) -> Meant:
    if not incomplete.startswith(HERE):
        yield "tiny-chat", "comes with modelpipes"
        yield from model_names(incomplete)
    yield path(incomplete, suffix=".gguf")


def _asked(ctx: click.Context, incomplete: str) -> Meant:
    """TO, and then the words of the message, which nobody can guess."""
    return [] if ctx.params.get("words") else seats_of(ctx)


def _members(ctx: click.Context, incomplete: str) -> Meant:
    yield "me", "you, at this terminal"
    yield from seats_of(ctx)


def _named(ctx: click.Context, incomplete: str) -> Meant:
    """Who takes part, as far as the line tells."""
    names: list[str] = ctx.meta.get("names", [])
    return names


def _talked(ctx: click.Context, incomplete: str) -> Meant:
    """The members of the transcript that the line names."""
    from modelpipes.chat.contents import read
    from modelpipes.commands.cli.reading import read_transcript

    # click has it among the rest where the line ends with an option that still wants its value.
    path = ctx.params.get("transcript") or next(iter(ctx.args), "")
    with contextlib.suppress(PipesError):  # no such file
        if header := read(read_transcript(path)).header:
            yield from header.members


def _senders(ctx: click.Context, incomplete: str) -> Meant:
    from modelpipes.pipe.room import HUB

    yield HUB
    yield from seats_of(ctx)


def _cards(ctx: click.Context, incomplete: str) -> Meant:
    from modelpipes.machine.cards import known_cards
    from modelpipes.values.units import format_bytes

    number, times, _ = incomplete.partition("x")
    several = f"{number}x" if times and number.isdecimal() else ""
    if not several:
        yield "auto", "the cards that are here"
    for name, size_bytes in known_cards().items():
        yield several + name.replace(" ", "").lower(), format_bytes(size_bytes)


def _text_or_file(ctx: click.Context, incomplete: str) -> Meant:
    return [path(incomplete[1:])] if incomplete.startswith("@") else []


def _uses(ctx: click.Context, incomplete: str) -> Meant:
    import os

    from modelpipes.config.reading import load
    from modelpipes.values.paths import config_file
    from modelpipes.values.units import format_bytes

    with contextlib.suppress(PipesError):  # there is none, or it is wrong
        for name, use in load(os.environ.get("MODELPIPES_CONFIG") or config_file()).config.use.items():
            yield name, f"{use.models} at once, {format_bytes(use.memory)} each"


DIRECTORY = Text(lambda ctx, incomplete: [path(incomplete, "dir")])
FILE = Text(lambda ctx, incomplete: [path(incomplete)])
TRANSCRIPT = Text(lambda ctx, incomplete: [path(incomplete, suffix=".jsonl")])
CONFIGURATION = Text(lambda ctx, incomplete: [path(incomplete, suffix=".toml")])
MODEL = Text(_models)
TEXT_OR_FILE = Text(_text_or_file)
CARD = Text(_cards)
USE = Text(_uses)
SEAT = Text(lambda ctx, incomplete: seats_of(ctx))
SENDER = Text(_senders)
ASKED = Text(_asked)
MEMBER = Text(_members)
NAMED = Text(_named)
TALKED = Text(_talked)
PLACE = Text(lambda ctx, incomplete: [path(incomplete, suffix=".gguf")])
