"""Conversations kept across swaps: what an engine's slots held is put back when the model is loaded again."""

from __future__ import annotations

import os
import shutil

from modelpipes.engine import slots
from modelpipes.engine.lifecycle import Engine
from modelpipes.errors import PipesError
from modelpipes.machine.processes import is_alive
from modelpipes.values.deadline import Deadline
from modelpipes.values.paths import make_private

LIMIT_S = 10.0  # a gigabyte to a disk; longer is not worth it


class Kept:
    """The saved slots of all models, in a folder of ours; everything here blocks, and nothing here fails."""

    def __init__(self, root: str) -> None:
        """`root` has a folder for each daemon; those of daemons that were killed go."""
        for pid in os.listdir(root) if os.path.isdir(root) else []:
            if pid.isdecimal() and not is_alive(int(pid)):
                shutil.rmtree(os.path.join(root, pid), ignore_errors=True)
        self.folder = os.path.join(root, str(os.getpid()))
        self._saved: dict[str, list[slots.SavedSlot]] = {}
        self._works: dict[str, bool] = {}  # by the server's own count; tried when there is something to restore

    def place(self) -> str | None:
        """Where an engine may save; None where no folder can be made."""
        try:
            make_private(self.folder)
        except OSError:
            return None
        return self.folder

    def save(self, name: str, engine: Engine) -> int:
        """Before the engine is ended; how many conversations were saved."""
        if not self._works.get(name, True) or engine.slot_folder is None or not engine.keeps_slots():
            return 0
        self.forget(name)
        try:
            self._saved[name] = slots.save(engine.client(), self.folder, Deadline.after(LIMIT_S))
        except PipesError:
            return 0
        return len(self._saved[name])

    def restore(self, name: str, engine: Engine) -> int:
        """After the engine became ready, before anybody uses it; how many conversations go on."""
        saved = self._saved.get(name, [])
        if not saved:
            return 0
        client, deadline = engine.client(), Deadline.after(LIMIT_S)
        try:
            if name not in self._works:
                self._works[name] = slots.works(client, self.folder, deadline)
            return len(slots.restore(client, self.folder, saved, deadline)) if self._works[name] else 0
        except PipesError:
            if engine.exit_reason() is None:  # else it was killed, which says nothing about the model
                self._works[name] = False
            return 0
        finally:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Remove what was saved of a model."""
        slots.discard(self.folder, self._saved.pop(name, []))

    def forget_model(self, name: str) -> None:
        """Also whether it works: another model has this name now."""
        self.forget(name)
        self._works.pop(name, None)

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
