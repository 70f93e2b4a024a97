"""What `check-system` says of what was read on a machine: how it stands, and what to do about it. Pure."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable, Sequence, Set
from typing import Literal, TypeAlias

import msgspec

from modelpipes.machine.cards import Cards
from modelpipes.values.units import format_bytes

State: TypeAlias = Literal["ok", "warning", "missing"]

NEEDED = frozenset({"kernel", "rooms", "engine"})  # without one of these no two models talk
FIRST_KERNEL = (5, 3)  # pidfd_open(2), by which children are watched
KERNEL_ADVICE = "use Linux 5.3 or newer; on Windows, WSL 2"
PIPE_PAGES = 16  # of a pipe that nobody widened (pipe(7))
PIPES_OF_A_SEAT = 2  # one to it, one from it
FEW_SEATS = 16  # less is little for one user, who has other pipes in every shell
NO_DRIVER = "no NVIDIA driver"  # as gpu.find_cards begins to say it
PIPE_MAX_BYTES, PIPE_SOFT_PAGES = 1 << 20, 16384  # the kernel's own values
LITTLE_MEMORY_BYTES = 2 << 30  # two of the smallest models worth talking to, of 0.6 B, with their caches
EXTRAS = {  # of pyproject.toml: what is imported
    "embedded": ("xllamacpp",),
    "serve": ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop"),
}
VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # of the PCI bus
_DISPLAY_CLASSES = ("0x03", "0x12")  # display controllers, and accelerators that have no display
_LISTENS = "0A"  # TCP_LISTEN of the kernel's tcp_states.h


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing looked at: how it stands, what was found, and what to do about it, "" where there is nothing to do."""

    name: str
    state: State
    found: str
    advice: str = ""


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What was read about $XDG_RUNTIME_DIR, which is `base`; `mode` and `owner` are None where nothing is there."""

    base: str
    mode: int | None
    owner: int | None
    user: int
    login_dir: str  # what logind made for this user; "" where it is not there
    lingers: bool | None  # whether it stays after the last logout; None where no logind runs


class Disk(msgspec.Struct, frozen=True):
    """A folder of ours, made or not yet, and the file system that it is on."""

    path: str
    free_bytes: int
    can_write: bool


class Engine(msgspec.Struct, frozen=True):
    """What an engine says of itself, or why it does not run."""

    version: str = ""
    backend: str = ""
    error: str = ""


class Folder(msgspec.Struct, frozen=True):
    """What lies in a folder of models, if it is there."""

    n_models: int = 0
    size_bytes: int = 0
    n_problems: int = 0
    is_there: bool = True


class Holder(msgspec.Struct, frozen=True):
    """Who has a port: the process where it could be seen, else at least its user."""

    pid: int | None = None
    name: str = ""
    user: int | None = None


def can_talk(checks: Iterable[Check]) -> bool:
    """Could two models talk to each other here?"""
    return not any(check.state == "missing" and check.name in NEEDED for check in checks)


def judge_kernel(system: str, release: str) -> Check:
    """`system` and `release` as uname tells them."""
    number = re.match(r"(\d+)\.(\d+)", release)
    is_new = number is not None and (int(number[1]), int(number[2])) >= FIRST_KERNEL
    if system == "Linux" and is_new:
        return Check("kernel", "ok", f"{system} {release}")
    return Check("kernel", "missing", f"{system} {release}", KERNEL_ADVICE)


def judge_pipe_size(limit_bytes: int | None, wide_bytes: int) -> Check:
    """`limit_bytes` is pipe-max-size, up to which anybody may widen a pipe; long messages want `wide_bytes`."""
    if limit_bytes is None:
        return Check("pipe-size", "warning", "pipe-max-size cannot be read", "is /proc mounted?")
    found = f"a pipe may be made {format_bytes(limit_bytes)} wide"
    if limit_bytes >= wide_bytes:
        return Check("pipe-size", "ok", found)
    advice = f"long messages travel slower; sudo sysctl fs.pipe-max-size={PIPE_MAX_BYTES}"
    return Check("pipe-size", "warning", f"{found}, and long messages want {format_bytes(wide_bytes)}", advice)


def judge_pipe_pages(soft_pages: int | None, hard_pages: int | None, wide_pages: int) -> Check:
    """`soft_pages` and `hard_pages` are pipe-user-pages-soft and -hard, of all open pipes of a user; 0 is no limit.

    A pipe for long messages takes `wide_pages`.
    """
    if soft_pages is None:
        return Check("pipe-pages", "warning", "pipe-user-pages-soft cannot be read", "is /proc mounted?")
    key, pages = ("soft", soft_pages) if not hard_pages or 0 < soft_pages < hard_pages else ("hard", hard_pages)
    if not pages:
        return Check("pipe-pages", "ok", "no limit to a user's open pipes")
    n_pipes = pages // PIPE_PAGES
    n_seats = n_pipes // PIPES_OF_A_SEAT
    n_wide = pages // wide_pages
    found = f"{n_pipes} pipes open at once, which is {n_seats} seats; {n_wide} pipes if long messages widen them"
    if n_seats >= FEW_SEATS:
        return Check("pipe-pages", "ok", found)
    then = "further pipes hold two pages and are slow" if key == "soft" else "further pipes cannot be opened"
    advice = f"past that {then}; sudo sysctl fs.pipe-user-pages-{key}={PIPE_SOFT_PAGES}"
    return Check("pipe-pages", "warning", found, advice)


def judge_runtime(seen: Runtime) -> Check:
    """Whether the default room is where other shells of this user find it, and stays there."""
    name, base = "runtime", seen.base
    instead = f"export XDG_RUNTIME_DIR={seen.login_dir}" if seen.login_dir else "unset XDG_RUNTIME_DIR"
    if not base:
        if not seen.login_dir:
            return Check(name, "ok", "$XDG_RUNTIME_DIR is not set: rooms lie in the temporary folder")
        return Check(name, "warning", "$XDG_RUNTIME_DIR is not set: shells that logged in look elsewhere", instead)
    if not base.startswith("/"):
        return Check(name, "warning", f"$XDG_RUNTIME_DIR is {base!r}, no absolute path, and not used", instead)
    if seen.mode is None:
        return Check(name, "warning", f"{base} is not there, and not used: its user has logged out", instead)
    if not stat.S_ISDIR(seen.mode):
        return Check(name, "warning", f"{base} is no directory, and not used", instead)
    if seen.owner != seen.user:
        return Check(name, "warning", f"{base} belongs to user {seen.owner}, not to us, and is not used", instead)
    mode = f"{base}, mode {stat.S_IMODE(seen.mode):04o}"
    if seen.mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Check(name, "warning", f"{mode}: others can write there, and it is not used", f"chmod 0700 {base}")
    is_of_login = seen.login_dir != "" and f"{base}/".startswith(f"{seen.login_dir}/")
    if is_of_login and seen.lingers is False:
        advice = "before you leave a daemon or a room behind: loginctl enable-linger"
        return Check(name, "warning", f"{mode}: goes at your last logout, with all rooms", advice)
    return Check(name, "ok", f"{mode}, stays after logout" if is_of_login and seen.lingers else mode)


def judge_rooms(folder: str, mode: int, error: str) -> Check:
    """`error` is why no room could be made in `folder`; "" where one was, and removed again."""
    if error:
        advice = "let XDG_RUNTIME_DIR, or TMPDIR, name a folder of yours on a local disk"
        return Check("rooms", "missing", error, advice)
    return Check("rooms", "ok", f"{folder}, mode {stat.S_IMODE(mode):04o}: pipes can be made")


def judge_default_room(path: str, seats: Sequence[tuple[str, str]] | None, error: str) -> Check:
    """`seats` are (seat, state) of the room that commands use unless told; None where it is not made, or `error`."""
    if error:
        return Check("room", "warning", error, "name another room in $PIPE_DIR, or with -d")
    if seats is None:
        return Check("room", "ok", f"{path}: not made yet; setup-pipes makes it")
    died = [seat for seat, state in seats if state == "died"]
    taken = [seat for seat, state in seats if state not in ("died", "free")]
    found = f"{path}: {_count(len(seats), 'seat')}, {len(taken)} taken"
    if not died:
        return Check("room", "ok", found)
    advice = f"attach-model {died[0]} …, or remove the room: cleanup-pipes -d {path}"
    return Check("room", "warning", f"{found}; killed were {', '.join(died)}", advice)


def judge_stale_rooms(paths: Sequence[str]) -> Check:
    """`paths` are rooms whose leaders were killed."""
    if not paths:
        return Check("stale-rooms", "ok", "none")
    left = f"{_count(len(paths), 'room')} of killed leaders: {', '.join(paths)}"
    return Check("stale-rooms", "warning", left, f"the next chat-models removes them; or cleanup-pipes -d {paths[0]}")


def judge_disk(name: str, disk: Disk | None, path: str, wanted_bytes: int, what_for: str) -> Check:
    """`wanted_bytes` is what one should have free for `what_for`; `disk` is None where the file system does not say."""
    if disk is None:
        return Check(name, "warning", f"{path}: its file system cannot be asked", "is its disk mounted?")
    found = f"{path}: {format_bytes(disk.free_bytes)} free"
    if not disk.can_write:
        variable = f"XDG_{name.upper()}_HOME"
        return Check(name, "warning", f"{found}, but we may not write there", f"make it yours, or set {variable}")
    if disk.free_bytes < wanted_bytes:
        return Check(name, "warning", found, f"make room: {what_for} takes some {format_bytes(wanted_bytes)}")
    return Check(name, "ok", found)


def judge_memory(available_bytes: int, total_bytes: int) -> Check:
    """Host memory, within the container's limit where there is one."""
    found = f"{format_bytes(available_bytes)} of {format_bytes(total_bytes)} available"
    if available_bytes >= LITTLE_MEMORY_BYTES:
        return Check("memory", "ok", found)
    advice = "end what is not needed, or take very small models: find-gguf --sort memory"
    return Check("memory", "warning", found, advice)


def judge_engines(
    names: Sequence[tuple[str, str]], said: Sequence[Engine | None], cards: Cards | None, error: str, get_one: str
) -> list[Check]:
    """`names` are (name, path) of engines, the one to use first, `said` what each answered; None is too late.

    `error` is why none could be looked for, as "what is wrong: what to do"; else "".
    """
    if error:
        found, _, advice = error.rpartition(": ")
        return [Check("engine", "missing", found, advice)]
    if not names:
        return [Check("engine", "missing", "no engine on this machine", get_one)]
    checks: list[Check] = []
    for (name, path), engine in zip(names, said, strict=True):
        is_first = not checks
        about = f"{name}: {path}" if path else name
        if engine is None:
            check = Check("engine", "warning", f"{about}: did not answer in time", "again with a longer --timeout")
        elif engine.error:
            state: State = "missing" if is_first else "warning"
            instead = "mend it, or name another in $LLAMA_SERVER" if is_first else "mend or remove it"
            check = Check("engine", state, f"{name if path in engine.error else about}: {engine.error}", instead)
        elif is_first and cards and cards.cards and engine.backend == "cpu":
            found = f"{about}, {engine.version or 'version unknown'}, cpu: it leaves the card unused"
            check = Check("engine", "warning", found, "compile one for the card: modelpipes build-engine")
        else:
            check = Check("engine", "ok", f"{about}, {engine.version or 'version unknown'}, {engine.backend}")
        checks.append(check)
    return checks


def judge_cards(cards: Cards | None, vendors: Set[str]) -> list[Check]:
    """`cards` as NVML shows them, None where it did not answer in time; `vendors` of what is on the PCI bus."""
    if cards is None:
        return [Check("gpu", "warning", "the NVIDIA driver did not answer in time", "see whether nvidia-smi runs")]
    if not cards.cards:
        return [_judge_no_card("; ".join(cards.problems), vendors)]
    checks = []
    for card in cards.cards:
        found = f"{card.name}, {format_bytes(card.free_bytes)} of {format_bytes(card.total_bytes)} free"
        checks.append(Check("gpu", "ok", f"{found}, driver {card.driver_version}" if card.driver_version else found))
    return checks + [Check("gpu", "warning", problem, "see nvidia-smi") for problem in cards.problems]


def _judge_no_card(why: str, vendors: Set[str]) -> Check:
    others = ", ".join(sorted(vendors - {"Intel", "NVIDIA"}))  # nearly every Intel CPU has a display of its own
    if "hides every card" in why:
        return Check("gpu", "warning", why, "unset CUDA_VISIBLE_DEVICES")
    if "NVIDIA" in vendors:
        return Check(
            "gpu", "warning", f"an NVIDIA card, but {why}", "install its driver; nvidia-smi shows whether it runs"
        )
    if others:
        advice = "say what it has, as find-gguf --vram 16GB; for an engine that uses it: modelpipes build-engine"
        return Check("gpu", "warning", f"{others}: its memory is not read here", advice)
    if why.startswith(NO_DRIVER):
        return Check("gpu", "missing", why, "none is needed: models compute on the CPU, small ones well")
    return Check("gpu", "warning", why, "see nvidia-smi")


def display_vendors(devices: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The makers of cards among (class, vendor) of PCI devices, as sysfs prints them."""
    return frozenset(
        VENDORS[vendor] for kind, vendor in devices if kind.startswith(_DISPLAY_CLASSES) and vendor in VENDORS
    )


def judge_folders(paths: Sequence[str], said: Sequence[Folder | None]) -> list[Check]:
    """`said` is what was counted in each of `paths`, None what took too long."""
    checks = []
    for path, folder in zip(paths, said, strict=True):
        if folder is None:
            check = Check("models", "warning", f"{path}: not counted in time", "again with a longer --timeout")
        elif not folder.is_there:
            check = Check("models", "missing", f"{path}: not there", "correct $SEARCH_PATH, or mount its disk")
        else:
            found = f"{path}: {_count(folder.n_models, 'model file')}, {format_bytes(folder.size_bytes)}"
            check = Check("models", "ok", found)
            if folder.n_problems:
                found += f"; {_count(folder.n_problems, 'file')} cannot be read"
                check = Check("models", "warning", found, "see why: find-gguf")
        checks.append(check)
    if any(folder is None or folder.n_models for folder in said):
        return checks
    advice = "put GGUF files into ~/models, or name their folder in $SEARCH_PATH"
    return [*checks, Check("models", "missing", "no model but the packaged tiny-chat", advice)]


def judge_daemons(daemons: Sequence[tuple[int, str]]) -> list[Check]:
    """`daemons` are (pid, address) of the serve-models that run."""
    if not daemons:
        return [Check("daemon", "ok", "no serve-models runs")]
    return [Check("daemon", "ok", f"serve-models on {listen} (pid {pid})") for pid, listen in daemons]


def judge_port(listen: str, error: str, holder: Holder, daemons: Sequence[tuple[int, str]]) -> Check:
    """`error` is why the default address of serve-models cannot be had, "" where it can; `holder` is who has it."""
    if not error:
        return Check("port", "ok", f"{listen} is free")
    if any(address == listen for _, address in daemons):
        return Check("port", "ok", f"{listen} is serve-models' own")
    found = f"{listen}: {error}"
    if holder.pid:
        found = f"{listen} is taken by {holder.name or 'a process'} (pid {holder.pid})"
    elif holder.user is not None:
        found = f"{listen} is taken by a process of user {holder.user}"
    return Check("port", "warning", found, "choose another address: serve-models --listen 127.0.0.1:9091")


def find_listener(table: str, port: int) -> tuple[int, int] | None:
    """(user, inode) of the socket that listens on a port, in the text of /proc/net/tcp or tcp6."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
            return int(words[7]), int(words[9])
    return None


def judge_extra(extra: str, missing: Collection[str]) -> Check:
    """`missing` are the modules of an extra that cannot be found."""
    is_for = {"embedded": "the engine as a wheel", "serve": "serve-models"}[extra]
    if not missing:
        return Check("extra", "ok", f"{extra} ({is_for})")
    names = ", ".join(sorted(missing))
    return Check(
        "extra",
        "missing",
        f"{extra} ({is_for}): no {names}",
        f"install modelpipes with its extra {extra}: pip install '.[{extra}]'",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
