"""config: what is in force and where it comes from; an example to begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from modelpipes.commands import attach
from modelpipes.commands.cli import options
from modelpipes.config.example import write_example
from modelpipes.config.reading import Loaded
from modelpipes.config.settings import SECTIONS, Config, keys
from modelpipes.config.writing import as_written, write_value
from modelpipes.errors import UsageError
from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_line
from modelpipes.values import paths

SHOW, EXAMPLE = "show", "example"
# The variables that beat a key.
OF_OPTIONS = {"room.prefix": "PIPE_PREFIX", "ask-model.timeout": "PIPE_TIMEOUT", "voice.api_key_file": attach.API_KEY}
VARIABLES = options.VARIABLES | OF_OPTIONS
SECRETS = ("server.key", f"${attach.API_KEY}")  # keys and variables
VALUE_COLUMN = 38


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key and what is in force: `value` as TOML has it, or null; `source` is a file, $VARIABLE or default.

    What is secret has a value that `is_hidden`, and null in its place.
    """

    key: str
    value: Any
    source: str
    is_hidden: bool = False


@click.command(context_settings=options.settings)
@click.argument("action", type=click.Choice([SHOW, EXAMPLE]))
@click.option("--gpu", default="rtx4080", metavar="CARD", help="example: for this card, as rtx3090, or cpu.  [rtx4080]")
@options.as_json
@options.lenient
@click.pass_context
def command(ctx: click.Context, /, action: str, gpu: str, as_json: bool) -> None:
    """Print the configuration that is in force, or an example with every key.

    A flag beats an environment variable, which beats the file, which beats the
    default. What `show` prints is a configuration again; its comments tell where
    each value comes from.

    \b
    Examples:
      modelpipes config show
      modelpipes config show --json
      modelpipes config example --gpu rtx3090 > config.toml
    """
    if action == EXAMPLE:
        if as_json:
            raise UsageError("--json is for show; the JSON Schema of a configuration is: modelpipes schema config")
        output.write_text(_example(gpu))
        return
    if ctx.get_parameter_source("gpu") is ParameterSource.COMMANDLINE:
        raise UsageError("--gpu is for the example")
    configured = options.configured(ctx)
    configured.insist()
    environment = {name: value for name, value in os.environ.items() if name not in configured.variables}
    settings = list(find_settings(configured.loaded or Loaded(Config(), {}), configured.path, environment))
    if as_json:
        output.write_json(settings)
    else:
        output.write_text(_write(settings, configured.path))


def find_settings(loaded: Loaded, path: str, environment: Mapping[str, str]) -> Iterator[Setting]:
    """Every key, with what is in force for it."""
    for heading, kind in SECTIONS.items():
        section, _, is_named = heading.partition(".")
        if is_named:
            for name, table in getattr(loaded.config, section).items():
                for key in keys(kind):
                    is_given = key.name in loaded.tables[section][name]
                    value = getattr(table, key.name)
                    yield _setting(f"{section}.{_quoted(name)}.{key.name}", value, path if is_given else "default")
            continue
        for key in keys(kind):
            full = f"{section}.{key.name}"
            variable = VARIABLES.get(full, "")
            if said := environment.get(variable, ""):
                yield _setting(full, _value_of(full, said), f"${variable}")
            else:
                yield _setting(full, loaded.in_force(full), path if loaded.stated(full) is not None else "default")


def _value_of(key: str, said: str) -> Any:
    """What a variable says, as the file would."""
    if key == "find-gguf.search_path":
        return tuple(said.split(os.pathsep))
    return os.path.abspath(said) if key == "room.dir" else said


def _quoted(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else write_value(name)


def _setting(key: str, value: Any, source: str) -> Setting:
    is_set = value not in (None, "", ()) and value != {}
    if is_set and not {key, source}.isdisjoint(SECRETS):
        return Setting(key, None, source, is_hidden=True)
    return Setting(key, as_written(value) if is_set else None, source)


def _write(settings: list[Setting], path: str) -> str:
    lines = [make_line(f"# {path or f'no configuration: {paths.config_file()} is not there'}")]
    section = ""
    for setting in settings:
        of, _, name = setting.key.rpartition(".")
        if of != section:
            section = of
            lines += ["", f"[{of}]"]
        source = os.path.basename(setting.source) if setting.source == path else setting.source
        written = f"{name} = {write_value(setting.value)}"
        if setting.value is None:
            written = f"# {name} is {'set, and not shown' if setting.is_hidden else 'not set'}"
        lines.append(f"{written:<{VALUE_COLUMN}}  # {make_line(source)}")
    return "".join(f"{line}\n" for line in lines)


def _example(gpu: str) -> str:
    from modelpipes.machine.cards import parse_gpu

    if gpu == "cpu":
        return write_example("cpu", None)
    cards = parse_gpu(gpu).cards
    if len(cards) != 1 or cards[0].stand_in:
        raise UsageError(f"--gpu {gpu}: name one card, or cpu")
    return write_example(cards[0].name, cards[0].total_bytes)
