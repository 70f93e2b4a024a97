"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from modelpipes.commands.cli import values
from modelpipes.errors import DeadlineError, MessageError, UsageError
from modelpipes.values import paths, units
from modelpipes.values.deadline import Deadline
from modelpipes.values.version import __version__

if TYPE_CHECKING:
    from modelpipes.config.reading import Loaded

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


class Option(click.Option):
    """An option whose default the configuration may say, under `key`: "ask-model.timeout"."""

    def __init__(self, *args: Any, key: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.key = key


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """As click.option, with `key`."""
    return click.option(*names, cls=Option, **settings)


CONFIG = "MODELPIPES_CONFIG"
GET_CONFIG = "modelpipes config example prints one, for ~/.config/modelpipes/config.toml"
# What files far below the commands read from the environment, by the key that says the same.
VARIABLES = {"room.dir": "PIPE_DIR", "find-gguf.search_path": "SEARCH_PATH", "voice.llama_server": "LLAMA_SERVER"}


class Configured(NamedTuple):
    """What a command goes by: the file's path, empty where there is none, and what it says, or what is wrong with it.

    `variables` are those of VARIABLES that the file put into the environment.
    """

    path: str = ""
    loaded: Loaded | None = None
    variables: tuple[str, ...] = ()
    mistake: UsageError | None = None

    def insist(self) -> None:
        """Raise UsageError for a file that is wrong, in a command that need not have one."""
        if self.mistake:
            raise self.mistake


def configured(ctx: click.Context) -> Configured:
    """What this command goes by."""
    found: Configured = ctx.meta.get(CONFIG, Configured())
    return found


def is_from_file(ctx: click.Context, name: str) -> bool:
    """Did the configuration say this parameter, and nobody who knew better?"""
    return ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP


def origin(error: click.ClickException) -> str:
    """The key and the file that a value is from which an option refuses; empty where it was typed."""
    if not isinstance(error, click.BadParameter) or not error.ctx or not isinstance(error.param, Option):
        return ""
    name = error.param.name or ""
    return f"{error.param.key} in {configured(error.ctx).path}" if is_from_file(error.ctx, name) else ""


def _configure(ctx: click.Context, given: str | None, *, is_lenient: bool) -> None:
    """Have the configuration say this command's defaults: the file that is given, else the user's where there is one.

    What has a variable of its own is put into the environment, where it is not; so is the file's name where it was
    given: members and engines that we start are to know it.
    """
    path = given or paths.config_file()
    if ctx.resilient_parsing or not (given or os.path.lexists(path)):
        return
    from modelpipes.config.reading import load  # only where there is something to read: it takes 5 ms

    path = os.path.abspath(os.path.expanduser(path))
    try:
        loaded = load(path)
    except UsageError as mistake:
        if not is_lenient or ctx.get_parameter_source("config") is ParameterSource.COMMANDLINE:
            raise
        ctx.meta[CONFIG] = Configured(path, mistake=mistake)
        return
    if given:
        os.environ[CONFIG] = path
    variables = []
    for key, variable in VARIABLES.items():
        if (value := loaded.stated(key)) and not os.environ.get(variable):
            os.environ[variable] = value if isinstance(value, str) else os.pathsep.join(value)
            variables.append(variable)
    ctx.meta[CONFIG] = Configured(path, loaded, tuple(variables))
    keys = {each.name: each.key for each in ctx.command.params if isinstance(each, Option) and each.key}
    defaults = {name: value for name, key in keys.items() if (value := loaded.stated(key)) is not None}
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def common(command: Command) -> Command:
    """--config and --version, which every command has."""
    return _common(command, is_lenient=False)


def lenient(command: Command) -> Command:
    """The same, for a command that must work where the user's configuration is wrong: see `Configured.insist`."""
    return _common(command, is_lenient=True)


def _common(command: Command, *, is_lenient: bool) -> Command:
    def configure(ctx: click.Context, param: click.Parameter, given: str | None) -> None:
        _configure(ctx, given, is_lenient=is_lenient)

    version = click.version_option(__version__, message="%(prog)s %(version)s")
    config = click.option("--config", metavar="FILE", type=values.CONFIGURATION, envvar=CONFIG, is_eager=True,
                          expose_value=False, callback=configure,
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


def read_text(value: str) -> str:
    """The text itself, or what the file says that `@FILE` names."""
    if not value.startswith("@"):
        return value
    try:
        with open(os.path.expanduser(value[1:]), encoding="utf-8") as file:
            return file.read().strip()
    except OSError as e:
        raise UsageError(f"{value[1:]}: cannot be read: {(e.strerror or str(e)).lower()}") from None
    except ValueError as e:  # no UTF-8, or no file's name
        raise UsageError(f"{value[1:]}: cannot be read: {e}") from None


def read_stdin(limit: Deadline) -> str:
    """All of stdin, as text; MessageError where it is none, DeadlineError where it does not end in time."""
    try:
        return read_stdin_bytes(limit).decode("utf-8")
    except UnicodeDecodeError as e:
        raise MessageError(f"stdin is not UTF-8 text: byte {e.start} cannot be read") from None


def read_stdin_bytes(limit: Deadline) -> bytes:
    """All of stdin; MessageError where it cannot be read, DeadlineError where it does not end in time."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    data = bytearray()
    try:
        while True:
            if not poll.poll(limit.poll_ms()):
                raise DeadlineError("stdin did not end within the time allowed (--max-seconds)")
            try:
                piece = os.read(0, 65536)
            except BlockingIOError:
                continue  # a neighbour who shares it made it so, and was faster
            if not piece:
                return bytes(data)
            data += piece
    except OSError as e:
        raise MessageError(f"stdin cannot be read: {(e.strerror or str(e)).lower()}") from None
