"""How a model is to choose its words, as options say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from modelpipes.commands.cli import reading, values
from modelpipes.errors import UsageError
from modelpipes.pipe.message import Sampling

STOP = "stop"  # may be repeated
# option: (metavar, type, help)
SAMPLING: dict[str, tuple[str, Any, str]] = {
    "max-tokens": ("N", click.IntRange(1), "Longest answer."),
    "temperature": ("T", click.FloatRange(0), "How freely it chooses words."),
    "top-p": ("P", click.FloatRange(0, 1), "Of the likeliest words, this share."),
    "seed": ("N", click.IntRange(0), "Same seed, same answer."),
    "top-k": ("N", click.IntRange(0), "Of the likeliest words, so many."),
    "min-p": ("P", click.FloatRange(0, 1), "No word less likely than this share of the likeliest."),
    "stop": ("TEXT", click.STRING, "End an answer before this; may be repeated."),
}


def sampling_options(command: Any) -> Any:
    """The options of `SAMPLING`, for one message, and --schema."""
    schema = click.option("--schema", metavar="FILE", type=values.FILE, help="Have the answer be JSON of this schema.")
    command = schema(command)
    for name, (metavar, kind, text) in reversed(SAMPLING.items()):
        made = click.option(f"--{name}", type=kind, metavar=metavar, multiple=name == STOP, help=text)
        command = made(command)
    return command


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """How words are to be chosen, as options say it; UsageError for a schema that is none."""
    named = {name.replace("-", "_"): given[name.replace("-", "_")] for name in SAMPLING}
    schema = given.get("schema")
    return Sampling(**named, schema=_read_schema(schema) if schema else None)


def _read_schema(path: str) -> dict[str, Any]:
    import json

    try:
        schema = json.loads(reading.read_text(f"@{path}"))
    except ValueError as e:
        raise UsageError(f"--schema {path}: is no JSON: {e}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--schema {path}: a JSON schema is an object")
    return schema
