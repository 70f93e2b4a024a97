"""How far a voice is that loads: who can be asked, what is told of it, and who asks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from msgspec import Struct

from modelpipes.pipe.room import Loading
from modelpipes.values.units import format_elapsed

LOOK_S = 0.5  # between two looks: who waits is told after a second
LOOK_SHARE = 20  # a look walks all pages of the engine: it takes a twentieth of the time at most


class Arriving(Struct, frozen=True):
    """A member that is being seated, the `number`th of `count`; the 0th where it is one that was lost.

    `loading` is how far its voice has loaded, None where that cannot be seen.
    """

    seat: str
    number: int = 0
    count: int = 1
    elapsed_s: float = 0.0
    loading: Loading | None = None

    def __str__(self) -> str:
        which = f" ({self.number} of {self.count})" if self.count > 1 else ""
        how_far = f": {self.loading}" if self.loading else ""
        return f"loading {self.seat}{which}{how_far}, {format_elapsed(self.elapsed_s)}"


Show = Callable[[Arriving | None], None]  # told again and again how far one is; None once it is there, or has failed


def show_nothing(arriving: Arriving | None) -> None:
    """Where nobody looks while members load."""


@runtime_checkable
class Loads(Protocol):
    """A voice that takes its time to load, and can be asked how far it is."""

    def loading(self) -> Loading | None:
        """How much it has read by now; None where that cannot be seen. From any thread, while `prepare` runs."""


@contextlib.contextmanager
def watched(voice: object, seat: str, show: Show) -> Iterator[None]:
    """Within, a voice loads: `show` is told twice a second, in a thread of its own, how far it is."""
    if not isinstance(voice, Loads):
        yield
        return
    is_over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(voice, seat, show, is_over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()  # it shows nothing any more


def _watch(voice: Loads, seat: str, show: Show, is_over: threading.Event) -> None:
    pause_s, since_s = LOOK_S, time.monotonic()
    while not is_over.wait(pause_s):
        began_s = time.monotonic()
        loading = voice.loading()
        pause_s = max(LOOK_S, LOOK_SHARE * (time.monotonic() - began_s))
        show(Arriving(seat, 1, 1, time.monotonic() - since_s, loading))
    show(None)
