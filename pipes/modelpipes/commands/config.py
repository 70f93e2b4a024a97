"""config: what is in force and where it comes from; an example to begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click
import msgspec

from modelpipes import output, paths
from modelpipes.commands import options
from modelpipes.config.example import write_example
from modelpipes.config.reading import Loaded
from modelpipes.config.settings import SECTIONS, Config, keys
from modelpipes.config.writing import as_written, write_value
from modelpipes.errors import UsageError
from modelpipes.safetext import make_line

SHOW, EXAMPLE = "show", "example"
# The variables that beat a key.
VARIABLES = {**options.VARIABLES, "room.prefix": "PIPE_PREFIX", "ask-model.timeout": "PIPE_TIMEOUT"}
SECRETS = ("server.key",)
VALUE_COLUMN = 38


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key and what is in force: `value` as TOML has it, or null; `source` is a file, $VARIABLE or default."""

    key: str
    value: Any
    source: str


@click.command(context_settings=options.settings)
@click.argument("action", type=click.Choice([SHOW, EXAMPLE]))
@click.option("--gpu", default="rtx4080", metavar="CARD", help="example: for this card, as rtx3090, or cpu.  [rtx4080]")
@options.as_json
@options.common
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
    path = ctx.meta.get("config")
    ours = ctx.meta.get("variables", [])
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    settings = list(find_settings(ctx.meta.get("loaded") or Loaded(Config(), {}), path or "", environment))
    if as_json:
        output.write_json(settings)
    else:
        output.write_text(_write(settings, path))


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
                value = tuple(said.split(os.pathsep)) if full == "find-gguf.search_path" else said
                yield _setting(full, value, f"${variable}")
            else:
                yield _setting(full, loaded.value(full), path if loaded.get(full) is not None else "default")


def _quoted(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else write_value(name)


def _setting(key: str, value: Any, source: str) -> Setting:
    is_set = value not in (None, "", ()) and value != {}
    if key in SECRETS and is_set:
        return Setting(key, None, f"{source}; it is not shown")
    return Setting(key, as_written(value) if is_set else None, source)


def _write(settings: list[Setting], path: str | None) -> str:
    lines = [make_line(f"# {path or f'no configuration: {paths.config_file()} is not there'}")]
    section = ""
    for setting in settings:
        of, _, name = setting.key.rpartition(".")
        if of != section:
            section = of
            lines += ["", f"[{of}]"]
        source = os.path.basename(setting.source) if setting.source == path else setting.source
        written = f"# {name} is not set" if setting.value is None else f"{name} = {write_value(setting.value)}"
        lines.append(f"{written:<{VALUE_COLUMN}}  # {make_line(source)}")
    return "".join(f"{line}\n" for line in lines)


def _example(gpu: str) -> str:
    from modelpipes.gpu import parse_gpu

    if gpu == "cpu":
        return write_example("cpu", None)
    cards = parse_gpu(gpu).cards
    if len(cards) != 1:
        raise UsageError(f"--gpu {gpu}: name one card, or cpu")
    return write_example(cards[0].name, cards[0].total_bytes)
