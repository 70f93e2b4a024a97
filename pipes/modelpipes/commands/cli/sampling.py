"""How a model is to choose its words, as options say it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from modelpipes.commands.cli import reading, values
from modelpipes.errors import UsageError
from modelpipes.pipe.message import Sampling

STOP = "stop"  # may be repeated
BOM = "\ufeff"  # some editors begin a file with it


class Finite(click.FloatRange):
    """A number within bounds; `nan`, which is within any, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


# Bounds as in [voice] of the configuration: what is beyond them no engine takes, or not as it was meant.
# option: (metavar, type, help)
SAMPLING: dict[str, tuple[str, Any, str]] = {
    "max-tokens": ("N", click.IntRange(1, 2**31 - 1), "Longest answer."),
    "temperature": ("T", Finite(0, 100), "How freely it chooses words."),
    "top-p": ("P", Finite(0, 1), "Of the likeliest words, this share."),
    "seed": ("N", click.IntRange(0, 2**32 - 1), "Same seed, same answer."),
    "top-k": ("N", click.IntRange(0, 10**6), "Of the likeliest words, so many."),
    "min-p": ("P", Finite(0, 1), "No word less likely than this share of the likeliest."),
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
    """How words are to be chosen, as options say it; UsageError for a schema that is none, or an empty --stop."""
    named = {name.replace("-", "_"): given[name.replace("-", "_")] for name in SAMPLING}
    if "" in named[STOP]:
        raise UsageError("--stop is empty: every answer would end before its first word")
    schema = given.get("schema")
    return Sampling(**named, schema=_read_schema(schema) if schema else None)


def _read_schema(path: str) -> dict[str, Any]:
    import json

    try:
        schema = json.loads(reading.read_text(f"@{path}").removeprefix(BOM), parse_constant=_refuse_constant)
        msgspec.json.encode(schema)
    except UnicodeEncodeError:
        raise UsageError(f"--schema {path}: has half a surrogate pair, which is no Unicode text") from None
    except ValueError as e:
        raise UsageError(f"--schema {path}: is no JSON: {e}") from None
    except RecursionError:
        raise UsageError(f"--schema {path}: is nested too deeply") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--schema {path}: a JSON schema is an object")
    return schema


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has {name}")
