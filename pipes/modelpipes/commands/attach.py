"""attach-model: take a seat with a model, or any program, and answer."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import Any

import click

from modelpipes.commands.cli import options, values, voices
from modelpipes.commands.cli.signals import ENDING_SIGNALS
from modelpipes.errors import Ended
from modelpipes.pipe.log import Log
from modelpipes.pipe.room import Room, check_seat

SIGNALLED = 128  # and the signal's number, as a shell counts


@click.command(context_settings=options.settings)
@click.argument("seat", type=values.SEAT)
@click.option("-m", "--model", metavar="FILE", type=values.MODEL,
              help="A GGUF file, or tiny-chat; starts an engine for it.")  # fmt: skip
@click.option("--server", metavar="URL", help="A running llama-server, LM Studio, Ollama …; with or without /v1.")
@click.option("--exec", "exec_", metavar="COMMAND", help="A program run for each message: stdin to stdout.")
@click.option("--filter", "filter_", metavar="COMMAND", help="One program kept running: a line in, a line out.")
@click.option("--json", "in_json", is_flag=True, help="Of --filter: messages as lines of JSON, both ways.")
@options.directory
@voices.voice_options
@options.option(
    "--timeout",
    key="voice.timeout",
    type=options.SECONDS,
    default="120",
    show_default=True,
    help="Longest silence of the voice.",
)
@click.option("--once", is_flag=True, help="Answer one message, then leave.")
@options.logged
@click.option("-v", "--verbose", is_flag=True, help="The lines of --log, on stderr.")
@click.option("--engine-log", metavar="FILE", type=values.FILE, help="Append what the engine or program writes.")
@options.no_fit_check
@options.common
@click.pass_context
def command(ctx: click.Context, /, seat: str, directory: str | None, once: bool, log: str | None, log_content: bool,
            verbose: bool, **_: Any) -> int:  # fmt: skip
    """Take a seat and answer what comes on the pipes that lead to it.

    \b
    Examples:
      attach-model alice --model tiny-chat --system "You are alice."
      attach-model bob --server http://127.0.0.1:8080
      attach-model upper --filter "stdbuf -oL tr a-z A-Z"
    """
    voice = voices.make_voice(check_seat(seat), voices.read_options(ctx))
    room = Room.open(directory)
    room.require(seat)
    from modelpipes.chat.member import Member
    from modelpipes.commands.views.loading import show_arriving
    from modelpipes.terminal.waiting import Waiting

    line = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    waiting = Waiting()
    done = Log(log, echo=waiting.say if verbose else None, with_content=log_content)
    member = Member(
        room, seat, voice, command=line, once=once, report=waiting.say, show=show_arriving(waiting), log=done
    )
    for signum in ENDING_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda number, _: member.stop(SIGNALLED + number))
    with waiting:  # an error is told on a line of its own
        code = member.run()
    if code > SIGNALLED:
        raise Ended(code - SIGNALLED)
    return code
