"""What a member says to typed askers: pieces of an answer that travel together, replies, failures, farewells."""

from __future__ import annotations

import contextlib
import time

from modelpipes.chat.pending import Pending
from modelpipes.errors import MessageError, Reason, RoomError
from modelpipes.pipe.endpoint import Endpoint
from modelpipes.pipe.log import NO_LOG, Log
from modelpipes.pipe.message import Bye, Delta, Failure, Message, Phase, Progress
from modelpipes.values.deadline import Deadline

DELTA_S = (
    0.004  # between the deltas of an answer: at 1 ms a model of 5,000 tokens/s lost 10 % of its rate, at 4 ms none
)
UNSENT_LIMIT_BYTES = 1024 * 1024  # beyond it deltas, which the reply repeats, and failures are left out
FAREWELL_S = 0.2  # for the last words to go out when the member leaves


class Outbox:
    """Nothing here waits: an asker that has gone, or reads slowly, holds nobody up."""

    def __init__(self, endpoint: Endpoint, log: Log = NO_LOG) -> None:
        self._endpoint = endpoint
        self._log = log
        self._seat = endpoint.seat
        self._lagging: list[Pending] = []  # with pieces that go in a moment

    def connect(self, asker: str) -> bool:
        """Open the pipe to an asker; False while nobody reads there, or where no pipe leads there."""
        try:
            return self._endpoint.try_connect(asker)
        except RoomError:
            return False

    def post(self, asker: str, message: Message, *, limit_bytes: int | None = None) -> None:
        """Send a message, if the asker is still there.

        It is left out where more than `limit_bytes` wait for the asker to read, or it is too large to travel.
        """
        if not self.connect(asker) or (limit_bytes is not None and self._endpoint.unsent_bytes(asker) >= limit_bytes):
            return
        with contextlib.suppress(MessageError):
            self._endpoint.post(asker, message)

    def fail(self, asker: str, say_id: str | None, reason: Reason, detail: str, have: int | None = None) -> None:
        self._log.note(self._seat, "failed", id=say_id, to=asker, reason=reason, why=detail)
        failure = Failure(self._seat, asker, reason, detail, say_id, have)
        is_cheap = reason in ("busy", "malformed")  # to provoke, without end and without reading
        self.post(asker, failure, limit_bytes=UNSENT_LIMIT_BYTES if is_cheap else None)

    def tell_progress(self, pending: Pending, phase: Phase, position: int | None = None) -> None:
        """Tell that the answer is on its way, unless words of it are."""
        if not pending.is_plain and not pending.is_abandoned and not self._endpoint.unsent_bytes(pending.asker):
            self.post(pending.asker, Progress(pending.say.id, self._seat, pending.asker, phase, position))

    def post_soon(self, pending: Pending) -> None:
        """Post what the voice has emitted, unless it just was; then it goes in a moment, with what comes until then."""
        now_s = time.monotonic()
        if now_s - pending.posted_s < DELTA_S:
            self._lagging.append(pending)
            return
        pending.posted_s = now_s
        self.post_pieces(pending)

    def post_pieces(self, pending: Pending) -> None:
        """Post what the voice has emitted by now as one delta."""
        pending.is_posting = False
        content = thinking = ""
        is_anew = False
        while pending.pieces:
            more_content, more_thinking, begins_anew = pending.pieces.popleft()
            if begins_anew:
                content, thinking, is_anew = "", "", True
            content += more_content
            thinking += more_thinking
        if (content or thinking or is_anew) and not pending.is_abandoned:
            delta = Delta(pending.say.id, self._seat, pending.asker, content, thinking, is_anew)
            self.post(pending.asker, delta, limit_bytes=UNSENT_LIMIT_BYTES)  # what is left out the reply will tell

    def post_lagging(self) -> None:
        """Post what waited for its moment, if that has come."""
        lagging, self._lagging = self._lagging, []
        for pending in lagging:
            self.post_soon(pending)

    def is_idle(self) -> bool:
        """Does nothing wait for its moment?"""
        return not self._lagging

    def say_goodbye(self) -> None:
        """Tell every asker that is there, and let the last words go out."""
        deadline = Deadline.after(FAREWELL_S)
        for asker in list(self._endpoint.listens_to()):
            if self._endpoint.is_typed(asker):
                self._endpoint.post(asker, Bye(self._seat, asker))
            while self._endpoint.unsent_bytes(asker) and not deadline.has_passed():
                self._endpoint.receive(deadline)
