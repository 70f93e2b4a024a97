"""What loads of models have shown: how long each took, and how much memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from modelpipes.gguf.identity import Stamp
from modelpipes.serving.bytes import Bytes


@dataclass(frozen=True)
class Load:
    """The last one of a model, of the files with this stamp; `taken` is None where nobody could measure it."""

    stamp: Stamp
    seconds: float
    taken: Bytes | None


class Learnt:
    """By the models' names, for as long as their files are those that it was learnt of."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def note(self, name: str, load: Load) -> None:
        """In place of what was learnt before; a load that was not measured leaves what was measured of these files."""
        before = self.of(name, load.stamp)
        if before is not None and load.taken is None:
            load = Load(load.stamp, load.seconds, before.taken)
        self._loads[name] = load

    def of(self, name: str, stamp: Stamp) -> Load | None:
        """The last load of these files."""
        load = self._loads.get(name)
        return load if load is not None and load.stamp == stamp else None

    def forget(self, name: str) -> None:
        """Another model has this name now."""
        self._loads.pop(name, None)
