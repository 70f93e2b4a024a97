"""The commands: each file parses, makes one call, and lets the edge here map the error to an exit code."""

from __future__ import annotations

import gc
import importlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from modelpipes.commands.cli.signals import ended_by_signals, is_at_terminal
from modelpipes.errors import Ended, PipesError

if TYPE_CHECKING:
    import click

# verb: (command, or "" where the verb is the only way, what it does)
VERBS = {
    "setup": ("setup-pipes", "Make a room's FIFOs."),
    "cleanup": ("cleanup-pipes", "Remove a room's FIFOs, and nothing else."),
    "attach": ("attach-model", "Take a seat with a model, or any program."),
    "seats": ("list-seats", "Who sits where, doing what; wait for them."),
    "ask": ("ask-model", "Send one message, print the answer."),
    "chat": ("chat-models", "Lead a conversation: set-up, seats, talk, clean-up."),
    "ping": ("ping-pipes", "Measure round trips and throughput."),
    "find": ("find-gguf", "Find model files, read headers, rate the fit."),
    "fit": ("fit-models", "Plan which models share a card, and how."),
    "serve": ("serve-models", "Own the engines, swap them by memory; a gateway."),
    "gpu": ("watch-gpu", "GPU figures and alarms."),
    "check": ("check-system", "What is here, what is missing, what to do."),
    "hold": ("", "Take a seat for a program that opens the pipes."),
    "run": ("", "One model: one prompt, or a talk with you."),
    "show": ("", "Show a transcript: text, Markdown, HTML or JSON."),
    "config": ("", "What is configured, and where; an example."),
    "build-engine": ("", "Compile llama.cpp for this machine."),
    "schema": ("", "JSON Schemas of messages, files and reports."),
    "completion": ("", "Let bash, zsh or fish complete all commands."),
    "man": ("", "Print a manual page."),
}
COMPLETION = "_MODELPIPES_COMPLETE"  # the variable by which a shell asks what may be typed next


def main() -> None:
    """Run the command by whose name we were called: `ask-model …`, or `modelpipes ask …`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules load there is nothing to clean up
    _hold_standard_descriptors()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns how a child ended
    name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
    verb = next((verb for verb, (command, _) in VERBS.items() if command == name), None)
    if os.environ.get(COMPLETION):
        from modelpipes.commands.cli import completion

        sys.exit(completion.answer(verb, name))
    if verb is None:
        name = "modelpipes"
        verbs = {command: verb for verb, (command, _) in VERBS.items()} | {verb: verb for verb in VERBS}
        if args and args[0] in verbs:  # also by its command's name: modelpipes ask-model
            verb, args = verbs[args[0]], args[1:]
            name = f"modelpipes {verb}"
    sys.exit(run_verb(verb, args, name))


def load(verb: str) -> click.Command:
    """The command of a verb."""
    command: click.Command = importlib.import_module(f"modelpipes.commands.{verb.replace('-', '_')}").command
    return command


def run_verb(verb: str | None, args: list[str], name: str) -> int:
    """Run one command; its exit code. The one place where errors become exit codes."""
    try:
        import click

        from modelpipes.terminal import output

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # as output writes, whatever the locale
        command = load(verb or "overview")
        gc.freeze()  # what is loaded by now stays to the end: `__main__` has the search for garbage off until here
        gc.enable()
        with ended_by_signals():
            try:
                # Not command.main(), which makes 1 of a closed stdout.
                with command.make_context(name, args) as context:
                    code = command.invoke(context)
            except click.exceptions.Exit as e:
                code = e.exit_code
            if sys.stdout:  # help is click's to write, which leaves it to the interpreter's end
                sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except Ended as e:
        if e.exit_code == 128 + signal.SIGINT and is_at_terminal():
            # A shell's loop goes on after a child that exits, and stops after one that dies of the signal.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return e.exit_code
    except BrokenPipeError:
        _abandon_stdout()
        return 0
    except PipesError as e:
        output.say(f"{name}: {e}")
        return e.exit_code
    except OSError as e:  # the machine's own limits: no descriptors left, a full disk under stdout
        output.say(f"{name}: {e.strerror or e}{f': {e.filename}' if e.filename else ''}")
        _abandon_stdout()
        return 1
    except click.ClickException as e:
        from modelpipes.commands.cli.configured import origin

        output.say(f"{name}: {e.format_message()} ({origin(e) or f'see {name} --help'})")
        return 2


def _abandon_stdout() -> None:
    """What could not be written is not tried again at the interpreter's end, which would say so in its own words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _hold_standard_descriptors() -> None:
    """Where one of them is closed, hold its number: else the next file opened is what we write our text into."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, which is this one. It reads as empty, and to write there fails as before.
            os.open(os.devnull, os.O_RDONLY)
