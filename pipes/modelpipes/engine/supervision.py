"""Keep an engine up: start it again when it dies, with patience; find out that it hangs, and end that."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import msgspec

from modelpipes.deadline import Deadline
from modelpipes.engine.causes import Cause, EngineFailure
from modelpipes.engine.client import figure_of
from modelpipes.engine.lifecycle import Engine, State, Status
from modelpipes.errors import DeadlineError, EngineError, ProgramError

BACKOFF_S = 10.0  # before the second attempt; the first follows at once, for most deaths are accidents
LONGEST_BACKOFF_S = 300.0
HELD_S = 60.0  # health that lasts as long is no accident: the next death is a first one again
LOOK_INTERVAL_S = 1.0  # between two looks at an engine in use

QUIET_S = 5.0  # without a token in an engine at work; a batch of a large prompt on a CPU takes as long
# Without work there is nothing to be seen, and each proof costs a slot's conversation a trip to the prompt cache.
IDLE_PROOF_S = 300.0
LOOK_LIMIT_S = 2.0  # figures are told between two batches
START_S = 900.0  # the largest model from a slow disk; llama-server waits for ever for an RPC server that hangs
PROBE_S = 20.0  # for one token, which also waits for the batch in work


def backoff_s(failures: int) -> float:
    """How long to wait after the last of so many failures in a row: 0, 10, 20, 40 … 300 s."""
    if failures <= 1:
        return 0.0
    return float(min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 2, 10)))


class BackingOff(EngineFailure):
    """It failed before and is not started again for `retry_in_s`; the text tells why it failed."""

    def __init__(self, text: str, cause: Cause, retry_in_s: float) -> None:
        super().__init__(text, cause)
        self.retry_in_s = retry_in_s


class Supervisor:
    """Keeps one engine as it should be, up or down; safe to use from several threads.

    `be_ready` and `stop` say what it should be. `look` does what has to be done, and wants to be called every
    second, from one thread at a time, with a deadline later than a probe takes: it may last as long as that.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cancel: Callable[[], object] | None = None,
        quiet_s: float = QUIET_S,
        probe_s: float = PROBE_S,
        start_s: float = START_S,
        idle_proof_s: float | None = IDLE_PROOF_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cancel` ends the requests in flight, the first stage of ending an engine that hangs. One that shows no
        life for `quiet_s` while it works, or for `idle_proof_s` (None: for ever) while it does not, has to
        compute a token within `probe_s`. A start that takes longer than `start_s` hangs.
        """
        self.engine = engine
        self._cancel = cancel
        self._quiet_s = quiet_s
        self._probe_s = probe_s
        self._start_s = start_s
        self._idle_proof_s = idle_proof_s
        self._clock = clock
        self._lock = threading.Lock()
        self._should_be_up = False
        self._failures = 0
        self._retry_at: float | None = None
        self._cause: Cause | None = None  # of the last failure
        self._text = ""
        self._ready_since: float | None = None  # of the start that is watched
        self._watched_start = 0
        self._failed_start = 0  # the last one whose failure is counted
        self._begun: tuple[int, float] = (0, 0.0)  # the start in flight: its number, and since when
        self._last_life = 0.0
        self._decoded: float | None = None  # calls of llama_decode, when it was looked at last

    # -- what it should be

    def be_ready(self, deadline: Deadline) -> None:
        """Return once the engine is ready; it is kept so from now on.

        Raises BackingOff at once while it may not be started, EngineFailure if the start fails, DeadlineError.
        """
        with self._lock:
            self._should_be_up = True
        self._notice()
        self._refuse_early()
        self._start(deadline)

    def stop(self) -> None:
        """End the engine and keep it down."""
        with self._lock:
            self._should_be_up = False
        self.engine.stop()
        with self._lock:
            self._ready_since = None

    def forgive(self) -> None:
        """Forget the failures: what caused them was changed."""
        self._notice()
        with self._lock:
            self._forget()

    def saw_life(self) -> None:
        """Tell that a token came from the engine just now; cheap."""
        self._last_life = self._clock()

    def status(self) -> Status:
        """The engine's own, with the failures in a row and the seconds until it may be started again."""
        status = self.engine.status()
        with self._lock:
            is_down = status.state in (State.STOPPED, State.FAILED)
            left_s = max(0.0, self._retry_at - self._clock()) if self._retry_at is not None and is_down else None
            return msgspec.structs.replace(status, failures=self._failures, retry_in_s=left_s)

    # -- what is done about it

    def look(self, deadline: Deadline) -> Status:
        """Notice what has happened since the last look, and do what can be done: start it, prove it, end it.

        Failures are in what is returned; nothing is raised.
        """
        self._notice()
        with self._lock:
            is_down = self.engine.state in (State.STOPPED, State.FAILED)
            lasts = self._cause is not None and self._cause.is_lasting
            is_due = self._should_be_up and is_down and not lasts and not self._is_backing_off()
        if is_due:
            with contextlib.suppress(EngineError, DeadlineError):  # told by the status
                self._start(deadline)
        elif self._is_start_wedged():
            self._end_wedged(f"engine {self.engine.name} has not become ready in {self._start_s:g} s; ended")
        elif self.engine.state is State.READY and not self.is_alive(deadline):
            self._end_wedged(f"engine {self.engine.name} hangs: it is there and computes nothing; ended")
        return self.status()

    def is_alive(self, deadline: Deadline) -> bool:
        """Whether a ready engine computes: by the tokens that came, by its own count, and at last by a proof."""
        now = self._clock()
        if now - self._last_life < self._quiet_s:
            return True
        start = self.engine.status().starts
        decoded, is_busy = self._figures(deadline)
        grown = decoded is not None and self._decoded is not None and decoded != self._decoded
        if decoded is not None:
            self._decoded = decoded
        if grown:
            self._last_life = now
            return True
        if (
            decoded is not None
            and not is_busy
            and (self._idle_proof_s is None or now - self._last_life < self._idle_proof_s)
        ):
            return True
        is_proved = self._is_proved(deadline)
        # Not this one any more, or dead meanwhile: another look will tell.
        return is_proved or self.engine.state is not State.READY or self.engine.status().starts != start

    def _figures(self, deadline: Deadline) -> tuple[float | None, bool]:
        """Calls of llama_decode, None where it does not tell in time; and whether anything is asked of it."""
        limit = deadline.earlier(Deadline.after(LOOK_LIMIT_S))
        try:
            metrics = self.engine.metrics(max(limit.remaining_s(), 0.001))
        except (EngineError, DeadlineError):
            return None, True
        busy = figure_of(metrics, "requests_processing"), figure_of(metrics, "requests_deferred")
        return figure_of(metrics, "n_decode_total"), any(busy)

    def _is_proved(self, deadline: Deadline) -> bool:
        before = self._last_life
        try:
            self.engine.probe(deadline.earlier(Deadline.after(self._probe_s)))
        except DeadlineError:
            # All slots are taken: the probe waits, though the others go on.
            decoded, _ = self._figures(Deadline.after(LOOK_LIMIT_S))
            grown = decoded is not None and self._decoded is not None and decoded > self._decoded
            self._decoded = decoded
            # A deadline of the caller's own says nothing about the engine.
            return grown or self._last_life > before or deadline.has_passed()
        except EngineError:
            return False
        self._last_life = self._clock()
        return True

    def _is_start_wedged(self) -> bool:
        status = self.engine.status()
        with self._lock:
            start, since = self._begun
            return status.state is State.STARTING and status.starts == start and self._clock() - since >= self._start_s

    def _end_wedged(self, why: str) -> None:
        """In stages: its requests are cancelled, it has a moment for them, TERM, KILL."""
        if self._cancel is not None:
            self._cancel()
        try:
            self.engine.stop(cause=Cause.WEDGED, why=why)
        except ProgramError as error:
            why = f"{why}; {error}"
        with self._lock:
            self._count_failure(Cause.WEDGED, why)

    def _start(self, deadline: Deadline) -> None:
        try:
            # Stopped meanwhile: a look that had decided to start it must not.
            self.engine.be_ready(deadline, lambda: self._should_be_up)
        except EngineFailure:
            self._notice()
            raise
        self._notice()

    def _notice(self) -> None:
        """Take in how the engine stands: a death counts once, health that held makes them forgotten."""
        with self._lock:
            status = self.engine.status()
            now = self._clock()
            if status.state is State.FAILED and status.starts != self._failed_start:
                self._failed_start = status.starts
                self._count_failure(status.cause or Cause.CRASHED, status.failure)
            elif status.state is State.READY:
                if self._watched_start != status.starts or self._ready_since is None:
                    self._watched_start = status.starts
                    self._ready_since = self._last_life = now  # a start ends with a token
                    self._decoded = None
                elif now - self._ready_since >= HELD_S:
                    self._forget()
            elif status.state is State.STARTING and self._begun[0] != status.starts:
                self._begun = status.starts, now

    def _forget(self) -> None:
        self._failures, self._retry_at, self._cause, self._text = 0, None, None, ""

    def _count_failure(self, cause: Cause, text: str) -> None:
        self._failures += 1
        self._cause, self._text = cause, text
        self._ready_since = None
        self._retry_at = self._clock() + backoff_s(self._failures)
        self.engine.log.note(
            f"modelpipes: failure {self._failures} in a row ({cause.value}): "
            + ("not tried again unasked, " if cause.is_lasting else "tried again, ")
            + f"in {backoff_s(self._failures):g} s at the earliest"
        )

    def _is_backing_off(self) -> bool:
        return self._retry_at is not None and self._clock() < self._retry_at

    def _refuse_early(self) -> None:
        with self._lock:
            if self._retry_at is None or not self._is_backing_off():
                return
            if self.engine.state in (State.STOPPED, State.FAILED):
                left_s = self._retry_at - self._clock()
                text = f"{self._text}; tried again in {left_s:.0f} s at the earliest ({self._failures} failures)"
                raise BackingOff(text, self._cause or Cause.CRASHED, left_s)
