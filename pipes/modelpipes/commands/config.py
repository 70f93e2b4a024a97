"""config: what is in force and where it comes from; an example to begin with."""

from __future__ import annotations

import os

import click
from click.core import ParameterSource

from modelpipes.commands.cli import options
from modelpipes.commands.cli.configured import VARIABLES as OF_FILES
from modelpipes.commands.cli.configured import in_force
from modelpipes.commands.cli.voices import API_KEY
from modelpipes.commands.views import configuration
from modelpipes.config.example import example_for
from modelpipes.config.inforce import find_settings
from modelpipes.config.reading import Loaded
from modelpipes.config.settings import Config
from modelpipes.errors import UsageError
from modelpipes.terminal import output

SHOW, EXAMPLE = "show", "example"
# The variables that beat a key.
OF_OPTIONS = {"room.prefix": "PIPE_PREFIX", "ask-model.timeout": "PIPE_TIMEOUT", "voice.api_key_file": API_KEY}
VARIABLES = OF_FILES | OF_OPTIONS


@click.command(context_settings=options.settings)
@click.argument("action", type=click.Choice([SHOW, EXAMPLE]))
@click.option("--gpu", default="rtx4080", metavar="CARD", help="example: for this card, as rtx3090, or cpu.  [rtx4080]")
@options.formats("toml", "json")
@options.lenient
@click.pass_context
def command(ctx: click.Context, /, action: str, gpu: str, format_: str) -> None:
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
        if format_ != "toml":
            raise UsageError(
                f"--format {format_} is for show; a configuration's JSON Schema is: modelpipes schema config"
            )
        output.write_text(example_for(gpu))
        return
    if ctx.get_parameter_source("gpu") is ParameterSource.COMMANDLINE:
        raise UsageError("--gpu is for the example")
    configured = in_force(ctx)
    configured.insist()
    environment = {name: value for name, value in os.environ.items() if name not in configured.variables}
    settings = list(find_settings(configured.loaded or Loaded(Config(), {}), configured.path, environment, VARIABLES))
    if format_ == "json":
        output.write_json(settings)
    else:
        configuration.write(settings, configured.path, format_)
