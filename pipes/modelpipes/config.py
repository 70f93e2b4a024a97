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
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from modelpipes.errors import UsageError
from modelpipes.safetext import make_line
from modelpipes.units import MAX_SECONDS, parse_bytes, parse_seconds

DEFAULT_LISTEN = "127.0.0.1:9090"
AUTO = "auto"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_NAME_RULE = "a name is letters, digits and . _ : / - (a letter or digit first, 128 at most)"
_KEY = re.compile(r"[!-~]+")  # what an HTTP header carries as it is
_LISTEN = re.compile(r"unix:.+|(?:\[[^]\s]+\]|[^\s/]+):([0-9]{1,5})", re.ASCII)
_WRONG_TYPE = re.compile(r"(?:Expected `|Invalid enum value).* - at `\$\.(\w+)((?:\[[0-9]+\])?)`", re.DOTALL)
_WRONG_VALUE = re.compile(r"(.*) - at `\$\.(\w+)`", re.DOTALL)  # said by _quantity
MAX_PORT = 65535
MAX_SHOWN_CHARS = 60  # of a value that is refused: enough to find it again
MAX_REFUSAL_CHARS = 600  # of a line that a person reads; keys and paths have no end of their own
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
            text = file.read().decode("utf-8-sig")  # some editors begin with a mark
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
        raise UsageError(f"{make_line(path)}: {error}") from None


def read(text: str, folder: str) -> Config:
    """The configuration in this text, relative files meant from `folder`; UsageError, in one safe line."""
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise UsageError("no TOML that anybody needs: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(_make_refusal(f"no TOML: {error}")) from None
    except ValueError:  # sys.set_int_max_str_digits
        raise UsageError("no TOML: a number of more digits than anybody needs") from None
    return read_tables(tables, folder)


def read_tables(tables: Mapping[str, Any], folder: str) -> Config:
    """As `read`, of what the TOML says."""
    try:
        return _read_tables(tables, folder)
    except UsageError as error:
        raise UsageError(_make_refusal(str(error))) from None


def _make_refusal(text: str) -> str:
    line = make_line(text)
    return line if len(line) <= MAX_REFUSAL_CHARS else f"{line[:MAX_REFUSAL_CHARS]}…"


def _read_tables(tables: Mapping[str, Any], folder: str) -> Config:
    _check_keys(tables, ("server", "memory", "models", "scan"), "")
    server = _section(tables, "server", Server)
    memory = _section(tables, "memory", Memory)
    scan = _section(tables, "scan", Scan)
    if memory.min_resident_s == MAX_SECONDS:
        raise UsageError("memory.min_resident_s: 0 is no least time; a model that shall stay for ever has pin = true")
    models = {}
    for name, table in _table(tables, "models").items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"models.{_cut(name)}: {_NAME_RULE}")
        _check_is_not_dotted(name, table)
        model = _convert(table, Model, f"models.{name}")
        _check_range(f"models.{name}.ctx_size", model.ctx_size, 64, MAX_TOKENS)
        _check_range(f"models.{name}.parallel", model.parallel, 1, MAX_PARALLEL)
        if model.gpu_layers is not None:
            _check_range(f"models.{name}.gpu_layers", model.gpu_layers, 0, MAX_TOKENS)
        if any("\0" in argument for argument in model.engine_args):
            raise UsageError(f"models.{name}.engine_args: no program takes a NUL")
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
    place = _LISTEN.fullmatch(server.listen)
    if place is None or int(place[1] or 0) > MAX_PORT:
        raise UsageError(f'server.listen: expected "HOST:PORT" or "unix:PATH", got {_shown(server.listen)}')
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
        inner = _cut(inner)
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
        raise UsageError(f"{path}{_explain(str(error), table, kind)}") from None


def _explain(said: str, table: Mapping[str, Any], kind: type[msgspec.Struct]) -> str:
    """What msgspec says of a table, with the key first, and in words of TOML."""
    if found := _WRONG_TYPE.fullmatch(said):
        key, index = found.groups()
        given = table[key][int(index[1:-1])] if index else table[key]
        shown = "something else" if key == "key" else _shown(given)  # a key belongs in no log
        return f".{key}{index}: expected {_wanted(get_type_hints(kind)[key], is_item=bool(index))}, got {shown}"
    if found := _WRONG_VALUE.fullmatch(said):
        return f".{found[2]}: {found[1]}"
    missing = [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in table]
    return f": it needs the key {missing[0]}" if missing else f": {said}"


def _wanted(hint: Any, *, is_item: bool) -> str:
    """What a key of this type takes, in words."""
    inner = [one for one in get_args(hint) if one not in (type(None), Ellipsis)]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(inner)}"
    if get_origin(hint) is tuple:
        return _wanted(inner[0], is_item=False) if is_item else 'a list such as ["a", "b"]'
    if inner:  # or None
        return _wanted(inner[0], is_item=is_item)
    return {int: "a whole number", bool: "true or false"}.get(hint, 'text in "quotes"')


def _shown(value: Any) -> str:
    """A value as TOML has it, or what it is; cut short."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return f'"{_cut(value)}"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > MAX_SHOWN_CHARS * 3:  # str() refuses what is far too long
        return "a number of very many digits"
    else:
        text = str(value)
    return _cut(text)


def _cut(text: str) -> str:
    """Text of the file as it can stand in a line; an escape sequence in it takes nothing of ours with it."""
    return make_line(text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…")


def _quantity(kind: type, value: Any) -> Any:
    """A size or a time; msgspec adds where it stands."""
    is_text = isinstance(value, str) and len(value) <= MAX_SHOWN_CHARS  # what is wrong with a text is said with it
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    try:
        if kind is Size and (is_text or is_whole):
            size = parse_bytes(value) if is_text else value
            if 0 <= size <= MAX_BYTES:
                return Size(size)
        if kind is Seconds and is_text:
            seconds = parse_seconds(value)
            return Seconds(MAX_SECONDS if seconds is None else seconds)
        if kind is Seconds and (is_whole or isinstance(value, float)) and 0 <= value <= MAX_SECONDS:
            return Seconds(value)
    except UsageError as error:
        raise ValueError(str(error)) from None
    wanted = 'a size such as "16GB"' if kind is Size else 'a time such as 30 or "30s"'
    raise ValueError(f"expected {wanted}, got {_shown(value)}")


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            homes = [f"[{name}]" for name, kind in _SECTIONS.items() if key in kind.__struct_fields__]
            if homes and f"[{prefix.partition('.')[0]}]" not in homes:
                hint = f"it belongs to {' or '.join(homes)}"
            raise UsageError(f"{prefix}{_cut(key)} is no key: {hint}")


def _check_range(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{key} is {f'at least {least}' if value < least else f'at most {most}'}, not {_shown(value)}")


def _check_names(models: Mapping[str, Model]) -> None:
    owners: dict[str, str] = {name: name for name in models}
    for name, model in models.items():
        for alias in model.aliases:
            if not _NAME.fullmatch(alias):
                raise UsageError(f"models.{name}.aliases: {_shown(alias)}: {_NAME_RULE}")
            if owners.setdefault(alias, name) != name:
                raise UsageError(f"models.{name}.aliases: {_shown(alias)} names {owners[alias]} already")


def _file(key: str, given: str, folder: str) -> str:
    """A path from the file's own folder; `tiny-chat` and names that find-gguf prints stay as they are."""
    path = _path(key, given, folder)
    is_path = given.startswith(("/", ".", "~")) or given.endswith(".gguf") or os.path.exists(path)
    return path if is_path else given


def _path(key: str, given: str, folder: str) -> str:
    """An absolute path, a relative one meant from `folder`; UsageError for what names no file."""
    if not given or "\0" in given:
        raise UsageError(f"{key}: expected a path, got {_shown(given)}")
    return os.path.normpath(os.path.join(folder, os.path.expanduser(given)))


def _read_key(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    except OSError as error:
        raise UsageError(f"server.key_file: {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError:  # no UTF-8, in it or in its name
        raise UsageError(f"server.key_file: {path} holds no key: it is not text") from None
    if not key:
        raise UsageError(f"server.key_file: {path} is empty")
    return key
