"""A transcript's contents as Markdown, in which what was said is quoted as it was said. Pure.

It stands in fences, out of which nothing breaks: a heading, a list or HTML of a model's is text there, and its code
can be copied as it is.
"""

from __future__ import annotations

import re

from modelpipes.chat.contents import Contents
from modelpipes.chat.rendering.facts import (
    Spent,
    as_line,
    chosen_in,
    describe,
    draw_bar,
    facts_of,
    in_order,
    longest_ms,
    writes_markdown,
)
from modelpipes.terminal.markdown import escape_markdown
from modelpipes.terminal.safetext import make_lines

LEAST_TICKS = 3  # of a fence


def to_markdown(contents: Contents, *, show_thinking: bool = False) -> str:
    """Markdown (CommonMark, and what GitHub adds to it), in which what was said is quoted and nothing else."""
    whole_ms, choices = longest_ms(contents), chosen_in(contents)
    title, *about = describe(contents)
    parts = [f"# {escape_markdown(title)}"]
    if about:
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in about))
    for turn, ended in in_order(contents):
        if ended:
            parts.append(f"*ended by: {escape_markdown(as_line(ended.why)).strip() or 'nothing'}*")
        if not turn:
            continue
        parts.append(f"## {turn.turn} {escape_markdown(as_line(turn.sender))}")
        if facts := facts_of(turn, choices.get(turn.turn)):
            parts.append(escape_markdown(", ".join(facts)))
        language = "markdown" if writes_markdown(contents, turn.sender) else "text"
        if show_thinking and turn.thinking:
            parts.append(f"*thoughts*\n\n{_fenced(turn.thinking, language)}")
        parts.append(_fenced(turn.content, language))
        if turn.timing:
            spent = Spent.of(turn.timing)
            bar = f"`{bar}` " if (bar := draw_bar(spent, whole_ms)) else ""
            parts.append(f"{bar}{', '.join(spent.captions)}")
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _fenced(text: str, language: str) -> str:
    """Untrusted text in a fence that is longer than any in it."""
    safe = "\n".join(make_lines(text))
    longest = max((len(ticks) for ticks in re.findall("`+", safe)), default=0)
    fence = "`" * max(LEAST_TICKS, longest + 1)
    return f"{fence}{language}\n{safe}\n{fence}"
