"""What is alarming about the cards: which alarms are on, which begin, which are over. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from modelpipes.machine.watch import Gpu

AlarmKind: TypeAlias = Literal["vram", "temperature", "lost"]

CALM_BY = 2.0  # an alarm is over so many points or degrees below its limit: figures at the limit flutter


class Alarm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is too much of a GPU, or that it is gone; `value` and `limit` in percent or degrees Celsius."""

    index: int
    uuid: str | None
    kind: AlarmKind
    value: float | None
    limit: float | None
    message: str


class Alarms:
    """Which alarms are on; each begins once and is over once, however long it lasts. Pure but for its memory."""

    def __init__(self, vram_percent: float, temperature_celsius: float) -> None:
        self._limits: dict[AlarmKind, float] = {"vram": vram_percent, "temperature": temperature_celsius}
        self._on: dict[tuple[str, AlarmKind], Alarm] = {}

    def judge(self, gpus: Iterable[Gpu]) -> tuple[list[Alarm], list[Alarm], list[str]]:
        """The alarms that are on, those of them that have just begun, and a line for each that is over."""
        before, self._on = self._on, {}
        over: list[str] = []
        for each in gpus:
            if not each.is_present:
                message = f"{each.label} is gone: {each.problem}"
                self._on[each.key, "lost"] = Alarm(each.index, each.uuid, "lost", None, None, message)
                continue
            if (each.key, "lost") in before:
                over.append(f"{each.label} is back")
            for kind, (value, unit, what) in _measures(each).items():
                limit, was_on = self._limits[kind], (each.key, kind) in before
                if value is not None and value >= limit - was_on * CALM_BY:
                    message = f"{each.label}: {value:g}{unit} {what} (--alert-{OPTIONS[kind]} {limit:g})"
                    self._on[each.key, kind] = Alarm(each.index, each.uuid, kind, value, limit, message)
                elif value is not None and was_on:
                    over.append(f"{each.label}: {value:g}{unit} {what}, no alarm any more")
        return list(self._on.values()), [alarm for key, alarm in self._on.items() if key not in before], over


OPTIONS: dict[AlarmKind, str] = {"vram": "vram", "temperature": "temp"}


def _measures(each: Gpu) -> dict[AlarmKind, tuple[float | None, str, str]]:
    return {
        "vram": (each.memory_used_percent, "%", "of its memory used"),
        "temperature": (each.temperature_celsius, " °C", "hot"),
    }
