"""A transcript's contents as Markdown, in which what was said is text and nothing else. Pure."""

from __future__ import annotations

from modelpipes.chat.contents import Contents
from modelpipes.chat.rendering.facts import Spent, as_line, describe, draw_bar, facts_of, in_order, longest_ms
from modelpipes.terminal.markdown import escape_markdown, markdown_of


def to_markdown(contents: Contents, *, show_thinking: bool = False) -> str:
    """Markdown (CommonMark, and what GitHub adds to it), in which what was said is text and nothing else."""
    whole_ms = longest_ms(contents)
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
        if facts := facts_of(turn):
            parts.append(escape_markdown(", ".join(facts)))
        if show_thinking and turn.thinking:
            parts.append("\n".join(f"> {line}" for line in markdown_of(turn.thinking).split("\n")))
        parts.append(markdown_of(turn.content))
        if turn.timing:
            spent = Spent.of(turn.timing)
            bar = f"`{bar}` " if (bar := draw_bar(spent, whole_ms)) else ""
            parts.append(f"{bar}{', '.join(spent.captions)}")
    return "\n\n".join(part for part in parts if part.strip()) + "\n"
