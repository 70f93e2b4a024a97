"""Untrusted text as Markdown (CommonMark, and what GitHub adds to it) that says it and does nothing else. Pure."""

from __future__ import annotations

import re

MARKS = r"[\\`*{}\[\]#|~$]"


def escape_markdown(line: str) -> str:
    """A safe line as Markdown that says it and does nothing else."""
    text = line.strip(" ")
    indent = len(line.rstrip(" ")) - len(text)
    text = _escape(text, rf"{MARKS}|_")
    text = re.sub(r"^(\d+)([.)])", r"\1\\\2", text)  # a numbered list
    text = re.sub(r"^([-+=:])", r"\\\1", text)  # a list, a rule, an underlined heading, a table's second row
    return "&nbsp;" * indent + text if text else ""


def escape_cell(text: str) -> str:
    """A safe line as a cell of a table, where no block begins; Q4_K_M stays as people write it."""
    return _escape(text.strip(" "), rf"{MARKS}|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def _escape(text: str, marks: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(marks, r"\\\g<0>", text)
    return re.sub(r"(?i)(?::(?=//)|(?<=www)\.)", r"\\\g<0>", text)  # GitHub makes links of bare addresses
