"""Settings -> TOML that `reading` reads again, and their JSON Schema."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import msgspec

from modelpipes.config.settings import (
    SECTIONS,
    VERSION,
    VERSION_TEXT,
    Amount,
    Budget,
    Cpus,
    Limit,
    Seconds,
    Section,
    Size,
)
from modelpipes.errors import UsageError
from modelpipes.values.formats import CONFIGURATION
from modelpipes.values.units import LEAST_AMOUNT, MAX_SECONDS, format_seconds, parse_seconds

_SIZE = r"^\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kKmMgGtTpPeE]([iI]?[bB])?|[bB])?\s*$"
_TIME = r"^\s*(([0-9]+\.?[0-9]*|\.[0-9]+)\s*(us|ms|s|m|min|h|d)?|none)\s*$"
_CPUS = r"^ *[0-9]{1,5}( *- *[0-9]{1,5})? *(, *[0-9]{1,5}( *- *[0-9]{1,5})? *)*$"
_UNITS = (("GB", 10**9), ("GiB", 1 << 30), ("MB", 10**6), ("MiB", 1 << 20))


def write_value(value: Any) -> str:
    """A value of a key as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Size):
        return _write_size(value)
    if isinstance(value, Seconds) and (text := _write_seconds(value)):
        return text
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) else f"{value:.15g}"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_write_text(key)} = {write_value(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write_value, value))}]"
    return _write_text(value)


def as_written(value: Any) -> Any:
    """A value as it is once the TOML of `write_value` is parsed: a size is "16GB", a time "30s"."""
    return tomllib.loads(f"key = {write_value(value)}")["key"]


def _write_text(text: str) -> str:
    # JSON's strings are TOML's basic ones, but for DEL, which TOML wants escaped; what else would command a terminal
    # is escaped as well. Half a surrogate pair has no escape in TOML.
    written = json.dumps(text, ensure_ascii=False)
    return "".join(each if each.isprintable() or "\ud800" <= each <= "\udfff" else _escape(each) for each in written)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _write_seconds(seconds: float) -> str:
    """A time in words; empty where they would not say it exactly."""
    if seconds == MAX_SECONDS:
        return '"none"'
    text = format_seconds(seconds)
    try:
        return f'"{text}"' if parse_seconds(text) == seconds else ""
    except UsageError:  # 0, or less than a person would write
        return ""


def _write_size(size: int) -> str:
    for unit, scale in _UNITS:
        if size and size % scale == 0:
            return f'"{size // scale}{unit}"'
        if size and size * 10 % scale == 0:
            return f'"{size / scale:.1f}{unit}"'
    return str(size)


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration, as it is once its TOML is parsed."""
    version = Annotated[int, msgspec.Meta(description=VERSION_TEXT, ge=1, le=CONFIGURATION.version)]
    tables: list[Any] = [(VERSION, version, 1)]
    for heading, kind in SECTIONS.items():
        name, _, is_named = heading.partition(".")
        table: Any = _as_written(kind)
        tables.append((name.replace("-", "_"), Mapping[str, table] if is_named else table, {}))
    file = msgspec.defstruct("Config", tables, forbid_unknown_fields=True, rename=lambda name: name.replace("_", "-"))
    return msgspec.json.schema(file, schema_hook=_quantity)


def _as_written(kind: type[Section]) -> type[msgspec.Struct]:
    """The same section with defaults as a file has them: msgspec's schema knows nothing of sizes and times."""
    hints = get_type_hints(kind, include_extras=True)
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        default = {} if field.default_factory is dict else field.default
        if isinstance(default, Size | Seconds):
            default = as_written(default)
        fields.append((field.name, hints[field.name], *([] if field.required else [default])))
    named = {"__doc__": kind.__doc__}
    return msgspec.defstruct(kind.__name__, fields, kw_only=True, forbid_unknown_fields=True, namespace=named)


def _quantity(kind: type) -> dict[str, Any]:
    if kind is Cpus:
        return {"type": "string", "pattern": _CPUS}
    if issubclass(kind, Size):
        auto = [{"const": "auto"}] if kind is Budget else []
        whole = {"type": "integer", "minimum": LEAST_AMOUNT if kind is Amount else 0}
        return {"anyOf": [*auto, whole, {"type": "string", "pattern": _SIZE}]}
    least = "exclusiveMinimum" if issubclass(kind, Limit) else "minimum"
    return {"anyOf": [{"type": "number", "maximum": MAX_SECONDS, least: 0}, {"type": "string", "pattern": _TIME}]}
