"""A transcript's contents as text for a terminal. Pure.

A turn's words stand indented, so that none can pass for a heading.
"""

from __future__ import annotations

from modelpipes.chat.contents import Contents
from modelpipes.chat.rendering.facts import (
    MARKS,
    PHASES,
    Spent,
    as_line,
    chosen_in,
    describe,
    draw_bar,
    facts_of,
    format_ms,
    in_order,
    longest_ms,
)
from modelpipes.terminal.safetext import make_lines
from modelpipes.terminal.width import INDENT, fit

_THOUGHTS = "  | "


def to_text(contents: Contents, columns: int | None = None, *, show_thinking: bool = False) -> str:
    """Text for a terminal so many columns wide; None: as wide as it is."""
    whole_ms, choices = longest_ms(contents), chosen_in(contents)
    lines = [("", line) for line in describe(contents)]
    if whole_ms:
        key = "  ".join(f"{mark} {name}" for mark, name in zip(MARKS, PHASES, strict=True))
        lines.append(("", f"{key}  (a whole bar: {format_ms(whole_ms)})"))
    for turn, ended in in_order(contents):
        lines.append(("", ""))
        if ended:
            lines.append(("", f"ended by: {as_line(ended.why)}"))
        if not turn:
            continue
        lines.append(("", ", ".join([f"{turn.turn} {as_line(turn.sender)}", *facts_of(turn, choices.get(turn.turn))])))
        if show_thinking and turn.thinking:
            lines += ((_THOUGHTS, line) for line in make_lines(turn.thinking))
        lines += ((INDENT, line) for line in make_lines(turn.content))
        if turn.timing:
            spent = Spent.of(turn.timing)
            lines.append(("", f"{draw_bar(spent, whole_ms)} {', '.join(spent.captions)}".lstrip()))
    return "".join(fit(lines, columns))
