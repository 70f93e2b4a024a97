"""Where model files lie when nobody says where."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from modelpipes.gguf.smallfile import read_file, replace_file
from modelpipes.values.formats import FOLDERS
from modelpipes.values.paths import cache_dir

SEARCH_PATH = "SEARCH_PATH"
MAX_REMEMBERED = 32  # folders; a scan of one that has nothing costs a millisecond
MAX_MEMORY_BYTES = 1 << 20
_FORMAT = re.compile(rb"modelpipes folders (\d{1,9})\0")  # what a format to come begins with; 1 is bare folders


def default_places() -> list[str]:
    """The folders of $SEARCH_PATH, between colons; without it, the known model folders that exist."""
    named = [os.path.expanduser(part) for part in os.environ.get(SEARCH_PATH, "").split(":") if part]
    return named or [place for place in known_places() if os.path.isdir(place)]


def known_places() -> list[str]:
    """Every folder that a common program keeps models in, as the environment has it, present or not."""
    home = os.path.expanduser("~")
    cache = _folder_of("XDG_CACHE_HOME", os.path.join(home, ".cache"))
    # huggingface_hub, "Environment variables"; the newer name wins.
    hub = _folder_of("HF_HUB_CACHE", _folder_of("HUGGINGFACE_HUB_CACHE", ""))
    hub = hub or os.path.join(_folder_of("HF_HOME", os.path.join(cache, "huggingface")), "hub")
    places = [
        os.path.join(home, "models"),
        *lm_studio_places(),
        hub,
        _folder_of("LLAMA_CACHE", os.path.join(cache, "llama.cpp")),  # fs_get_cache_directory of common.cpp
        _folder_of("OLLAMA_MODELS", ""),
        os.path.join(home, ".ollama", "models"),
        "/usr/share/ollama/.ollama/models",
        "/mnt/models",
        "/opt/models",
    ]
    return [place for place in dict.fromkeys(places) if place]


def remember(folders: Sequence[str]) -> None:
    """Keep that models were looked for in these folders: their names are to mean something later, too."""
    known = remembered()
    wanted = [os.path.abspath(folder) for folder in folders if folder and os.path.isdir(folder)]
    kept = [*wanted, *(folder for folder in known if folder not in wanted)][:MAX_REMEMBERED]
    if kept != known and not refusal():
        lines = "".join(f"{folder}\0" for folder in kept)
        replace_file(_memory_path(), os.fsencode(lines))


def remembered() -> list[str]:
    """Folders that were looked in, the last first."""
    found = _memory()
    return [] if _refusal(found) else [os.fsdecode(folder) for folder in found.split(b"\0") if folder]


def refusal() -> str:
    """Why the folders that were looked in are neither read nor replaced, in a line; empty where they are."""
    return _refusal(_memory())


def _refusal(memory: bytes) -> str:
    found = _FORMAT.match(memory)
    said = FOLDERS.refusal(int(found[1])) if found else ""
    return said and f"{_memory_path()}: {said}"


def _memory() -> bytes:
    return read_file(_memory_path(), MAX_MEMORY_BYTES)


def _memory_path() -> str:
    return os.path.join(cache_dir(), "folders")


def lm_studio_places() -> list[str]:
    """LM Studio's folders, where models lie as PUBLISHER/MODEL/FILE."""
    home = os.path.expanduser("~")
    return [os.path.join(home, ".lmstudio", "models"), os.path.join(home, ".cache", "lm-studio", "models")]


def _folder_of(variable: str, otherwise: str) -> str:
    value = os.environ.get(variable, "")
    return os.path.abspath(os.path.expanduser(value)) if value else otherwise
