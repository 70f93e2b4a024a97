"""man: a manual page, made of what the command says of itself."""

from __future__ import annotations

import click

from modelpipes.commands import VERBS
from modelpipes.commands.cli import manpage, options, values
from modelpipes.errors import UsageError
from modelpipes.terminal import output

NAMES = {name: verb for verb, (command, _) in VERBS.items() for name in (command, verb) if name}


@click.command(context_settings=options.settings)
@click.argument("name", metavar="[COMMAND]", required=False, type=values.Text(lambda ctx, incomplete: NAMES))
@options.lenient
def command(name: str | None) -> None:
    """Print the manual page of a command or verb; without one, of modelpipes.

    What is printed is roff, for man(1) to show. What pip installs has all pages
    in share/man, where man(1) finds them.

    \b
    Examples:
      modelpipes man ask-model | man -l -
      modelpipes man build-engine | mandoc | less
    """
    if name in (None, "modelpipes"):
        output.write_text(manpage.overview())
    elif name in NAMES:
        output.write_text(manpage.page(NAMES[name]))
    else:
        raise UsageError(f"no command '{name}'; there are {', '.join(NAMES)}")
