"""What an installed package has in share/: manual pages, and completion for the shells that look there."""

from __future__ import annotations

import os

from modelpipes.commands import VERBS
from modelpipes.commands.cli import completion, manpage


def files() -> dict[str, str]:
    """The text of each file, by its path in share/."""
    commands = ["modelpipes", *(command for command, _ in VERBS.values() if command)]
    made = {f"man/man1/{name}.1": page for name, page in manpage.pages().items()}
    made["zsh/site-functions/_modelpipes"] = completion.script("zsh")
    for name in commands:  # bash and fish look for the name of the command that is completed
        made[f"bash-completion/completions/{name}"] = completion.script("bash")
        made[f"fish/vendor_completions.d/{name}.fish"] = completion.script("fish")
    return made


def write(folder: str) -> None:
    """Write all of them below a folder; what builds a wheel calls this."""
    for path, text in files().items():
        full = os.path.join(folder, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(text)
