"""A line of bars, a character each, that says how a figure went. Pure."""

from __future__ import annotations

from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def sparkline(percents: Sequence[float | None], width: int) -> str:
    """The last `width` values, 0 to 100, a character each; a blank where there was none. Pure."""
    shown = percents[-width:] if width > 0 else ()
    top = len(BARS) - 1
    return "".join(" " if each is None else BARS[min(max(int(each * len(BARS) / 100), 0), top)] for each in shown)
