"""What differs between two configurations, and so what a reload touches. Pure."""

from __future__ import annotations

import msgspec

from modelpipes.config.settings import Config

HARMLESS = ("pin", "idle_unload_s", "aliases")  # of a model: an engine that runs need not know
AT_START = (
    "server.listen",
    "server.key",
    "server.max_waiting",
    "server.max_lease_s",
    "events.file",
    "events.size",
    "events.older",
    "memory.keep_conversations",
    "find-gguf.search_path",
    "voice.llama_server",
)
OF_BUDGET = ("memory.budget", "memory.host_budget", "memory.reserve")


class Change(msgspec.Struct, frozen=True):
    """What differs between two configurations; names and keys are sorted.

    `changed` models need another engine; `touched` ones changed in HARMLESS keys only. `restart` names the keys that
    are read at the start only. `memory` and `scan`: whether another key of that section changed; `budget`: whether one
    of OF_BUDGET.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    memory: bool = False
    budget: bool = False
    scan: bool = False


def difference(old: Config, new: Config) -> Change:
    """What of a running daemon a new configuration touches. Pure."""
    both = sorted(old.models.keys() & new.models.keys())
    keys = {name: _changed_keys(old.models[name], new.models[name]) for name in both}
    sections = {f"server.{key}" for key in _changed_keys(old.server, new.server)}
    sections |= {f"events.{key}" for key in _changed_keys(old.events, new.events)}
    sections |= {f"memory.{key}" for key in _changed_keys(old.memory, new.memory)}
    sections |= {f"find-gguf.{key}" for key in _changed_keys(old.find_gguf, new.find_gguf)}
    sections |= {f"voice.{key}" for key in _changed_keys(old.voice, new.voice)}
    return Change(
        added=tuple(sorted(new.models.keys() - old.models.keys())),
        removed=tuple(sorted(old.models.keys() - new.models.keys())),
        changed=tuple(name for name in both if not keys[name] <= set(HARMLESS)),
        touched=tuple(name for name in both if keys[name] and keys[name] <= set(HARMLESS)),
        restart=tuple(sorted(sections & set(AT_START))),
        memory=any(key.startswith("memory.") for key in sections - set(AT_START)),
        budget=bool(sections & set(OF_BUDGET)),
        scan=old.scan != new.scan,
    )


def _changed_keys(old: msgspec.Struct, new: msgspec.Struct) -> set[str]:
    return {key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)}
