"""What members are told, for a person to read, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET

from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_lines

if TYPE_CHECKING:
    from modelpipes.chat.preview import Prompt

INDENT = "    "


def write(prompts: Sequence[Prompt], *, as_json: bool) -> None:
    """Write to stdout what members are given: each message under its role, or an object a line."""
    if as_json:
        for prompt in prompts:
            output.write_json(prompt)
        return
    output.write_text("\n".join(map(_as_text, prompts)))


def _as_text(prompt: Prompt) -> str:
    lines = [f"turn {prompt.turn}, {prompt.member}"]
    if prompt.messages is not UNSET:
        for message in prompt.messages:
            lines += [f"  {message['role']}", *(f"{INDENT}{line}" for line in make_lines(message["content"]))]
    elif prompt.words:
        lines += [f"{INDENT}{line}" for line in make_lines(str(prompt.words))]
    return "".join(f"{line.rstrip()}\n" for line in lines)
