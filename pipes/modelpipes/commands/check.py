"""check-system: what is here, what is missing, what to do about it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from modelpipes.child import Child
from modelpipes.commands.cli import options
from modelpipes.commands.cli.configured import Configured, in_force
from modelpipes.config.settings import DEFAULT_LISTEN
from modelpipes.engine import locate
from modelpipes.errors import EngineError, PipesError, ProgramError, RoomError
from modelpipes.gateway import record
from modelpipes.gguf import places
from modelpipes.machine import checks
from modelpipes.machine import memory as hostmemory
from modelpipes.machine.cards import Cards, find_visible_cards
from modelpipes.machine.checks import Check
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.fifo import WIDE_BYTES
from modelpipes.pipe.room import HUB, Room, resolve, star
from modelpipes.terminal import output
from modelpipes.values import paths
from modelpipes.values.deadline import Deadline
from modelpipes.values.paths import cache_dir, data_dir
from modelpipes.values.version import __version__

# A question that may take long: ["cards"], ["engine", KIND, ARGV…] or ["folder", PATH].
Question = list[str]

SEATS = ("alice", "bob")
BUILD_BYTES = 500_000_000  # what build-engine asks for
CACHE_BYTES = 50_000_000  # headers of some thousand models
PROC_FS = "/proc/sys/fs"
LINGER = ("/var/lib/systemd/linger", "/var/lib/elogind/linger")  # a file there for each user who lingers
LOGIND = "/run/systemd/seats"  # there while logind runs (sd-login's own test)
READ_BYTES = 1 << 16
MAX_AT_ONCE = 8  # questions: each may start a program
FOUND_COLUMN = 24  # least width of the last column, on a terminal however narrow


@click.command(context_settings=options.settings)
@click.option("--timeout", type=options.SECONDS, default="5", show_default=True,
              help="How long engines, cards and folders may take to answer, or none.")  # fmt: skip
@options.as_json
@options.lenient
@click.pass_context
def command(ctx: click.Context, /, timeout: float, as_json: bool) -> int:
    """Tell what is here for models to talk, what is missing, what to do about it.

    Each line is ok, warning or missing. The exit code is 1 where two models
    could not talk: no engine, or no place for rooms.

    \b
    Examples:
      check-system
      check-system --json | jq -r '.checks[] | select(.state != "ok") | .advice'
    """
    found = check_all(Deadline.after(options.bounded(timeout)), in_force(ctx))
    is_able = checks.can_talk(found)
    if as_json:
        output.write_json(Report(found, is_able))
    else:
        output.write_text(draw(found, output.width()))
    if not is_able:
        first = next(check for check in found if check.state == "missing" and check.name in checks.NEEDED)
        output.say(f"check-system: two models could not talk here: {first.found}; {first.advice}")
    return 0 if is_able else 1


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All checks; `ok` where two models can talk here."""

    checks: list[Check]
    ok: bool


def draw(found: list[Check], width: int | None) -> str:
    """A table of checks, each advice on lines of its own below; lines are broken where a terminal is too narrow."""
    import textwrap

    from modelpipes.terminal.safetext import make_line
    from modelpipes.terminal.table import draw_table

    last = max(FOUND_COLUMN, (width or 0) - len("missing  stale-rooms  "))

    def lines(text: str) -> list[str]:
        text = make_line(text)
        return textwrap.wrap(text, last, break_on_hyphens=False) if width and text else [text]

    rows = []
    for check in found:
        told = lines(check.found) + (lines(f"→ {check.advice}") if check.advice else [])
        rows += [(check.state, check.name, told[0]), *(("", "", line) for line in told[1:])]
    return draw_table(rows, ["state", "check", "found"])


def check_all(deadline: Deadline, configured: Configured) -> list[Check]:
    """Look at everything; what has not answered at the deadline is said to be late."""
    system = _check_system()
    if not checks.can_talk(system):
        return system  # what is asked from here on is there on Linux alone
    engines, engine_error = _find_engines()
    named = [os.path.abspath(folder) for folder in places.default_places()]
    folders = list(dict.fromkeys([*named, *places.remembered()]))
    questions = [["cards"], *(["engine", engine.kind, *engine.argv] for _, engine in engines)]
    questions += [["folder", folder] for folder in folders]
    with _asking(questions, deadline) as answers:
        before = _check_pipes()
        daemons = [(daemon.pid, daemon.listen) for daemon in record.running()]
        listen = configured.loaded.config.server.listen if configured.loaded else DEFAULT_LISTEN
        after = [*checks.judge_daemons(daemons), *_check_port(listen, daemons), *_check_extras()]
    cards, *rest = (answers.get(number) for number in range(len(questions)))
    of_engines, of_folders = rest[: len(engines)], rest[len(engines) :]
    found_cards = _as(Cards, cards)
    said = [_as(checks.Engine, value) for value in of_engines]
    counts = {folder: _as(checks.Folder, value) for folder, value in zip(folders, of_folders, strict=True)}
    for folder, count in list(counts.items()):
        if count and not count.is_there and folder not in named:
            del counts[folder]  # where find-gguf once looked, and nobody asks for it now
    names = [(name, engine.argv[0] if engine.kind == "llama-server" else "") for name, engine in engines]
    return [
        *system,
        _check_configuration(configured),
        *before,
        *checks.judge_engines(names, said, found_cards, engine_error, locate.GET_ONE),
        *checks.judge_cards(found_cards, _display_vendors()),
        *checks.judge_folders(list(counts), list(counts.values())),
        *after,
    ]


def _check_system() -> list[Check]:
    uname, version = os.uname(), ".".join(map(str, sys.version_info[:3]))
    return [
        Check("python", "ok", f"{version} ({sys.executable}), modelpipes {__version__}"),
        checks.judge_kernel(uname.sysname, uname.release),
    ]


def _check_configuration(configured: Configured) -> Check:
    if configured.mistake:
        advice = "correct it: until then what reads it ends with exit code 2"
        return Check("config", "warning", str(configured.mistake), advice)
    return Check("config", "ok", configured.path or f"none: {paths.config_file()} is not there")


def _check_pipes() -> list[Check]:
    data, cache = data_dir(), cache_dir()
    pages = [_number(f"{PROC_FS}/pipe-user-pages-{kind}") for kind in ("soft", "hard")]
    return [
        checks.judge_pipe_size(_number(f"{PROC_FS}/pipe-max-size"), WIDE_BYTES),
        checks.judge_pipe_pages(pages[0], pages[1], WIDE_BYTES // os.sysconf("SC_PAGESIZE")),
        checks.judge_runtime(_read_runtime()),
        _check_rooms(),
        _check_default_room(),
        checks.judge_stale_rooms([room.path for room in Room.orphans()]),
        checks.judge_disk("data", _read_disk(data), data, BUILD_BYTES, "an engine that build-engine makes"),
        checks.judge_disk("cache", _read_disk(cache), cache, CACHE_BYTES, "what find-gguf remembers"),
        checks.judge_memory(hostmemory.available_bytes(), hostmemory.total_bytes()),
    ]


def _read_runtime() -> checks.Runtime:
    base, user = os.environ.get("XDG_RUNTIME_DIR", ""), os.geteuid()
    login = f"/run/user/{user}"
    mode, owner = _mode_and_owner(base)
    is_login_ours = _mode_and_owner(login)[1] == user
    lingers = None
    if os.path.isdir(LOGIND):
        import pwd

        with contextlib.suppress(KeyError):  # a user whom no password file knows does not log in
            name = pwd.getpwuid(user).pw_name
            lingers = any(os.path.exists(os.path.join(folder, name)) for folder in LINGER)
    return checks.Runtime(
        base=base, mode=mode, owner=owner, user=user, login_dir=login if is_login_ours else "", lingers=lingers
    )


def _mode_and_owner(path: str) -> tuple[int | None, int | None]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return found.st_mode, found.st_uid


def _check_rooms() -> Check:
    """Make a room where chat-models would, and remove it: file systems without FIFOs, full ones, others' folders."""
    try:
        room = Room.make_fresh()
    except RoomError as error:
        return checks.judge_rooms("", 0, str(error))
    folder, error_text, mode = os.path.dirname(room.path), "", 0
    try:
        mode = os.stat(folder).st_mode
        room.make_pipes(star(HUB, SEATS))
    except (RoomError, OSError) as error:
        error_text = str(error)
    finally:
        with contextlib.suppress(RoomError, OSError):  # other rooms lie in the folder
            clean_up(room)
            os.rmdir(folder)
    return checks.judge_rooms(folder, mode, error_text)


def _check_default_room() -> Check:
    path = resolve(None)
    if not os.path.lexists(path):
        return checks.judge_default_room(path, None, "")
    try:
        room = Room.open()
        seats = [(seat, room.sitting(seat).state) for seat in room.seats()]
    except RoomError as error:
        return checks.judge_default_room(path, None, str(error))
    return checks.judge_default_room(path, seats, "")


def _read_disk(path: str) -> checks.Disk | None:
    there = path
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)  # the folder is made when it is first needed
    try:
        found = os.statvfs(there)
    except OSError:
        return None
    return checks.Disk(path, found.f_bavail * found.f_frsize, os.access(there, os.W_OK | os.X_OK))


def _check_port(listen: str, daemons: list[tuple[int, str]]) -> list[Check]:
    host, _, port = listen.rpartition(":")
    if host.startswith("unix"):
        return []
    error_text, holder = "", checks.Holder()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended bar nobody
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        error_text = (error.strerror or str(error)).lower()
        holder = _find_holder(int(port))
    return [checks.judge_port(listen, error_text, holder, daemons)]


def _find_holder(port: int) -> checks.Holder:
    for name in ("tcp", "tcp6"):
        if listener := checks.find_listener(_text(f"/proc/net/{name}"), port):
            user, inode = listener
            pid = _pid_of_socket(inode)
            return checks.Holder(pid, _text(f"/proc/{pid}/comm").strip() if pid else "", user)
    return checks.Holder()


def _pid_of_socket(inode: int) -> int | None:
    """Who has this socket open; None where it is another user's process, whose descriptors are not ours to see."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]":
                    return int(pid)
    return None


def _check_extras() -> list[Check]:
    return [
        checks.judge_extra(extra, [name for name in modules if importlib.util.find_spec(name) is None])
        for extra, modules in checks.EXTRAS.items()
    ]


def _display_vendors() -> frozenset[str]:
    root = "/sys/bus/pci/devices"
    try:
        devices = os.listdir(root)
    except OSError:
        return frozenset()
    return checks.display_vendors(
        (_text(f"{root}/{name}/class").strip(), _text(f"{root}/{name}/vendor").strip()) for name in devices
    )


def _find_engines() -> tuple[list[tuple[str, locate.Binary]], str]:
    try:
        return list(locate.engines()), ""
    except EngineError as error:
        return [], str(error)


# -- what may take long is asked by a process of its own, which is ended with all that it started at the deadline


@contextlib.contextmanager
def _asking(questions: list[Question], deadline: Deadline) -> Iterator[dict[int, Any]]:
    """Have these answered meanwhile; after the block the answers are there, by number, but for those that are late."""
    answers: dict[int, Any] = {}
    asked = json.dumps(questions)  # not msgspec: a path may be no UTF-8
    argv = [sys.executable, "-P", "-c", f"from {__name__} import answer; answer()", asked]
    data = bytearray()
    is_done = False
    try:
        with Child(argv, name="the process that asks engines", pipe_stdout=True) as child:
            yield answers
            is_done = True
            poll = select.poll()
            poll.register(child.stdout_fd, select.POLLIN)
            while data.count(b"\n") < len(questions) and poll.poll(deadline.poll_ms()):
                piece = os.read(child.stdout_fd, READ_BYTES)
                if not piece:
                    output.say(f"check-system: {child.name} has died: what it did not answer is not late, but unknown")
                    break
                data += piece
    except ProgramError as error:
        if not is_done:
            raise  # it could not be started: no engine could
        output.say(f"check-system: {error}")  # a driver that hangs is what the report is there to tell
    answers.update(json.loads(line) for line in data.split(b"\n")[:-1])


def answer() -> None:
    """Answer the questions of the command line, each in a line [NUMBER, ANSWER], as soon as it is known."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    questions: list[Question] = json.loads(sys.argv[1])
    with ThreadPoolExecutor(MAX_AT_ONCE) as pool:
        asked = {pool.submit(_answer_one, *question): number for number, question in enumerate(questions)}
        for done in as_completed(asked):
            output.write_json((asked[done], done.result()))


def _answer_one(what: str, *words: str) -> msgspec.Struct:
    if what == "cards":
        found = find_visible_cards()
        return Cards(tuple(msgspec.structs.replace(card, processes=()) for card in found.cards), found.problems)
    if what == "folder":
        return _count_models(words[0])
    kind: locate.EngineKind = "embedded" if words[0] == "embedded" else "llama-server"
    return _ask_engine(locate.Binary(kind, words[1:]))


def _ask_engine(engine: locate.Binary) -> checks.Engine:
    try:
        if engine.kind == "embedded":
            _import_elsewhere("xllamacpp")
        _ = engine.flags  # raises where it is no engine
        return checks.Engine(engine.version, engine.backend)
    except (PipesError, ImportError) as error:  # a module without its package's metadata
        return checks.Engine(error=str(error))


def _import_elsewhere(module: str) -> None:
    """EngineError unless the module can be imported; a process of its own dies in our place of a wrong wheel."""
    argv = [sys.executable, "-P", "-c", f"import {module}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EngineError(f"{module} cannot be imported: {said[-1] if said else f'exit code {done.returncode}'}")


def _count_models(folder: str) -> checks.Folder:
    from modelpipes.gguf.catalog import Catalog

    if not os.path.exists(folder):
        return checks.Folder(is_there=False)
    found = Catalog.scan([folder])
    return checks.Folder(len(found.files), sum(file.size_bytes for file in found.files), len(found.problems))


def _as(kind: type[Any], value: Any) -> Any:
    return None if value is None else msgspec.convert(value, kind)


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: str) -> str:
    """What a file of the kernel says; "" where it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
