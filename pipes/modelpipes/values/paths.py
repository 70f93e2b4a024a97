"""Where modelpipes keeps things: runtime, cache, data and configuration folders (XDG), and how they are made.

Strings, not `pathlib`: its import is a good part of a small command's start.
"""

from __future__ import annotations

import os
import stat

_NAME = "modelpipes"


def runtime_dir() -> str | None:
    """The folder for what lives until logout; None where the system gives us none that is ours alone."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(base):
        return None
    try:
        status = os.stat(base)
    except OSError:
        return None  # as good as unset: a shell that came by su or cron keeps a name whose folder is gone
    ours_alone = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return os.path.join(base, _NAME) if stat.S_ISDIR(status.st_mode) and ours_alone else None


def cache_dir() -> str:
    """The folder for what can be made again."""
    return _home_dir("XDG_CACHE_HOME", ".cache")


def logs_dir() -> str:
    """The folder of what the engines of serve-models say, one below it for each address."""
    return os.path.join(cache_dir(), "serve")


def slots_dir() -> str:
    """The folder of the conversations that serve-models keeps, one below it for each daemon."""
    return os.path.join(cache_dir(), "slots")


def build_dir() -> str:
    """The folder where engines are built: sources, and what is not done."""
    return os.path.join(cache_dir(), "build-engine")


def data_dir() -> str:
    """The folder for what should be kept."""
    return _home_dir("XDG_DATA_HOME", os.path.join(".local", "share"))


def state_dir() -> str:
    """The folder for what should be kept, and is worth little: what a person typed."""
    return _home_dir("XDG_STATE_HOME", os.path.join(".local", "state"))


def config_dir() -> str:
    """The folder of the user's configuration."""
    return _home_dir("XDG_CONFIG_HOME", ".config")


def config_file() -> str:
    """The user's configuration, whether it is there or not."""
    return os.path.join(config_dir(), "config.toml")


def make_private(folder: str) -> None:
    """Make a folder of ours, and those above it, where they are missing, so that nobody else gets in; OSError.

    `os.makedirs` has a mode for the last one alone: what lies above would be as the umask has it, and where others may
    write, they may put another folder in its place.
    """
    above = os.path.dirname(folder)
    if above and not os.path.isdir(above):
        make_private(above)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise


def _home_dir(variable: str, below_home: str) -> str:
    base = os.environ.get(variable, "")
    # The specification has relative paths ignored.
    return os.path.join(base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), below_home), _NAME)
