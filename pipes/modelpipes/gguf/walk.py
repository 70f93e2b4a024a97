"""Go through a folder and find the files that may hold models, quickly and without opening any."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

import msgspec

from modelpipes.gguf.modelfile import SUFFIX, Candidate, Problem

# Between two runs of a downloader the file is called so: llama.cpp, browsers, curl and wget wrappers, aria2.
UNFINISHED = (".downloadinprogress", ".part", ".partial", ".incomplete", ".crdownload", ".download", ".tmp", ".aria2")
# The kernel's own file systems: endless, and nothing on a disk.
_NO_DISK = frozenset({"/proc", "/sys", "/dev"})
_KINDS = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


class Folder(msgspec.Struct):
    """What lies in one folder. Whoever gets it may take names out of `subfolders`: they are not entered then."""

    path: str
    files: list[Candidate]
    subfolders: list[str]
    problems: list[Problem]


class Walk:
    """Goes through folders, each once, however often and by whatever links it is reached."""

    def __init__(self, entering: Callable[[str], None] = lambda folder: None) -> None:
        """`entering` is told the path of each folder before it is read."""
        self._entering = entering
        self._seen: set[tuple[int, int]] = set()

    def folders(self, root: str) -> Iterator[Folder]:
        """`root` and every folder below it, the parent first; hidden ones below it are passed over.

        Links to folders come last, so that what lies in a place is found there and not by a link to it.
        """
        waiting, linked = [root], list[str]()
        while waiting or linked:
            path = waiting.pop() if waiting else linked.pop()
            folder = self._read(path, linked)
            if folder is not None:
                yield folder
                waiting.extend(os.path.join(path, name) for name in reversed(folder.subfolders))

    def _read(self, path: str, linked: list[str]) -> Folder | None:
        folder = Folder(path, [], [], [])
        self._entering(path)
        try:
            status = os.stat(path)
            identity = (status.st_dev, status.st_ino)
            if identity in self._seen:
                return None
            self._seen.add(identity)
            with os.scandir(path) as listing:
                entries = sorted(listing, key=_name_of)
        except OSError as error:
            folder.problems.append(Problem(path, f"the folder cannot be read: {error.strerror}"))
            return folder
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if name[-len(SUFFIX) :].lower() == SUFFIX:
                found = check_file(entry.path)
                if isinstance(found, Candidate):
                    folder.files.append(found)
                    continue
                folder.problems.append(found)
            elif ".gguf." in (lowered := name.lower()) and lowered.endswith(UNFINISHED):
                folder.problems.append(Problem(entry.path, "a download that has not ended"))
            if _is_folder(entry):
                if entry.is_symlink():
                    linked.append(entry.path)
                elif entry.path not in _NO_DISK:
                    folder.subfolders.append(name)
        return folder


def check_file(path: str) -> Candidate | Problem:
    """A file with its status; a problem if it is none, as with a pipe or a link that leads nowhere."""
    try:
        status = os.stat(path)
    except OSError as error:
        return Problem(path, _why_no_status(path, error))
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        return Problem(path, _KINDS.get(kind, "not a file"))
    return Candidate(path, status)


def read_small_file(path: str, max_bytes: int) -> bytes:
    """The beginning of a file that is small when it is what it should be; raises OSError."""
    # Non-blocking: a pipe in its place must not make us wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads in a circle, or where one may not look


def _why_no_status(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "a link that leads nowhere"
    return error.strerror or "cannot be read"


def _name_of(entry: os.DirEntry[str]) -> str:
    return entry.name
