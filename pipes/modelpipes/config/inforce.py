"""What is in force for every key, and where it comes from: the file, a variable, or the default."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from modelpipes.config.reading import Loaded
from modelpipes.config.settings import SECTIONS, VERSION, keys
from modelpipes.config.writing import as_written, write_value
from modelpipes.values.formats import CONFIGURATION

SECRETS = ("server.key", "$OPENAI_API_KEY")  # keys and variables


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key and what is in force: `value` as TOML has it, or null; `source` is a file, $VARIABLE or default.

    What is secret has a value that `is_hidden`, and null in its place.
    """

    key: str
    value: Any
    source: str
    is_hidden: bool = False


def find_settings(
    loaded: Loaded, path: str, environment: Mapping[str, str], variables: Mapping[str, str]
) -> Iterator[Setting]:
    """Every key, with what is in force for it, in a process with this environment; `variables` beat a key."""
    yield _setting(VERSION, CONFIGURATION.version, path if VERSION in loaded.tables else "default")
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
            variable = variables.get(full, "")
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
