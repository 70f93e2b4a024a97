"""What the configuration says to a command: the defaults of its options, and where each value is from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from modelpipes.errors import UsageError
from modelpipes.values import paths

if TYPE_CHECKING:
    from modelpipes.config.reading import Loaded

CONFIG = "MODELPIPES_CONFIG"
GET_CONFIG = "modelpipes config example prints one, for ~/.config/modelpipes/config.toml"
# What files far below the commands read from the environment, by the key that says the same.
VARIABLES = {"room.dir": "PIPE_DIR", "find-gguf.search_path": "SEARCH_PATH", "voice.llama_server": "LLAMA_SERVER"}


class Option(click.Option):
    """An option whose default the configuration may say, under `key`: "ask-model.timeout"."""

    def __init__(self, *args: Any, key: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.key = key


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


def in_force(ctx: click.Context) -> Configured:
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
    return f"{error.param.key} in {in_force(error.ctx).path}" if is_from_file(error.ctx, name) else ""


def configure(ctx: click.Context, given: str | None, *, is_lenient: bool) -> None:
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
