"""The JSON Schemas of messages, transcripts, the configuration and every report: which there are, how one is made."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import GenericAlias
from typing import Any

import msgspec

from modelpipes.errors import UsageError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = 1  # of what is described, not of the program
NEAR = 0.4  # of difflib's likeness: `ask` is near enough to `ask-model`
CONFIG = "config"

# name: (what it describes, the module and the types that make it, [] for a list)
SCHEMAS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "message": ("A message on a pipe.", "pipe.message", ("Message",)),
    "filter-told": ("A line to a program of --filter --json.", "chat.voices.jsonfilter", ("Told",)),
    "filter-said": ("A line of such a program.", "chat.voices.jsonfilter", ("Said",)),
    "transcript": ("A line of a transcript.", "chat.transcript", ("Header", "Turn", "Choice", "End")),
    CONFIG: ("A configuration, its TOML read.", CONFIG, ()),
    "list-seats": ("list-seats --json", "commands.views.seats", ("Seat[]",)),
    "ask-model": (
        "ask-model --json; a line of it with --each-line",
        "commands.views.answer",
        ("Answered", "Unanswered"),
    ),
    "chat-models": ("A line of chat-models --json.", "chat.transcript", ("Turn",)),
    "ping-pipes": (
        "ping-pipes --json; with --sweep a list of them",
        "commands.views.ping",
        ("PingReport", "FloodReport", "PingReport[]", "FloodReport[]"),
    ),
    "find-gguf": ("find-gguf --json", "commands.views.listing", ("ListingReport",)),
    "find-gguf-jsonl": ("A line of find-gguf --format jsonl.", "fit.listing", ("Line",)),
    "fit-models": ("fit-models --json", "commands.views.plan_json", ("PlanReport",)),
    "serve-models": ("serve-models status --json", "gateway.wire", ("Residency",)),
    "serve-models-load": (
        "serve-models load NAME --json, and of unload, pin, unpin",
        "gateway.wire",
        ("ModelState",),
    ),
    "events": (
        "A line of serve-models events --json, and of its file",
        "gateway.wire",
        ("EventLine",),
    ),
    "watch-gpu": ("watch-gpu --json; a line of it with --format jsonl", "commands.views.gpu", ("Look",)),
    "check-system": ("check-system --json", "commands.check", ("SystemReport",)),
    "prompt": (
        "A line of chat-models --dry-run --json; show --as",
        "chat.preview",
        ("Prompt",),
    ),
    "run": ("modelpipes run --json", "commands.views.answer", ("Answered",)),
    "show": ("modelpipes show --format json", "chat.contents", ("Contents",)),
    "config-show": ("modelpipes config show --json", "config.inforce", ("Setting[]",)),
    "build-engine": ("modelpipes build-engine --json", "commands.views.engines", ("Made",)),
    "build-engine-list": ("modelpipes build-engine --list --json", "commands.views.engines", ("Listed[]",)),
    "build-engine-dry-run": ("modelpipes build-engine --dry-run --json", "commands.views.engines", ("DryRun",)),
}


def schema(name: str) -> dict[str, Any]:
    """The schema of one of SCHEMAS; UsageError, which names the nearest, for another."""
    if name not in SCHEMAS:
        import difflib

        near = difflib.get_close_matches(name, SCHEMAS, 1, cutoff=NEAR)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SCHEMAS)}"
        raise UsageError(f"no schema is called {name!r}: {hint}")
    text, module, kinds = SCHEMAS[name]
    about = {"$schema": DIALECT, "$id": f"urn:modelpipes:{name}:{VERSION}", "title": text}
    if name == CONFIG:
        from modelpipes.config.writing import schema as schema_of_config

        return about | schema_of_config()
    return about | _describe([_find(module, kind) for kind in kinds])


def _find(module: str, name: str) -> Any:
    """A type of a module; NAME[] is a list of them."""
    kind = getattr(importlib.import_module(f"modelpipes.{module}"), name.removesuffix("[]"))
    return GenericAlias(list, (kind,)) if name.endswith("[]") else kind


def _describe(types: list[Any]) -> dict[str, Any]:
    """What is of one of these types, as JSON."""
    from msgspec import inspect

    schemas, parts = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    for part in parts.values():
        if "description" in part:
            part["description"] = " ".join(part["description"].split())
    for kind in _records(inspect.multi_type_info(types), set()):
        if not _omits_defaults(kind):
            _require_all(parts[kind.__name__])
    one = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return one | {"$defs": parts}


def _records(found: object, seen: set[type]) -> Iterator[type]:
    """Every Struct and dataclass in what msgspec tells of types, each once."""
    if isinstance(found, tuple):
        for each in found:
            yield from _records(each, seen)
    elif isinstance(found, msgspec.Struct):  # msgspec tells of types in structs of its own
        kind = getattr(found, "cls", None)
        if isinstance(kind, type):
            if kind in seen:
                return
            seen.add(kind)
            yield kind
        for name in found.__struct_fields__:
            yield from _records(getattr(found, name), seen)


def _omits_defaults(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct) and kind.__struct_config__.omit_defaults


def _require_all(part: dict[str, Any]) -> None:
    """What has a default is written all the same; only what may be unset has none and is not required."""
    always = set(part.get("required", ()))
    for name, field in part.get("properties", {}).items():
        if "default" in field:
            del field["default"]
            always.add(name)
    part["required"] = [name for name in part["properties"] if name in always]
