"""A model in memory, and the leave to use its engine, as the pool keeps them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modelpipes.engine.cachekey import CacheKey
from modelpipes.engine.lifecycle import Engine
from modelpipes.gguf.identity import Stamp
from modelpipes.serving.bytes import Bytes
from modelpipes.serving.files import Watched
from modelpipes.serving.grant import Grant
from modelpipes.serving.servable import Servable
from modelpipes.serving.situation import State


@dataclass
class Held:
    """A model in memory, on its way in or out."""

    servable: Servable
    engine: Engine
    bytes: Bytes
    stamp: Stamp  # of the files, when the load was decided
    key: CacheKey | None = None  # of the engine, from before it read its files
    identity: str = ""  # that in one word
    watched: Watched | None = None
    is_outdated: bool = False  # others lie there, that can be loaded
    state: State = "loading"
    loaded_at: float = 0.0
    last_used: float = 0.0
    is_unwanted: bool = False
    drained_by: float = math.inf
    watch: asyncio.Task[Any] | None = None
    grants: set[HeldGrant] = field(default_factory=set)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class HeldGrant(Grant):
    """One of these; `release_to` is told once that it is given back."""

    release_to: Callable[[HeldGrant], None] | None = None

    def release(self) -> None:
        if self.release_to is not None:
            release, self.release_to = self.release_to, None
            release(self)
