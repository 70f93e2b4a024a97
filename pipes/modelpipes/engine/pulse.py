"""Find out that an engine hangs: it is there, and computes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from modelpipes.engine.client import figure_of
from modelpipes.engine.lifecycle import Engine, State
from modelpipes.errors import DeadlineError, EngineError
from modelpipes.values.deadline import Deadline

QUIET_S = 5.0  # without a token in an engine at work; a batch of a large prompt on a CPU takes as long
# Without work there is nothing to be seen, and each proof costs a slot's conversation a trip to the prompt cache.
IDLE_PROOF_S = 300.0
LOOK_LIMIT_S = 2.0  # figures are told between two batches
PROBE_S = 20.0  # for one token, which also waits for the batch in work


class Pulse:
    """Of one engine, from the moment when it is ready; one thread at a time may ask."""

    def __init__(
        self,
        engine: Engine,
        *,
        quiet_s: float = QUIET_S,
        probe_s: float = PROBE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """An engine that shows no life for `quiet_s` while it works, or for IDLE_PROOF_S while it does not, has to
        compute a token within `probe_s`.
        """
        self._engine = engine
        self._quiet_s = quiet_s
        self._probe_s = probe_s
        self._clock = clock
        self._last_life = clock()  # a start ends with a token
        self._decoded: float | None = None  # calls of llama_decode, when it was looked at last

    def is_alive(self, deadline: Deadline) -> bool:
        """Whether it computes: by its own count, and at last by a proof. One that has died does not hang.

        The deadline wants to be later than a probe takes: it may last as long as that.
        """
        now = self._clock()
        if now - self._last_life < self._quiet_s:
            return True
        before = self._decoded
        decoded, is_busy = self._figures(deadline)
        if decoded is not None:
            self._decoded = decoded
            if before is not None and decoded != before:
                self._last_life = now
                return True
            if not is_busy and now - self._last_life < IDLE_PROOF_S:
                return True
        return self._is_proved(deadline) or self._engine.state is not State.READY

    def _figures(self, deadline: Deadline) -> tuple[float | None, bool]:
        """Calls of llama_decode, None where it does not tell in time; and whether anything is asked of it."""
        limit = deadline.earlier(Deadline.after(LOOK_LIMIT_S))
        try:
            metrics = self._engine.metrics(max(limit.remaining_s(), 0.001))
        except (EngineError, DeadlineError):
            return None, True
        busy = figure_of(metrics, "requests_processing"), figure_of(metrics, "requests_deferred")
        return figure_of(metrics, "n_decode_total"), any(busy)

    def _is_proved(self, deadline: Deadline) -> bool:
        try:
            self._engine.probe(deadline.earlier(Deadline.after(self._probe_s)))
        except DeadlineError:
            # All slots are taken: the probe waits, though the others go on.
            decoded, _ = self._figures(Deadline.after(LOOK_LIMIT_S))
            has_grown = decoded is not None and self._decoded is not None and decoded > self._decoded
            self._decoded = decoded
            # A deadline of the caller's own says nothing about the engine.
            return has_grown or deadline.has_passed()
        except EngineError:
            return False
        self._last_life = self._clock()
        return True
