"""What runs on an alarm: the command of --exec-on-alert, told of it in its environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType

from modelpipes.child import Child
from modelpipes.errors import DeadlineError, ProgramError
from modelpipes.machine.alarms import Alarm
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline
from modelpipes.values.units import format_seconds

EXEC_LIMIT_S = 30.0  # a command that tells somebody takes seconds; one that hangs must not pile up


class Reactions:
    """The runs of --exec-on-alert; each has its time, and none outlives us. What they say is handed to `say`."""

    def __init__(self, command_line: str | None, say: Callable[[str], object]) -> None:
        self._command_line = command_line
        self._say = say
        self._running: list[tuple[Child, Deadline]] = []

    def start(self, alarm: Alarm) -> None:
        """Run it for an alarm, if there is one to run; that it cannot be is said."""
        if self._command_line is None:
            return
        told = {
            "ALARM": alarm.kind, "MESSAGE": make_line(alarm.message), "GPU": alarm.index, "GPU_UUID": alarm.uuid,
            "VALUE": alarm.value, "LIMIT": alarm.limit,
        }  # fmt: skip
        env = {f"MODELPIPES_{key}": "" if value is None else str(value) for key, value in told.items()}
        try:
            child = Child(["sh", "-c", self._command_line], name="--exec-on-alert", env={**os.environ, **env})
        except ProgramError as error:
            self._say(str(error))
            return
        self._running.append((child, Deadline.after(EXEC_LIMIT_S)))

    def collect(self) -> None:
        """Be done with those that have ended, or have had their time."""
        for child, limit in list(self._running):
            code = child.exit_code()
            if code is None and not limit.has_passed():
                continue
            self._running.remove((child, limit))
            child.stop()
            for line in child.last_lines():
                self._say(f"{child.name}: {line}")
            if code is None:
                self._say(f"{child.name}: not done after {format_seconds(EXEC_LIMIT_S)}, ended")
            elif code:
                self._say(f"{child.name}: ended with {code}")

    def finish(self) -> None:
        """Wait for all of them."""
        for child, limit in list(self._running):
            with contextlib.suppress(DeadlineError):
                child.wait(limit)
        self.collect()

    def __enter__(self) -> Reactions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child, _ in self._running:
            child.stop()
