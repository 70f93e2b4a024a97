from __future__ import annotations

import signal

import pytest

from modelpipes import errors
from modelpipes.machine import reactions
from modelpipes.machine.alarms import Alarm


def test_a_signal_amid_the_start_of_a_command_is_not_taken_for_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise errors.Ended(signal.SIGTERM)

    monkeypatch.setattr(reactions, "Child", fail)
    with reactions.Reactions("true", print) as running, pytest.raises(errors.Ended):
        running.start(Alarm(0, None, "vram", 99, 95, "full"))
