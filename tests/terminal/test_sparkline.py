from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.terminal.sparkline import BARS, sparkline


def test_a_sparkline_has_a_bar_for_each_value_and_a_blank_for_none() -> None:
    assert sparkline([0, 12.4, 12.5, 50, None, 87.5, 100], 80) == "▁▁▂▅ ██"
    assert sparkline([0, 50, 100], 2) == "▅█"
    assert sparkline([0, 50, 100], 0) == ""


@given(st.lists(st.none() | st.floats(0, 100)), st.integers(-2, 20))
def test_a_sparkline_is_never_wider_than_it_may_be(percents: list[float | None], width: int) -> None:
    drawn = sparkline(percents, width)
    assert len(drawn) == min(len(percents), max(width, 0))
    assert set(drawn) <= {" ", *BARS}
