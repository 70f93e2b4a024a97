"""The disk below a folder: what is free there, and whether we may write."""

from __future__ import annotations

import os

import msgspec


class Disk(msgspec.Struct, frozen=True):
    """A folder of ours, made or not yet, and the file system that it is on."""

    path: str
    free_bytes: int
    can_write: bool


def read_disk(path: str) -> Disk | None:
    """The disk below a folder, made or not yet; None where its file system cannot be asked."""
    there = path
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)  # the folder is made when it is first needed
    try:
        found = os.statvfs(there)
    except OSError:
        return None
    return Disk(path, found.f_bavail * found.f_frsize, os.access(there, os.W_OK | os.X_OK))
