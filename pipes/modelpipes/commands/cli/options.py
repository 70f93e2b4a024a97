"""Options that several commands share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from modelpipes.commands.cli import configured, values
from modelpipes.errors import UsageError
from modelpipes.values import units
from modelpipes.values.version import __version__

Command = TypeVar("Command", bound=Callable[..., Any])


class Seconds(click.ParamType[float]):
    """A time such as 30, 500ms or 2m, as seconds; `none` is infinity, which bounds nothing."""

    name = "time"

    def __init__(self, *, may_be_0: bool = False) -> None:
        self._may_be_0 = may_be_0

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if self._may_be_0 and value == "0":
            return 0.0
        try:
            seconds = units.parse_seconds(value) if isinstance(value, str) else value
        except UsageError as e:
            self.fail(str(e), param, ctx)
        return float("inf") if seconds in (None, units.MAX_SECONDS) else float(seconds)


class Bytes(click.ParamType[int]):
    """A size such as 14GB (10^9), 14G or 14GiB (2^30), or 500MB, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return units.parse_bytes(value) if isinstance(value, str) else int(value)
        except UsageError as e:
            self.fail(str(e), param, ctx)


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """As click.option, with `key`."""
    return click.option(*names, cls=configured.Option, **settings)


def common(command: Command) -> Command:
    """--config and --version, which every command has."""
    return _common(command, is_lenient=False)


def lenient(command: Command) -> Command:
    """The same, for a command that must work where the user's configuration is wrong: see `Configured.insist`."""
    return _common(command, is_lenient=True)


def _common(command: Command, *, is_lenient: bool) -> Command:
    def configure(ctx: click.Context, param: click.Parameter, given: str | None) -> None:
        configured.configure(ctx, given, is_lenient=is_lenient)

    version = click.version_option(__version__, message="%(prog)s %(version)s")
    config = click.option("--config", metavar="FILE", type=values.CONFIGURATION, envvar=configured.CONFIG,
                          is_eager=True, expose_value=False, callback=configure,
                          help="The configuration, for what no option says.  [$MODELPIPES_CONFIG, else "
                               "~/.config/modelpipes/config.toml]")  # fmt: skip
    return config(version(command))


BYTES = Bytes()
SECONDS = Seconds()
SECONDS_OR_0 = Seconds(may_be_0=True)


def bounded(seconds: float) -> float | None:
    """What the rest of the house calls no bound."""
    return None if seconds == float("inf") else seconds


directory = click.option(
    "-d",
    "--dir",
    "directory",
    type=values.DIRECTORY,
    metavar="DIR",
    help="The room.  [$PIPE_DIR, else the default room]",
)
no_fit_check = click.option("--no-fit-check", is_flag=True, help="Start engines also where memory will not do.")
as_json = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")


def formats(*names: str, text: str = "How to report.") -> Callable[[Command], Command]:
    """--format, the first of these where it is not given, and --json, which says the same as --format json."""

    def add(command: Command) -> Command:
        as_json = click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
        kind = click.Choice(names)
        which = click.option("--format", "format_", type=kind, default=names[0], help=f"{text}  [{names[0]}]")
        return which(as_json(command))

    return add


settings = {"help_option_names": ["-h", "--help"], "max_content_width": 80}

# option: (metavar, type, help); attach-model takes them as they are, chat-models as [NAME=]VALUE. All have a key of
# [voice], but for the name of a server's model.
VOICE: dict[str, tuple[str, Any, str]] = {
    "system": ("TEXT|@FILE", values.TEXT_OR_FILE, "What the model is told first."),
    "max-tokens": ("N", click.IntRange(1), "Longest answer."),
    "temperature": ("T", click.FloatRange(0), "How freely it chooses words."),
    "top-p": ("P", click.FloatRange(0, 1), "Of the likeliest words, this share."),
    "seed": ("N", click.IntRange(0), "Same seed, same answer."),
    "model-name": ("NAME", click.STRING, "Which of the models of --server."),
    "api-key-file": ("FILE", values.FILE, "The key of --server.  [$OPENAI_API_KEY]"),
    "ctx-size": ("N", click.IntRange(64), "Context of a conversation, in tokens.  [4096]"),
    "kv-type": ("TYPE", click.STRING, "Type of the cache of keys and values, as q8_0.  [f16]"),
    "gpu-layers": ("N", click.IntRange(0), "Layers on the card.  [as many as fit]"),
    "threads": ("N", click.IntRange(1, 512), "Threads on the CPU.  [the engine's choice]"),
    "parallel": ("N", click.IntRange(1, 64), "Messages to work on at a time.  [1]"),
    "engine": ("ENGINE", click.Choice(["auto", "llama-server", "embedded"]), "auto, llama-server or embedded.  [auto]"),
    "engine-arg": ("ARG", click.STRING, "Passed to the engine as it is; may be repeated."),
}
REPEATABLE = "engine-arg"
NO_KEY = "model-name"


def voice_options(command: Any) -> Any:
    """The options of `VOICE`, each with its type."""
    for name, (metavar, kind, text) in reversed(VOICE.items()):
        key = None if name == NO_KEY else f"voice.{name.replace('-', '_')}{'s' * (name == REPEATABLE)}"
        made = option(f"--{name}", key=key, type=kind, metavar=metavar, multiple=name == REPEATABLE, help=text)
        command = made(command)
    return command


def shared_voice_options(command: Any) -> Any:
    """The options of `VOICE` for several members: VALUE for all, NAME=VALUE for one."""
    for name, (metavar, kind, text) in reversed(VOICE.items()):
        pair = values.Paired(kind, is_shared=True)
        command = click.option(f"--{name}", type=pair, multiple=True, metavar=f"[NAME=]{metavar}", help=text)(command)
    return command


# What seats a member of chat-models: option: (metavar, type, help).
SEATING: dict[str, tuple[str, Any, str]] = {
    "model": ("NAME=FILE", values.MODEL, "Seat a model; a GGUF file, or tiny-chat."),
    "server": ("NAME=URL", click.STRING, "Seat a model of a running server."),
    "exec": ("NAME=COMMAND", click.STRING, "Seat a program, run for each message."),
    "filter": ("NAME=COMMAND", click.STRING, "Seat a program kept running, a line in, a line out."),
}


def seating_options(command: Any) -> Any:
    """The options of `SEATING`, each for as many members as it is given for."""
    for name, (metavar, kind, text) in reversed(SEATING.items()):
        pair = values.Paired(kind, is_shared=False)
        command = click.option(f"--{name}", f"{name}_", type=pair, multiple=True, metavar=metavar, help=text)(command)
    return command
