"""The configuration file: TOML -> typed settings, or what is wrong with it in one line.

version = 1                      # of the file's form; without it 1
[voice]                          # what every model is given
ctx_size = 8192
[ask-model]                      # defaults of one command
timeout = "2m"
[models.qwen]                    # what serve-models serves, one table for each model
file = "~/models/qwen2.5-7b-instruct-q4_k_m.gguf"
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import replace

from modelpipes.config.settings import (
    SECTIONS,
    VERSION,
    Amount,
    Config,
    Cpus,
    Limit,
    Model,
    Seconds,
    Section,
    Server,
    Size,
    Use,
)
from modelpipes.errors import UsageError
from modelpipes.terminal.safetext import make_line
from modelpipes.values.formats import CONFIGURATION
from modelpipes.values.units import LEAST_AMOUNT, MAX_SECONDS, parse_bytes, parse_count, parse_cpus, parse_seconds

AUTO = "auto"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_NAME_RULE = "a name is letters, digits and . _ : / - (a letter or digit first, 128 at most)"
_KEY = re.compile(r"[!-~]+")  # what an HTTP header carries as it is
_LISTEN = re.compile(r"unix:.+|(?:\[[^]\s]+\]|[^\s/]+):([0-9]{1,5})", re.ASCII)
_WRONG_TYPE = re.compile(r"(?:Expected `|Invalid enum value).* - at `\$\.(\w+)((?:\[[0-9.]+\])?)`", re.DOTALL)
_OUT_OF_RANGE = re.compile(r"Expected `\w+` ([<>]=) (\S+) - at `\$\.(\w+)`")
_WRONG_VALUE = re.compile(r"(.*) - at `\$\.(\w+)`", re.DOTALL)  # said by _quantity
MAX_PORT = 65535
MAX_SHOWN_CHARS = 60  # of a value that is refused: enough to find it again
MAX_REFUSAL_CHARS = 600  # of a line that a person reads; keys and paths have no end of their own
MAX_BYTES = 2**63 - 1
MAX_FILE_BYTES = 1 << 20  # of a file that people write
_Section = TypeVar("_Section", bound=Section)
_TOP = (VERSION, *dict.fromkeys(heading.partition(".")[0] for heading in SECTIONS))


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, and which of its keys the file has."""

    config: Config
    tables: Mapping[str, Any]

    def stated(self, key: str) -> Any:
        """The value of a key such as "ask-model.timeout"; None where the file does not have it."""
        section, _, name = key.partition(".")
        return self.in_force(key) if name in self.tables.get(section, {}) else None

    def in_force(self, key: str) -> Any:
        """The value of a key, which is the default where the file does not have it."""
        section, _, name = key.partition(".")
        return getattr(getattr(self.config, section.replace("-", "_")), name)


def load(path: str) -> Loaded:
    """Read a configuration; UsageError, in one line with the key's name, for what is wrong with it."""
    path = os.path.expanduser(path)
    try:
        text = _read_whole(path).decode("utf-8-sig")  # some editors begin with a mark
    except FileNotFoundError:
        raise UsageError(make_line(f"no configuration {path}: modelpipes config example prints one")) from None
    except OSError as error:
        raise UsageError(make_line(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}")) from None
    except ValueError as error:  # no UTF-8, or no file's name
        raise UsageError(make_line(f"{path}: cannot be read: {error}")) from None
    try:
        return read(text, os.path.dirname(os.path.abspath(path)))
    except UsageError as error:
        raise UsageError(f"{make_line(path)}: {error}") from None


def read(text: str, folder: str) -> Loaded:
    """The configuration in this text, relative files meant from `folder`; UsageError, in one safe line."""
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise UsageError("it is no TOML that anybody needs: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(_make_refusal(f"it is not TOML: {error}")) from None
    except ValueError:  # sys.set_int_max_str_digits
        raise UsageError("it is no TOML: a number of more digits than anybody needs") from None
    return Loaded(read_tables(tables, folder), tables)


def read_tables(tables: Mapping[str, Any], folder: str) -> Config:
    """As `read`, of what the TOML says."""
    try:
        return _read_tables(tables, folder)
    except UsageError as error:
        raise UsageError(_make_refusal(str(error))) from None


def read_key(server: Server) -> str:
    """The key that is demanded of clients, from its file where it is in one; empty: none. UsageError, as `read`."""
    try:
        key = _read_file(server.key_file) if server.key_file else server.key
    except UsageError as error:
        raise UsageError(_make_refusal(str(error))) from None
    if key and not _KEY.fullmatch(key):
        raise UsageError(f"server.{'key_file' if server.key_file else 'key'}: a key is ASCII letters, digits and signs")
    return key


def _make_refusal(text: str) -> str:
    line = make_line(text)
    return line if len(line) <= MAX_REFUSAL_CHARS else f"{line[:MAX_REFUSAL_CHARS]}…"


def _read_tables(tables: Mapping[str, Any], folder: str) -> Config:
    _check_version(tables.get(VERSION, 1))  # first: a file of a version to come may have any keys
    _check_keys(tables, _TOP, "")
    # Only what is there: to learn how a section is converted takes msgspec half a millisecond.
    stated = {name: kind for name, kind in SECTIONS.items() if name in tables and "." not in name}
    plain = {name: _convert(_table(tables, name), kind, name) for name, kind in stated.items()}
    uses, models = _named(tables, "use", Use), _named(tables, "models", Model)
    read: dict[str, Any] = {name.replace("-", "_"): section for name, section in plain.items()}
    config = Config(**read, use=uses, models=models)
    if config.memory.min_resident_s == MAX_SECONDS:
        raise UsageError("memory.min_resident_s: 0 is no least time; a model that shall stay for ever has pin = true")
    if config.watch_gpu.interval == MAX_SECONDS:
        raise UsageError("watch-gpu.interval: there would be no second look")
    if any(os.pathsep in folder for folder in config.find_gguf.search_path):
        raise UsageError(f"find-gguf.search_path: a folder with {os.pathsep} in its name cannot be named there")
    for name, use in uses.items():
        _check_counts(f"use.{name}.quant", use.quant)
    _check_aliases(models)
    return _with_whole_paths(config, folder)


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version <= MAX_BYTES:
        raise UsageError(f"{VERSION}: expected a whole number from 1, got {_shown(version)}")
    if refusal := CONFIGURATION.refusal(version):
        raise UsageError(refusal)


def _named(tables: Mapping[str, Any], section: str, kind: type[_Section]) -> dict[str, _Section]:
    """The tables below [section.NAME], by name."""
    found = {}
    for name, table in _table(tables, section).items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"{section}.{_cut(name)}: {_NAME_RULE}")
        _check_is_not_dotted(section, name, table, kind)
        found[name] = _convert(table, kind, f"{section}.{name}")
    return found


def _with_whole_paths(config: Config, folder: str) -> Config:
    """Relative paths are meant from the file's own folder, and programs that read them stand elsewhere."""

    def whole(key: str, path: str) -> str:
        return _path(key, path, folder) if path else path

    def all_whole(key: str, paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(_path(key, path, folder) for path in paths)

    voice, system = config.voice, config.voice.system
    program = voice.llama_server  # a bare name is looked for in PATH
    return replace(
        config,
        room=replace(config.room, dir=whole("room.dir", config.room.dir)),
        voice=replace(
            voice,
            system=f"@{_path('voice.system', system[1:], folder)}" if system.startswith("@") else system,
            llama_server=whole("voice.llama_server", program) if {"/", "~"} & set(program) else program,
            draft=_file("voice.draft", voice.draft, folder) if voice.draft else "",
            api_key_file=whole("voice.api_key_file", voice.api_key_file),
        ),
        find_gguf=replace(
            config.find_gguf, search_path=all_whole("find-gguf.search_path", config.find_gguf.search_path)
        ),
        server=_server(config.server, folder),
        events=replace(config.events, file=whole("events.file", config.events.file)),
        models={
            name: replace(
                model,
                file=_file(f"models.{name}.file", model.file, folder),
                draft=_file(f"models.{name}.draft", model.draft, folder) if model.draft else "",
            )
            for name, model in config.models.items()
        },
        scan=replace(config.scan, directories=all_whole("scan.directories", config.scan.directories)),
    )


def _server(server: Server, folder: str) -> Server:
    """With the paths of its socket and of its key made whole."""
    place = _LISTEN.fullmatch(server.listen)
    if place is None or int(place[1] or 0) > MAX_PORT:
        raise UsageError(f'server.listen: expected "HOST:PORT" or "unix:PATH", got {_shown(server.listen)}')
    scheme, _, path = server.listen.partition(":")
    listen = f"unix:{_path('server.listen', path, folder)}" if scheme == "unix" else server.listen
    if server.key and server.key_file:
        raise UsageError("server.key_file: there is a server.key already: give one of them")
    if not server.key_file:
        read_key(server)
        return replace(server, listen=listen)
    return replace(server, listen=listen, key_file=_path("server.key_file", server.key_file, folder))


def _check_is_not_dotted(section: str, name: str, table: Any, kind: type[Section]) -> None:
    """TOML takes [models.qwen2.5] for a table in a table: say so, and not that `5` is no key."""
    items = table.items() if isinstance(table, dict) else ()
    tables = {key for key, hint in get_type_hints(kind).items() if get_origin(hint) is Mapping}
    inner = next((_cut(key) for key, value in items if isinstance(value, dict) and key not in tables), None)
    if inner is not None:
        quoted = f'[{section}."{name}.{inner}"]'
        raise UsageError(f"{section}.{name}.{inner} is no key: a name with dots is quoted: {quoted}")


def _table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{name} is a table: write [{name}{'.NAME' if f'{name}.NAME' in SECTIONS else ''}]")
    return table


def _convert(table: Any, kind: type[_Section], path: str) -> _Section:
    if not isinstance(table, dict):
        raise UsageError(f"{path} is a table: write [{path}]")
    fields = kind.__struct_fields__
    _check_keys(table, fields, f"{path}.")
    autos = [key for key in ("budget", "host_budget") if table.get(key) == AUTO]  # which is what holds without them
    given = {key: value for key, value in table.items() if key not in autos}
    for key, value in given.items():
        if any("\0" in each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)):
            raise UsageError(f"{path}.{key}: no program takes a NUL")
    try:
        return msgspec.convert(given, kind, dec_hook=_quantity)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}{_explain(str(error), table, kind)}") from None


def _explain(said: str, table: Mapping[str, Any], kind: type[msgspec.Struct]) -> str:
    """What msgspec says of a table, with the key first, and in words of TOML."""
    if found := _OUT_OF_RANGE.fullmatch(said):
        bound, number, key = found.groups()
        return f".{key} is at {'least' if bound == '>=' else 'most'} {float(number):.10g}, not {_shown(table[key])}"
    if found := _WRONG_TYPE.fullmatch(said):
        key, index = found.groups()
        given = table[key]
        if index.strip("[]").isdecimal():
            given = given[int(index[1:-1])]
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
    if get_origin(hint) is Mapping:
        return 'text in "quotes"' if is_item else 'a table such as {"9B" = "Q4_K_M"}'
    if inner:  # or None
        return _wanted(inner[0], is_item=is_item)
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, 'text in "quotes"')


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
    """A size, a time or CPUs; msgspec adds where it stands."""
    is_text = isinstance(value, str) and len(value) <= MAX_SHOWN_CHARS  # what is wrong with a text is said with it
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    try:
        if kind is Cpus and is_text:
            parse_cpus(value)
            return Cpus(value)
        if issubclass(kind, Size) and (is_text or is_whole):
            size = parse_bytes(value) if is_text else value
            if kind is Amount and size < LEAST_AMOUNT:
                raise UsageError(f"{size} bytes hold no model: write 14GB, say")
            if 0 <= size <= MAX_BYTES:
                return kind(size)
        if issubclass(kind, Seconds) and is_text:
            seconds = parse_seconds(value)
            return kind(MAX_SECONDS if seconds is None else seconds)
        if issubclass(kind, Seconds) and (is_whole or isinstance(value, float)) and 0 <= value <= MAX_SECONDS:
            if value == 0 and kind is Limit:
                raise UsageError("0 leaves no time at all")
            return kind(value)
    except UsageError as error:
        raise ValueError(str(error)) from None
    wanted = 'a size such as "16GB"' if issubclass(kind, Size) else 'a time such as 30 or "30s"'
    wanted = 'CPUs such as "0-3,8"' if kind is Cpus else wanted
    raise ValueError(f"expected {wanted}, got {_shown(value)}")


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            import difflib  # a good part of a small command's start

            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            homes = [f"[{name}]" for name, kind in SECTIONS.items() if key in kind.__struct_fields__]
            if key == VERSION:
                hint = "it belongs to the top, before the first [section]"
            elif homes and f"[{prefix.partition('.')[0]}]" not in homes:
                hint = f"it belongs to {' or '.join(homes)}"
            raise UsageError(f"{prefix}{_cut(key)} is no key: {hint}")


def _check_counts(key: str, quant: Mapping[str, str]) -> None:
    for count in quant:
        try:
            parse_count(count)
        except UsageError as error:
            raise UsageError(f"{key}: {error}") from None


def _check_aliases(models: Mapping[str, Model]) -> None:
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


def _read_file(path: str) -> str:
    try:
        key = _read_whole(path).decode().strip()
    except OSError as error:
        raise UsageError(f"server.key_file: {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError:  # no UTF-8, in it or in its name
        raise UsageError(f"server.key_file: {path} holds no key: it is not text") from None
    if not key:
        raise UsageError(f"server.key_file: {path} is empty")
    return key


def _read_whole(path: str) -> bytes:
    """What the file holds. OSError, also where it is a pipe or a device, for which one would wait, or has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode) and path != os.devnull:
            raise OSError(errno.EINVAL, "it is no regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_BYTES} bytes")
    return data
