"""ask-model: send one message, print the answer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from modelpipes.commands.cli import options, reading, values
from modelpipes.commands.views.answer import Printer
from modelpipes.errors import PeerFailed, UsageError
from modelpipes.pipe.asker import Asker, require_pipes
from modelpipes.pipe.log import Log
from modelpipes.pipe.message import Say, new_id
from modelpipes.pipe.room import HUB, PipePair, Room, check_seat
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.chat.transcript import Transcript


@click.command(context_settings=options.settings)
@click.argument("words", metavar="TO [TEXT…|-]", nargs=-1, type=values.ASKED)
@click.option("--from", "sender", metavar="SEAT", type=values.SENDER, default=HUB, show_default=True,
              help="The seat that asks.")  # fmt: skip
@options.directory
@options.option("--timeout", key="ask-model.timeout", type=options.SECONDS, envvar="PIPE_TIMEOUT", default="30",
                show_default=True, help="Longest silence of the member, or none.")  # fmt: skip
@options.option("--max-seconds", key="ask-model.max_seconds", type=options.SECONDS, default="none", show_default=True,
                help="Longest time in all.")  # fmt: skip
@options.as_json
@click.option("--whole", is_flag=True, help="Print the answer when it is whole.")
@click.option("--each-line", is_flag=True, help="Each line of stdin is a message.")
@click.option("--transcript", metavar="FILE", type=values.TRANSCRIPT,
              help="Continue the conversation in this file, made if new.")  # fmt: skip
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts, on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Times and rates, on stderr.")
@options.logged
@click.option("--to-pipe", metavar="PATH", type=values.FILE, help="The FIFO to write to, instead of TO.")
@click.option("--from-pipe", metavar="PATH", type=values.FILE, help="The FIFO to read from.")
@options.common
def command(
    words: tuple[str, ...], sender: str, directory: str | None, timeout: float, max_seconds: float, as_json: bool,
    whole: bool, each_line: bool, transcript: str | None, show_thinking: bool, verbose: bool, to_pipe: str | None,
    from_pipe: str | None, log: str | None, log_content: bool,
) -> int:  # fmt: skip
    """Send a message to a seat and print its answer as it comes.

    The message is TEXT, or stdin where there is none or `-`. Stands alone, unless --transcript.

    \b
    Examples:
      ask-model bob "What is 3 and 4?"
      git diff | ask-model bob --max-seconds 2m
      ask-model bob --transcript talk.jsonl "And the day after?"
      ask-model bob --each-line --json < questions.txt
    """
    room, sender, to, words = _where(words, sender, directory, to_pipe, from_pipe)
    limit = Deadline.after(options.bounded(max_seconds))
    done = Log(log, with_content=log_content)
    printer = Printer(as_json=as_json, whole=whole, show_thinking=show_thinking, verbose=verbose)
    code = 0
    with contextlib.ExitStack() as stack:
        talk: Transcript | None = None
        for message in reading.read_messages(words, limit, each_line=each_line):
            try:
                with Asker(room, sender, to, silence_s=options.bounded(timeout), limit=limit, log=done) as asker:
                    if transcript:  # opened when it is our turn to ask: who asks beside us may hold it until then
                        from modelpipes.chat.telling import ask_next, resume

                        if talk is None:
                            talk = stack.enter_context(resume(transcript, asker))
                            if talk.warning:
                                output.say(f"ask-model: {talk.warning}")
                        ask_next(talk, asker, message, printer.print)
                    else:
                        printer.print(asker.ask(Say(new_id(), sender, to, message)))
            except PeerFailed as failed:
                if not each_line:
                    raise
                printer.fail(failed)
                code = failed.exit_code
    return code


def _where(
    words: tuple[str, ...], sender: str, directory: str | None, to_pipe: str | None, from_pipe: str | None
) -> tuple[Room, str, str, tuple[str, ...]]:
    """The room, who asks whom, and the words that are left: from the arguments, or from FIFOs named directly."""
    if to_pipe and from_pipe:
        pair = PipePair(to_pipe, from_pipe)
        return pair, pair.sender, pair.receiver, words
    if to_pipe or from_pipe:
        raise UsageError("--to-pipe and --from-pipe go together")
    if not words:
        raise UsageError("name the seat to ask: ask-model bob Hello")
    to, words = check_seat(words[0]), words[1:]
    exported = None if directory else PipePair.exported(to)
    if exported and exported.sender == sender:
        return exported, exported.sender, exported.receiver, words
    room = Room.open(directory)
    require_pipes(room, sender, to)
    return room, sender, to, words
