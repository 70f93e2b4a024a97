"""schema: the JSON Schema of a message, a transcript, the configuration, and of every report."""

from __future__ import annotations

import click
import msgspec

from modelpipes.commands.cli import options, values
from modelpipes.commands.views import schemas
from modelpipes.terminal import output

INDENT = 2
NAME = values.Text(lambda ctx, incomplete: [(name, about) for name, (about, *_) in schemas.SCHEMAS.items()])


@click.command(context_settings=options.settings)
@click.argument("name", metavar="[NAME]", required=False, type=NAME)
@options.lenient
def command(name: str | None) -> None:
    """Print the JSON Schema (2020-12) of what commands report, read and write.

    Without NAME, list the names, each with what it describes.

    \b
    Examples:
      modelpipes schema
      modelpipes schema message
      modelpipes schema find-gguf | jq '."$defs".Line.properties | keys'
    """
    if name is None:
        width = max(map(len, schemas.SCHEMAS))
        output.write_text("".join(f"{each:<{width}}  {text}\n" for each, (text, *_) in schemas.SCHEMAS.items()))
    else:
        output.write_text(msgspec.json.format(msgspec.json.encode(schemas.schema(name)), indent=INDENT).decode() + "\n")
