"""Answers to plain lines, kept until their askers open their pipes: they may do so only after they wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelpipes.errors import MessageError, RoomError
from modelpipes.pipe.endpoint import Endpoint


class PlainAnswers:
    """At most one uncollected answer for each plain asker."""

    def __init__(self, endpoint: Endpoint, report: Callable[[str], None]) -> None:
        self._endpoint = endpoint
        self._report = report
        self._uncollected: dict[str, str] = {}
        self._refused: set[str] = set()  # whose uncollected answer says that the line was none

    def keep(self, asker: str, text: str) -> None:
        """Keep an answer for its asker to collect."""
        self._uncollected[asker] = text
        self._refused.discard(asker)

    def refuse(self, asker: str, detail: str) -> None:
        """Keep for an asker that its line is none."""
        self.keep(asker, f"error: {detail}; words must not begin with {{ (a space before it will do)")
        self._refused.add(asker)

    def refuses(self, asker: str) -> bool:
        """Is that what its uncollected answer says?"""
        return asker in self._refused

    def drop(self, asker: str) -> None:
        """A newer line came: nobody wants the older one's answer any more."""
        self._refused.discard(asker)
        if self._uncollected.pop(asker, None) is not None:
            self._report(f"{self._endpoint.seat}: {asker} asked again before it collected an answer, which is lost")

    def deliver(self) -> int:
        """Write the answers whose askers have come; how many."""
        ready = [asker for asker in self._uncollected if self._may_write(asker)]
        for asker in ready:
            text = self._uncollected.pop(asker)
            self._refused.discard(asker)
            try:
                self._endpoint.post_plain(asker, text)
            except MessageError as e:
                self._endpoint.post_plain(asker, f"error: {e}")
        return len(ready)

    def _may_write(self, asker: str) -> bool:
        """Does the plain asker read now, and this answer? Not while a typed one holds the seat, an older answer is
        still on its way, or a newer line came.
        """
        endpoint = self._endpoint
        try:
            is_late = endpoint.unsent_bytes(asker) or endpoint.has_unread(asker)
            is_typed = not is_late and endpoint.room.is_asked(asker, endpoint.seat)
            return not is_late and not is_typed and endpoint.try_connect(asker) and endpoint.is_read(asker)
        except RoomError:
            return False

    def is_idle(self, working: Iterable[str]) -> bool:
        """Is no reader to come and no pipe to close? The kernel tells of neither.

        `working` are the askers whose lines are still to be answered.
        """
        return self._endpoint.close_idle({*working, *self._uncollected}) and not self._uncollected
