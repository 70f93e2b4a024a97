"""ask-model: send one message, print the answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelpipes.commands.cli import options, reading, values
from modelpipes.commands.cli.sampling import sampling_of, sampling_options
from modelpipes.commands.views.answer import Printer
from modelpipes.errors import MessageError, PeerFailed, UsageError
from modelpipes.pipe.asker import Asker, require_pipes
from modelpipes.pipe.log import Log
from modelpipes.pipe.message import Reply, Sampling, Say, new_id
from modelpipes.pipe.room import HUB, PipePair, Room, check_seat
from modelpipes.pipe.sidebyside import MOST, Outcome, SideBySide, Unfit, ask_each, in_order
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
@click.option("--each-line", is_flag=True, help="Each line of stdin is a message, asked as it comes; a line for each.")
@click.option("--parallel", metavar="N", type=click.IntRange(1, MOST), help="Ask so many lines at a time.  [1]")
@click.option("--as-they-come", is_flag=True, help="Print whichever line is answered first.")
@click.option("--transcript", metavar="FILE", type=values.TRANSCRIPT,
              help="Continue the conversation in this file, made if new.")  # fmt: skip
@sampling_options
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts, on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Times and rates, on stderr.")
@options.logged
@click.option("--to-pipe", metavar="PATH", type=values.FILE, help="The FIFO to write to, instead of TO.")
@click.option("--from-pipe", metavar="PATH", type=values.FILE, help="The FIFO to read from.")
@options.common
@click.pass_context
def command(
    ctx: click.Context, /, words: tuple[str, ...], sender: str, directory: str | None, to_pipe: str | None,
    from_pipe: str | None, **given: Any,
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
    _check(words, given)
    sampling = sampling_of(given)
    limit = Deadline.after(options.bounded(given["max_seconds"]))
    printer = Printer(**{name: given[name] for name in ("as_json", "whole", "show_thinking", "verbose")})

    log = Log(given["log"], with_content=given["log_content"])

    def open_asker() -> SideBySide:
        return SideBySide(room, sender, to, silence_s=options.bounded(given["timeout"]), limit=limit, log=log)

    def say(message: str) -> Say:
        return Say(new_id(), sender, to, message, sampling=None if sampling == Sampling() else sampling)

    if given["each_line"] and not given["transcript"]:
        outcomes = ask_each(reading.Lines(limit), open_asker, say, given["parallel"] or 1)
        return _print_lines(outcomes if given["as_they_come"] else in_order(outcomes), printer)
    if not given["transcript"]:
        message = reading.read_message(words, limit)
        with open_asker() as asker:
            printer.print(asker.ask(say(message)))
        return 0
    messages = _lines(limit) if given["each_line"] else iter([reading.read_message(words, limit)])
    return _go_on(given["transcript"], messages, open_asker, sampling, printer, each_line=given["each_line"])


def _check(words: Sequence[str], given: dict[str, Any]) -> None:
    if given["each_line"] and words and list(words) != ["-"]:
        raise UsageError("--each-line reads its messages from stdin; give no TEXT with it")
    for name in ("parallel", "as_they_come"):
        option = f"--{name.replace('_', '-')}"
        if given[name] and not given["each_line"]:
            raise UsageError(f"{option} goes with --each-line")
        if given[name] and given["transcript"]:
            raise UsageError(f"{option}: a conversation goes on one answer after the other; leave out --transcript")


def _print_lines(outcomes: Iterable[Outcome], printer: Printer) -> int:
    """Print what came of each line; the exit code: that of the last one that failed."""
    code = 0
    for outcome in outcomes:
        printer.print_line(outcome)
        if isinstance(outcome.answer, PeerFailed):
            code = outcome.answer.exit_code
    return code


def _lines(limit: Deadline) -> Iterator[str | Unfit]:
    lines = reading.Lines(limit)
    while not lines.is_over:
        yield from lines.take(waits=True)


def _go_on(
    path: str,
    messages: Iterable[str | Unfit],
    open_asker: Callable[[], Asker],
    sampling: Sampling,
    printer: Printer,
    *,
    each_line: bool,
) -> int:
    """Ask as the next turns of the conversation in a file."""
    from modelpipes.chat.telling import ask_next, resume

    with contextlib.ExitStack() as stack:
        talk: Transcript | None = None

        def answered(line: int, message: str | Unfit) -> Outcome:
            nonlocal talk
            if isinstance(message, Unfit):
                return Outcome(line, message.shown, PeerFailed(message.why, message.reason))
            if not message.strip():
                return Outcome(line, message)
            began_s = time.perf_counter()
            try:
                with open_asker() as asker:  # the file is opened when it is our turn: who asks beside us may hold it
                    if talk is None:
                        talk = stack.enter_context(resume(path, asker))
                        if talk.warning:
                            output.say(f"ask-model: {talk.warning}")
                    hear = Printer.hear if each_line else printer.print
                    answer: Reply | PeerFailed = ask_next(talk, asker, message, hear, sampling)
            except (PeerFailed, MessageError) as failed:
                if not each_line:
                    raise
                answer = failed if isinstance(failed, PeerFailed) else PeerFailed(str(failed), "too-large")
            return Outcome(line, message, answer, round((time.perf_counter() - began_s) * 1000, 3))

        outcomes = (answered(line, message) for line, message in enumerate(messages, 1))
        if each_line:
            return _print_lines(outcomes, printer)
        for _ in outcomes:
            pass
        return 0


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
