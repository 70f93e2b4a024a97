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
from modelpipes.safetext import make_line
from modelpipes.units import MAX_SECONDS, parse_bytes, parse_seconds

DEFAULT_LISTEN = "127.0.0.1:9090"
AUTO = "auto"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_NAME_RULE = "a name is letters, digits and . _ : / - (a letter or digit first, 128 at most)"
_KEY = re.compile(r"[!-~]+")  # what an HTTP header carries as it is
_LISTEN = re.compile(r"unix:.+|\S+:[0-9]{1,5}")
MAX_TOKENS = 2**31 - 1  # llama.cpp counts a context in 32 bits
MAX_PARALLEL = 256  # LLAMA_MAX_SEQ of llama.cpp's llama-cparams.h
MAX_BYTES = 2**63 - 1
HARMLESS = ("pin", "idle_unload_s", "aliases")  # of a model: an engine that runs need not know
AT_START = ("server.listen", "server.key", "server.max_waiting", "server.max_lease_s", "memory.keep_conversations")
_Section = TypeVar("_Section", bound=msgspec.Struct)

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class Size(int):
    """Bytes, written as a number or as "16GB"."""


class Seconds(float):
    """A time, written as a number of seconds or as "30s"; "none" is MAX_SECONDS: a timer takes no infinity."""


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


_SECTIONS: Mapping[str, type[msgspec.Struct]] = {"server": Server, "memory": Memory, "models.NAME": Model, "scan": Scan}


class Config(msgspec.Struct, frozen=True):
    """All of it. Files are absolute."""

    server: Server = Server()
    memory: Memory = Memory()
    models: Mapping[str, Model] = {}
    scan: Scan = Scan()


class Change(msgspec.Struct, frozen=True):
    """What differs between two configurations; names and keys are sorted.

    `changed` models need another engine; `touched` ones changed in HARMLESS keys only. `restart` names the keys that
    are read at the start only. `memory` and `scan`: whether another key of that section changed.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    memory: bool = False
    scan: bool = False


def difference(old: Config, new: Config) -> Change:
    """What of a running daemon a new configuration touches. Pure."""
    both = sorted(old.models.keys() & new.models.keys())
    keys = {name: _changed_keys(old.models[name], new.models[name]) for name in both}
    sections = {f"server.{key}" for key in _changed_keys(old.server, new.server)}
    sections |= {f"memory.{key}" for key in _changed_keys(old.memory, new.memory)}
    return Change(
        added=tuple(sorted(new.models.keys() - old.models.keys())),
        removed=tuple(sorted(old.models.keys() - new.models.keys())),
        changed=tuple(name for name in both if not keys[name] <= set(HARMLESS)),
        touched=tuple(name for name in both if keys[name] and keys[name] <= set(HARMLESS)),
        restart=tuple(sorted(sections & set(AT_START))),
        memory=any(key.startswith("memory.") for key in sections - set(AT_START)),
        scan=old.scan != new.scan,
    )


def _changed_keys(old: msgspec.Struct, new: msgspec.Struct) -> set[str]:
    return {key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)}


def load(path: str) -> Config:
    """Read a configuration; UsageError, in one line with the key's name, for what is wrong with it."""
    path = os.path.expanduser(path)
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except FileNotFoundError:
        example = '[models.NAME] and, below it, file = "/path/to/model.gguf" (config/serve.toml shows all keys)'
        raise UsageError(make_line(f"no configuration {path}: write one with {example}")) from None
    except OSError as error:
        raise UsageError(make_line(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}")) from None
    except ValueError as error:  # no UTF-8, or no file's name
        raise UsageError(make_line(f"{path}: cannot be read: {error}")) from None
    try:
        return read(text, os.path.dirname(os.path.abspath(path)))
    except UsageError as error:
        raise UsageError(make_line(f"{path}: {error}")) from None


def read(text: str, folder: str) -> Config:
    """The configuration in this text, relative files meant from `folder`; UsageError."""
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise UsageError("no TOML that anybody needs: nested too deeply") from None
    except ValueError as error:  # also a number of more digits than Python reads
        raise UsageError(f"no TOML: {error}") from None
    return read_tables(tables, folder)


def read_tables(tables: Mapping[str, Any], folder: str) -> Config:
    """As `read`, of what the TOML says."""
    _check_keys(tables, ("server", "memory", "models", "scan"), "")
    server = _section(tables, "server", Server)
    memory = _section(tables, "memory", Memory)
    scan = _section(tables, "scan", Scan)
    models = {}
    for name, table in _table(tables, "models").items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"models.{name}: {_NAME_RULE}")
        _check_is_not_dotted(name, table)
        model = _convert(table, Model, f"models.{name}")
        _check_range(f"models.{name}.ctx_size", model.ctx_size, 64, MAX_TOKENS)
        _check_range(f"models.{name}.parallel", model.parallel, 1, MAX_PARALLEL)
        if model.gpu_layers is not None:
            _check_range(f"models.{name}.gpu_layers", model.gpu_layers, 0, MAX_TOKENS)
        models[name] = msgspec.structs.replace(model, file=_file(f"models.{name}.file", model.file, folder))
    _check_names(models)
    _check_range("scan.ctx_size", scan.ctx_size, 64, MAX_TOKENS)
    _check_range("scan.parallel", scan.parallel, 1, MAX_PARALLEL)
    directories = tuple(_path("scan.directories", directory, folder) for directory in scan.directories)
    return Config(_server(server, folder), memory, models, msgspec.structs.replace(scan, directories=directories))


def _server(server: Server, folder: str) -> Server:
    """With its key read, and the path of its socket made whole."""
    _check_range("server.max_waiting", server.max_waiting, 1, MAX_TOKENS)
    if server.max_lease_s is not None and not server.max_lease_s:
        raise UsageError("server.max_lease_s: 0 leaves no time at all")
    if not _LISTEN.fullmatch(server.listen):
        raise UsageError(f'server.listen: expected "HOST:PORT" or "unix:PATH", got {server.listen!r}')
    scheme, _, path = server.listen.partition(":")
    listen = f"unix:{_path('server.listen', path, folder)}" if scheme == "unix" else server.listen
    key = server.key
    if server.key_file:
        if key:
            raise UsageError("server.key_file: there is a server.key already: give one of them")
        key = _read_key(_path("server.key_file", server.key_file, folder))
    if key and not _KEY.fullmatch(key):
        raise UsageError(f"server.{'key_file' if server.key_file else 'key'}: a key is ASCII letters, digits and signs")
    return msgspec.structs.replace(server, listen=listen, key=key)


def _check_is_not_dotted(name: str, table: Any) -> None:
    """TOML takes [models.qwen2.5] for a table in a table: say so, and not that `5` is no key."""
    inner = next((key for key, value in table.items() if isinstance(value, dict)), None) if _is_table(table) else None
    if inner is not None:
        raise UsageError(f'models.{name}.{inner} is no key: a name with dots is quoted: [models."{name}.{inner}"]')


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _section(tables: Mapping[str, Any], name: str, kind: type[_Section]) -> _Section:
    return _convert(_table(tables, name), kind, name)


def _table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{name} is a table: write [{name}{'.NAME' if name == 'models' else ''}]")
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
            size = parse_bytes(value) if number is None else int(number)
            if 0 <= size <= MAX_BYTES:
                return Size(size)
        if kind is Seconds and (isinstance(value, str) or (number is not None and 0 <= number <= MAX_SECONDS)):
            seconds = parse_seconds(value) if number is None else float(number)
            return Seconds(MAX_SECONDS if seconds is None else seconds)
    except UsageError as error:
        raise ValueError(str(error)) from None
    wanted = 'a size such as "16GB"' if kind is Size else 'a time such as 30 or "30s"'
    raise ValueError(f"expected {wanted}, got {value!r}")


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            homes = [f"[{name}]" for name, kind in _SECTIONS.items() if key in kind.__struct_fields__]
            if homes and f"[{prefix.partition('.')[0]}]" not in homes:
                hint = f"it belongs to {' or '.join(homes)}"
            raise UsageError(f"{prefix}{key} is no key: {hint}")


def _check_range(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{key} is {f'at least {least}' if value < least else f'at most {most}'}, not {value}")


def _check_names(models: Mapping[str, Model]) -> None:
    owners: dict[str, str] = {name: name for name in models}
    for name, model in models.items():
        for alias in model.aliases:
            if not _NAME.fullmatch(alias):
                raise UsageError(f"models.{name}.aliases: {alias!r}: {_NAME_RULE}")
            if owners.setdefault(alias, name) != name:
                raise UsageError(f"models.{name}.aliases: {alias!r} is {owners[alias]} already")


def _file(key: str, given: str, folder: str) -> str:
    """A path from the file's own folder; `tiny-chat` and names that find-gguf prints stay as they are."""
    path = _path(key, given, folder)
    is_path = given.startswith(("/", ".", "~")) or given.endswith(".gguf") or os.path.exists(path)
    return path if is_path else given


def _path(key: str, given: str, folder: str) -> str:
    """An absolute path, a relative one meant from `folder`; UsageError for what names no file."""
    if not given or "\0" in given:
        raise UsageError(f"{key}: expected a path, got {given!r}")
    return os.path.normpath(os.path.join(folder, os.path.expanduser(given)))


def _read_key(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"server.key_file: {path} cannot be read: {error}") from None
    if not key:
        raise UsageError(f"server.key_file: {path} is empty")
    return key
