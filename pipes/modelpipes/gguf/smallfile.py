"""Small files of our own in the user's cache folder: read whole, replaced whole; failing is no error."""

from __future__ import annotations

import os
import stat

from modelpipes.values.paths import make_private


def read_file(path: str, max_bytes: int) -> bytes:
    """All of a regular file, or nothing where it cannot be read or is larger."""
    try:
        # Non-blocking: a pipe in its place must not make us wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return b""
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def replace_file(path: str, data: bytes) -> bool:
    """Put a file in place of another, whole or not at all; whether it worked."""
    temporary = f"{path}.{os.urandom(8).hex()}"
    try:
        make_private(os.path.dirname(path))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        _remove(temporary)
    return True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it took its place, or the folder is not ours any more
