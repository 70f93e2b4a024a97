from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.machine.alarms import Alarm, Alarms
from modelpipes.machine.watch import Gpu


def card(percent: float | None = 10, celsius: int | None = 40) -> Gpu:
    return Gpu(index=0, uuid="GPU-a", name="RTX", memory_used_percent=percent, temperature_celsius=celsius)


def test_an_alarm_begins_once_lasts_while_the_figure_flutters_and_is_over_once() -> None:
    alarms = Alarms(95, 85)
    percents = [94.9, 95.0, 94.0, 96.0, 93.0, 92.9, 94.9]
    seen = []
    for percent in percents:
        on, begun, over = alarms.judge([card(percent)])
        seen.append((len(on), len(begun), len(over)))
    assert seen == [(0, 0, 0), (1, 1, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0)]


def test_an_alarm_tells_which_gpu_what_is_too_much_and_the_limit() -> None:
    on, begun, _ = Alarms(95, 85).judge([card(99.5, 90)])
    assert on == begun == [
        Alarm(0, "GPU-a", "vram", 99.5, 95, "GPU 0 (RTX): 99.5% of its memory used (--alert-vram 95)"),
        Alarm(0, "GPU-a", "temperature", 90, 85, "GPU 0 (RTX): 90 °C hot (--alert-temp 85)"),
    ]  # fmt: skip


def test_a_figure_that_is_absent_is_no_alarm_and_ends_none_aloud() -> None:
    alarms = Alarms(0, 0)
    assert len(alarms.judge([card()])[0]) == 2
    assert alarms.judge([card(None, None)]) == ([], [], [])


def test_a_gpu_that_is_gone_is_an_alarm_and_its_return_is_said() -> None:
    alarms = Alarms(95, 85)
    gone = Gpu(index=0, uuid="GPU-a", is_present=False, problem="GPU is lost")
    alarms.judge([card(99)])
    [on], [begun], over = alarms.judge([gone])
    assert (on.kind, on.message, begun, over) == ("lost", "GPU 0 is gone: GPU is lost", on, [])
    assert alarms.judge([card()]) == ([], [], ["GPU 0 (RTX) is back"])


def test_a_limit_of_infinity_alarms_nobody() -> None:
    assert Alarms(float("inf"), float("inf")).judge([card(100, 200)])[0] == []


@given(st.lists(st.none() | st.floats(0, 100)), st.floats(0, 100))
def test_alarms_begin_and_end_in_turn(percents: list[float | None], limit: float) -> None:
    alarms = Alarms(limit, 1000)
    was_on = False
    for percent in percents:
        on, begun, over = alarms.judge([card(percent)])
        assert bool(begun) == (bool(on) and not was_on)
        assert not (over and on)
        assert bool(over) <= was_on
        was_on = bool(on)
