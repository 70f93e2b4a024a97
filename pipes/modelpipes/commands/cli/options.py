"""Options that several commands share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from modelpipes.commands.cli import configured, values
from modelpipes.errors import UsageError
from modelpipes.terminal.drawing import DOCUMENTS
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
    """A size such as 14GB (10^9), 14G or 14GiB (2^30), or 500MB, in bytes; of no less than `least`."""

    name = "size"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = units.parse_bytes(value) if isinstance(value, str) else int(value)
        except UsageError as e:
            self.fail(str(e), param, ctx)
        if size < self._least:
            self.fail(f"{size} bytes hold no model: write 14GB, say", param, ctx)
        return size


class Cpus(click.ParamType[str]):
    """Numbers of CPUs such as 0-3,8."""

    name = "cpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            units.parse_cpus(value)
        except UsageError as e:
            self.fail(str(e), param, ctx)
        return str(value)


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
AMOUNT = Bytes(units.LEAST_AMOUNT)
CPUS = Cpus()
SECONDS = Seconds()
SECONDS_OR_0 = Seconds(may_be_0=True)


def bounded(seconds: float) -> float | None:
    """What the rest of the house calls no bound."""
    return None if seconds == float("inf") else seconds


def logged(command: Command) -> Command:
    """--log and --log-content; `open_log` opens what they say."""
    with_content = click.option("--log-content", is_flag=True, envvar="LOG_CONTENT", help="The words as well.")
    file = click.option("--log", metavar="FILE", type=values.FILE, envvar="LOG_FILE",
                        help="Append a line for each thing done, without the words.  [$LOG_FILE]")  # fmt: skip
    return file(with_content(command))


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
    """--format, of these and of the documents that every table can be, the first where it is not given; and --json.

    The command is given `format_`, which is json where --json was, whatever --format says.
    """

    def note(ctx: click.Context, param: click.Parameter, is_given: bool) -> None:
        ctx.meta[param.name] = is_given

    def choose(ctx: click.Context, param: click.Parameter, given: str) -> str:
        return "json" if ctx.meta.get("as_json") else given

    def add(command: Command) -> Command:
        as_json = click.option("--json", "as_json", is_flag=True, is_eager=True, expose_value=False, callback=note,
                               help="The same as --format json.")  # fmt: skip
        kind = click.Choice([*names, *DOCUMENTS])
        which = click.option("--format", "format_", type=kind, default=names[0], callback=choose,
                             help=f"{text}  [{names[0]}]")  # fmt: skip
        return which(as_json(command))

    return add


settings = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
