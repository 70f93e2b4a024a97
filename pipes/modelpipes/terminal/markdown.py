"""Untrusted text as Markdown (CommonMark, and what GitHub adds to it) that says it and does nothing else. Pure."""

from __future__ import annotations

import re

from modelpipes.terminal.safetext import make_lines


def markdown_of(text: str) -> str:
    """Untrusted text as Markdown of nothing but text, its lines and paragraphs kept."""
    lines = [escape_markdown(line) for line in make_lines(text)]
    # A backslash before a newline is a line break; at the end of a paragraph it would be a backslash.
    followers = [*lines[1:], ""]
    return "\n".join(f"{line}\\" if line and after else line for line, after in zip(lines, followers, strict=True))


def escape_markdown(line: str) -> str:
    """A safe line as Markdown that says it and does nothing else."""
    text = line.strip(" ")
    indent = len(line.rstrip(" ")) - len(text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])", r"\1\\\2", text)  # a numbered list
    text = re.sub(r"^([-+=:])", r"\\\1", text)  # a list, a rule, an underlined heading, a table's second row
    text = re.sub(r"(?i)(?::(?=//)|(?<=www)\.)", r"\\\g<0>", text)  # GitHub makes links of bare addresses
    return "&nbsp;" * indent + text if text else ""
