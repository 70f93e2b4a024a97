"""`modelpipes` without a verb: what there is."""

from __future__ import annotations

import click

from modelpipes.commands import VERBS
from modelpipes.errors import UsageError
from modelpipes.terminal import output
from modelpipes.values.version import __version__

VERB_LINES = "\n".join(f"  {verb:<13}{command:<14}{text}" for verb, (command, text) in VERBS.items())
OVERVIEW = f"""\
Usage: modelpipes VERB [OPTIONS] …

Models that talk to each other, and to any Unix program, through named pipes.
Verbs with a second name are also commands of that name:

{VERB_LINES}

modelpipes VERB --help tells more, with examples.
"""


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1)
def command(words: tuple[str, ...]) -> None:
    """Tell what there is, or the version."""
    if words[:1] in (("-V",), ("--version",)):
        output.write_text(f"modelpipes {__version__}\n")
    elif not words or words[0] in ("-h", "--help"):
        output.write_text(OVERVIEW)
    else:
        raise UsageError(f"no command '{words[0]}'; there are {', '.join(VERBS)} (see modelpipes --help)")
