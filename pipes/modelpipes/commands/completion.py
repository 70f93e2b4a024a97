"""completion: a shell script that completes every command."""

from __future__ import annotations

import os

import click

from modelpipes.commands.cli import completion, options
from modelpipes.errors import UsageError
from modelpipes.terminal import output


@click.command(context_settings=options.settings)
@click.argument("shell", type=click.Choice(list(completion.SHELLS)), metavar="[bash|zsh|fish]", required=False)
@options.lenient
def command(shell: str | None) -> None:
    """Print a script that lets a shell complete all commands, also under their own names.

    Without an argument, for the shell that $SHELL names. To have it always:

    \b
    bash  the first example's line in ~/.bashrc
    zsh   in a file _modelpipes in a folder of $fpath, or as bash: in ~/.zshrc,
          below compinit
    fish  in ~/.config/fish/conf.d/modelpipes.fish

    What pip installs has such files in share/, for shells that look there.

    \b
    Examples:
      eval "$(modelpipes completion bash)"
      modelpipes completion zsh > ~/.zfunc/_modelpipes
      modelpipes completion fish > ~/.config/fish/conf.d/modelpipes.fish
    """
    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in completion.SHELLS:
        raise UsageError(f"$SHELL names no shell that can be served: give one of {', '.join(completion.SHELLS)}")
    output.write_text(completion.script(shell))
