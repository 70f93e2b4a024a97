"""ask-model: send one message, print the answer."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import astuple

from modelpipes.commands.cli import options, values
from modelpipes.errors import PeerFailed, UsageError
from modelpipes.pipe.asker import Answer, Asker, require_pipes
from modelpipes.pipe.message import Delta, Reply, Say, Stop, Timing, Usage, new_id
from modelpipes.pipe.room import HUB, PipePair, Room, check_seat, seat_variable
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.chat.transcript import Transcript


@click.command(context_settings=options.settings)
@click.argument("words", metavar="TO [TEXT…|-]", nargs=-1, type=values.ASKED)
@click.option("--from", "sender", metavar="SEAT", type=values.SENDER, default=HUB, show_default=True,
              help="The seat that asks.")  # fmt: skip
@options.directory
@options.option(
    "--timeout", key="ask-model.timeout", type=options.SECONDS, envvar="PIPE_TIMEOUT", default="30", show_default=True,
    help="Longest silence of the member, or none.",
)  # fmt: skip
@options.option(
    "--max-seconds",
    key="ask-model.max_seconds",
    type=options.SECONDS,
    default="none",
    show_default=True,
    help="Longest time in all.",
)
@options.as_json
@click.option("--whole", is_flag=True, help="Print the answer when it is whole.")
@click.option("--each-line", is_flag=True, help="Each line of stdin is a message.")
@click.option("--transcript", metavar="FILE", type=values.TRANSCRIPT,
              help="Continue the conversation in this file, made if new.")  # fmt: skip
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts, on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Times and rates, on stderr.")
@click.option("--to-pipe", metavar="PATH", type=values.FILE, help="The FIFO to write to, instead of TO.")
@click.option("--from-pipe", metavar="PATH", type=values.FILE, help="The FIFO to read from.")
@options.common
def command(
    words: tuple[str, ...],
    sender: str,
    directory: str | None,
    timeout: float,
    max_seconds: float,
    as_json: bool,
    whole: bool,
    each_line: bool,
    transcript: str | None,
    show_thinking: bool,
    verbose: bool,
    to_pipe: str | None,
    from_pipe: str | None,
) -> int:
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
    printer = _Printer(as_json, whole, show_thinking, verbose)
    code = 0
    with contextlib.ExitStack() as stack:
        talk: Transcript | None = None
        for message in _messages(words, each_line, limit):
            try:
                with Asker(room, sender, to, silence_s=options.bounded(timeout), limit=limit) as asker:
                    if transcript:  # opened when it is our turn to ask: who asks beside us may hold it until then
                        talk = talk or stack.enter_context(_open_transcript(transcript, sender, to))
                        _continue(talk, asker, message, printer)
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
    if not to_pipe and not from_pipe:
        if not words:
            raise UsageError("name the seat to ask: ask-model bob Hello")
        to, words = check_seat(words[0]), words[1:]
        name = seat_variable(to)
        to_pipe, from_pipe = os.environ.get(f"PIPE_TO_{name}"), os.environ.get(f"PIPE_FROM_{name}")
        if directory or not (to_pipe and from_pipe) or PipePair(to_pipe, from_pipe).sender != sender:
            room = Room.open(directory)
            require_pipes(room, sender, to)
            return room, sender, to, words
    if not (to_pipe and from_pipe):
        raise UsageError("--to-pipe and --from-pipe go together")
    pair = PipePair(to_pipe, from_pipe)
    return pair, pair.sender, pair.receiver, words


def _messages(words: tuple[str, ...], each_line: bool, limit: Deadline) -> list[str]:
    """What to ask, from the arguments or from stdin, read whole; UsageError where it says nothing."""
    if words and words != ("-",):
        if each_line:
            raise UsageError("--each-line reads its messages from stdin; give no TEXT with it")
        text = " ".join(words)
    else:
        text = options.read_stdin(limit)
    messages = [line.removesuffix("\r") for line in text.split("\n")] if each_line else [text.removesuffix("\n")]
    messages = [message for message in messages if message.strip()]
    if not messages and not each_line:
        raise UsageError("the message is empty")
    return messages


def _open_transcript(path: str, sender: str, to: str) -> Transcript:
    from modelpipes.chat.transcript import VERSION, Header, Transcript

    return Transcript.resume(path, Header(VERSION, new_id(), (sender, to)))


def _continue(transcript: Transcript, asker: Asker, message: str, printer: _Printer) -> None:
    """Ask as the next turn of the conversation; question and answer are written when both are whole."""
    from modelpipes.chat.conversation import tell, turn_of
    from modelpipes.chat.transcript import Turn

    question = Turn(transcript.last + 1, asker.seat, message)
    number = question.turn + 1
    say = Say(new_id(), asker.seat, asker.to, conversation=transcript.header.id, turn=number)
    answers = tell(asker, say, lambda turn: [*transcript.after(turn), question], transcript.known_by(asker.to))
    reply = printer.print(answers)
    transcript.append(question, turn_of(number, reply))


class AllUsage(Usage, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """Tokens of one answer, as the engine counted them; every key is there."""


class AllTiming(Timing, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """Where the time of one answer went, as the member measured it; every key is there."""


class Answered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer as JSON says it. `thinking` is there where the model thought aloud."""

    sender: str = field(name="from")
    to: str
    content: str
    stop: Stop
    thinking: str | UnsetType = UNSET
    usage: AllUsage | None
    timing: AllTiming | None
    round_trip_ms: float

    @classmethod
    def of(cls, reply: Reply, round_trip_ms: float) -> Answered:
        return cls(
            sender=reply.sender,
            to=reply.to,
            content=reply.content,
            stop=reply.stop,
            thinking=reply.thinking or UNSET,
            usage=AllUsage(*astuple(reply.usage)) if reply.usage else None,
            timing=AllTiming(*astuple(reply.timing)) if reply.timing else None,
            round_trip_ms=round_trip_ms,
        )


class Unanswered(Struct, frozen=True, forbid_unknown_fields=True):
    """Why one message of several has no answer; `reason` is one of those of a `failure` on a pipe."""

    error: str
    reason: str


class _Printer:
    """Prints an answer as it comes, or whole, or as JSON."""

    def __init__(self, as_json: bool, whole: bool, show_thinking: bool, verbose: bool) -> None:
        self._as_json = as_json
        self._waits = whole or as_json
        self._show_thinking = show_thinking
        self._verbose = verbose

    def print(self, answers: Iterator[Answer]) -> Reply:
        """Print one answer; the reply that ended it."""
        began_s = time.perf_counter()
        text = output.Speech(show_thinking=self._show_thinking)
        reply: Reply | None = None
        for answer in answers:
            if isinstance(answer, Delta) and not self._waits:
                text.say(answer.content, answer.thinking)
            elif isinstance(answer, Reply):
                reply = answer
        assert reply, "an exchange ends in a reply or an error"
        round_trip_ms = round((time.perf_counter() - began_s) * 1000, 3)
        if self._as_json:
            output.write_json(Answered.of(reply, round_trip_ms))
        else:
            text.end(reply.content, reply.thinking)
        if self._verbose:
            output.say(_figures(reply, round_trip_ms))
        return reply

    def fail(self, failed: PeerFailed) -> None:
        """One message of several has no answer; the others go on."""
        output.say(f"ask-model: {failed}")
        if self._as_json:
            output.write_json(Unanswered(str(failed), failed.reason))


def _figures(reply: Reply, round_trip_ms: float) -> str:
    parts = [f"round trip {round_trip_ms:.1f} ms"]
    if reply.timing and reply.timing.first_token_ms is not None:
        parts.append(f"first token {reply.timing.first_token_ms:.1f} ms")
    if reply.timing and reply.timing.tokens_per_second:
        parts.append(f"{reply.timing.tokens_per_second:.0f} tokens/s")
    if reply.usage:
        parts.append(f"{reply.usage.prompt_tokens} + {reply.usage.completion_tokens} tokens")
    return ", ".join(parts)
