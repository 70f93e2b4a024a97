"""The configuration file: TOML, checked, as typed values.

[server]                         # where serve-models listens, and for whom
listen = "127.0.0.1:9090"
[memory]                         # what its engines may take
budget = "16GB"
[models.qwen]                    # one table for each model
file = "~/models/qwen2.5-7b-instruct-q4_k_m.gguf"
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from modelpipes.errors import UsageError
from modelpipes.units import parse_bytes, parse_seconds

DEFAULT_LISTEN = "127.0.0.1:9090"
AUTO = "auto"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_Section = TypeVar("_Section", bound=msgspec.Struct)

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class Size(int):
    """Bytes, written as a number or as "16GB"."""


class Seconds(float):
    """A time, written as a number of seconds or as "30s"."""


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway. `listen` is HOST:PORT or unix:PATH; a key is demanded of all who ask where one is given."""

    listen: str = DEFAULT_LISTEN
    key: str = ""
    key_file: str = ""
    max_waiting: int = 512
    max_lease_s: Seconds | None = None


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all engines together may take; None: what is free. `reserve` stays free beside it, then."""

    budget: Size | None = None
    host_budget: Size | None = None
    reserve: Size = Size(1_000_000_000)
    min_resident_s: Seconds = Seconds(5)
    max_wait_s: Seconds = Seconds(60)
    keep_conversations: bool = True


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model to be served; what `attach-model` takes as options, under the same names."""

    file: str
    ctx_size: int = 4096
    parallel: int = 1
    kv_type: CacheType = "f16"
    gpu_layers: int | None = None
    cpu_moe: bool = False
    pin: bool = False
    idle_unload_s: Seconds | None = None
    aliases: tuple[str, ...] = ()
    engine: Literal["auto", "llama-server", "embedded"] = "auto"
    engine_args: tuple[str, ...] = ()


class Scan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Folders in which any GGUF file is servable by its name, with these settings."""

    directories: tuple[str, ...] = ()
    ctx_size: int = 4096
    parallel: int = 1


class Config(msgspec.Struct, frozen=True):
    """All of it. Files are absolute."""

    server: Server = Server()
    memory: Memory = Memory()
    models: Mapping[str, Model] = {}
    scan: Scan = Scan()


def load(path: str) -> Config:
    """Read a configuration; UsageError, in one line with the key's name, for what is wrong with it."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"no configuration {path}: write one like config/serve.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    try:
        return read(text, os.path.dirname(os.path.abspath(path)))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def read(text: str, folder: str) -> Config:
    """The configuration in this text, relative files meant from `folder`; UsageError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"no TOML: {error}") from None
    _check_keys(tables, ("server", "memory", "models", "scan"), "")
    server = _section(tables, "server", Server)
    memory = _section(tables, "memory", Memory)
    scan = _section(tables, "scan", Scan)
    models = {}
    for name, table in _table(tables, "models").items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"models.{name}: a model's name is letters, digits and . _ : / -")
        model = _convert(table, Model, f"models.{name}")
        _check_range(f"models.{name}.ctx_size", model.ctx_size, 64)
        _check_range(f"models.{name}.parallel", model.parallel, 1)
        if model.gpu_layers is not None:
            _check_range(f"models.{name}.gpu_layers", model.gpu_layers, 0)
        models[name] = msgspec.structs.replace(model, file=_file(model.file, folder))
    _check_names(models)
    _check_range("scan.ctx_size", scan.ctx_size, 64)
    _check_range("scan.parallel", scan.parallel, 1)
    _check_range("server.max_waiting", server.max_waiting, 1)
    if server.key_file:
        if server.key:
            raise UsageError("server.key_file: there is a server.key already: give one of them")
        server = msgspec.structs.replace(server, key=_read_key(_file(server.key_file, folder)))
    directories = tuple(_file(directory, folder) for directory in scan.directories)
    return Config(server, memory, models, msgspec.structs.replace(scan, directories=directories))


def _section(tables: Mapping[str, Any], name: str, kind: type[_Section]) -> _Section:
    return _convert(_table(tables, name), kind, name)


def _table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{name} is a table: write [{name}]")
    return table


def _convert(table: Any, kind: type[_Section], path: str) -> _Section:
    if not isinstance(table, dict):
        raise UsageError(f"{path} is a table: write [{path}]")
    fields = kind.__struct_fields__
    _check_keys(table, fields, f"{path}.")
    given = {key: value for key, value in table.items() if value != AUTO or key not in ("budget", "host_budget")}
    try:
        return msgspec.convert(given, kind, dec_hook=_quantity)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        what = what.replace("Object missing required field", "it needs the key")
        raise UsageError(f"{path}{'.' + key if key else ''}: {what[0].lower()}{what[1:]}") from None


def _quantity(kind: type, value: Any) -> Any:
    """A size or a time; msgspec adds where it stands."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    try:
        if kind is Size and (isinstance(value, str) or isinstance(number, int)):
            return Size(parse_bytes(value) if number is None else number)
        if kind is Seconds and (isinstance(value, str) or (number is not None and number >= 0)):
            seconds = parse_seconds(value) if number is None else float(number)
            return Seconds(float("inf") if seconds is None else seconds)
    except UsageError as error:
        raise ValueError(str(error)) from None
    wanted = 'a size such as "16GB"' if kind is Size else 'a time such as 30 or "30s"'
    raise ValueError(f"expected {wanted}, got {value!r}")


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"{prefix}{key} is no key: {hint}")


def _check_range(key: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{key} is at least {least}, not {value}")


def _check_names(models: Mapping[str, Model]) -> None:
    owners: dict[str, str] = {name: name for name in models}
    for name, model in models.items():
        for alias in model.aliases:
            if not _NAME.fullmatch(alias):
                raise UsageError(f"models.{name}.aliases: {alias!r}: a name is letters, digits and . _ : / -")
            if owners.setdefault(alias, name) != name:
                raise UsageError(f"models.{name}.aliases: {alias!r} is {owners[alias]} already")


def _file(path: str, folder: str) -> str:
    """A path from the file's own folder; `tiny-chat` and names that find-gguf prints stay as they are."""
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return path
    there = os.path.join(folder, path)
    is_path = path.startswith(".") or path.endswith(".gguf") or os.path.exists(there)
    return os.path.normpath(there) if is_path else path


def _read_key(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"server.key_file: {path} cannot be read: {error}") from None
    if not key:
        raise UsageError(f"server.key_file: {path} is empty")
    return key
