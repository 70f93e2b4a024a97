"""Conversations kept across swaps: what an engine's slots held is put back when the model is loaded again.

Each is kept under its model's name, and belongs to a `CacheKey`: the files, the settings and the program of the engine
that computed it. It is put back where the engine's key is the same, and only there: of other weights it would be
another conversation, which llama-server takes with 200. The key is taken before an engine starts (`Kept` is given it).
Files that change while an engine starts, or under one that runs and has them mapped, leave in its slots what belongs
to no key: nothing is put into such an engine, and nothing of it is kept.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field

from modelpipes.engine import slots
from modelpipes.engine.cachekey import CacheKey
from modelpipes.engine.lifecycle import Engine
from modelpipes.errors import PipesError
from modelpipes.machine.processes import is_alive
from modelpipes.values.deadline import Deadline
from modelpipes.values.paths import make_private

LIMIT_S = 10.0  # a gigabyte to a disk; longer is not worth it


@dataclass
class _OfModel:
    """What is kept of one model; `works`: whether it goes on from a slot, None where nobody has tried."""

    key: CacheKey
    works: bool | None = None
    saved: list[slots.SavedSlot] = field(default_factory=list)

    @property
    def has_adapters(self) -> bool:
        return bool(self.key.spec.adapters)


class Kept:
    """The saved slots of all models, in a folder of ours; everything here blocks, and nothing here fails."""

    def __init__(self, root: str) -> None:
        """`root` has a folder for each daemon; those of daemons that were killed go."""
        for pid in os.listdir(root) if os.path.isdir(root) else []:
            if pid.isdecimal() and not is_alive(int(pid)):
                shutil.rmtree(os.path.join(root, pid), ignore_errors=True)
        self.folder = os.path.join(root, str(os.getpid()))
        self._of: dict[str, _OfModel] = {}

    def place(self) -> str | None:
        """Where an engine may save; None where no folder can be made."""
        try:
            make_private(self.folder)
        except OSError:
            return None
        return self.folder

    def save(self, name: str, engine: Engine, key: CacheKey) -> int:
        """Before the engine with this key is ended; how many conversations were saved."""
        kept = self._under(name, key)
        slots.discard(self.folder, kept.saved)
        kept.saved = []
        if kept.works is False or engine.slot_folder is None or not engine.keeps_slots() or not key.is_of_now():
            return 0
        try:
            deadline = Deadline.after(LIMIT_S)
            kept.saved = slots.save(engine.client(), self.folder, deadline, has_adapters=kept.has_adapters)
        except PipesError:
            return 0
        if self._of.get(name) is not kept:  # it was forgotten meanwhile
            slots.discard(self.folder, kept.saved)
            return 0
        return len(kept.saved)

    def restore(self, name: str, engine: Engine, key: CacheKey) -> int:
        """After the engine with this key became ready, before anybody uses it; how many conversations go on.

        Any other slot of it is empty.
        """
        kept = self._under(name, key)
        if not kept.saved or not key.is_of_now():
            self.forget(name)
            return 0
        client, deadline = engine.client(), Deadline.after(LIMIT_S)
        try:
            # By the server's own count; tried when there is something to restore.
            if kept.works is None:
                kept.works = slots.works(client, self.folder, deadline)
            if not kept.works:
                return 0
            return len(slots.restore(client, self.folder, kept.saved, deadline, has_adapters=kept.has_adapters))
        except PipesError:
            if engine.exit_reason() is None:  # else it was killed, which says nothing about the model
                kept.works = False
            return 0
        finally:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Remove what was saved of a model."""
        if kept := self._of.get(name):
            slots.discard(self.folder, kept.saved)
            kept.saved = []

    def forget_model(self, name: str) -> None:
        """Also whether it works: another model has this name now."""
        self.forget(name)
        self._of.pop(name, None)

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _under(self, name: str, key: CacheKey) -> _OfModel:
        """What is kept of a model with this key; what was kept of another one goes."""
        kept = self._of.get(name)
        if kept is None or kept.key != key:
            self.forget(name)
            kept = self._of[name] = _OfModel(key)
        return kept
