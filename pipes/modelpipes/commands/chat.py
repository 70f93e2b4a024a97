"""chat-models: lead a conversation; one command does set-up, seats, talk and clean-up."""

from __future__ import annotations

import contextlib
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import click

from modelpipes import output
from modelpipes.chat.conversation import Conversation, Stopped
from modelpipes.chat.member import Member
from modelpipes.chat.seating import Seating
from modelpipes.chat.transcript import VERSION, Header, Transcript, Turn
from modelpipes.chat.turns import Random, RoundRobin, StopRules
from modelpipes.chat.voices.terminal import TerminalVoice
from modelpipes.cleanup import clean_up
from modelpipes.commands import attach, options
from modelpipes.deadline import Deadline
from modelpipes.errors import MessageError, PeerError, UsageError
from modelpipes.message import new_id
from modelpipes.room import HUB, Room, check_seat, star

ME = "me"  # the member who is the person at the terminal
SILENCE_S = 30.0
DEFAULT_ROUNDS = 10  # where nothing else would end the talk
VOICES = ("model", "server", "exec", "filter")


class _Command(click.Command):
    """Keeps the arguments as they were typed: members speak in that order, whatever option named them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["typed"] = list(args)
        return super().parse_args(ctx, args)


def _voice_arguments(command: Any) -> Any:
    for name, metavar, text in reversed(
        [
            ("model", "NAME=FILE", "Seat a model; a GGUF file, or tiny-chat."),
            ("server", "NAME=URL", "Seat a model of a running server."),
            ("exec", "NAME=COMMAND", "Seat a program, run for each message."),
            ("filter", "NAME=COMMAND", "Seat a program kept running, a line in, a line out."),
        ]
    ):
        command = click.option(f"--{name}", f"{name}_", multiple=True, metavar=metavar, help=text)(command)
    return command


@click.command(cls=_Command, context_settings=options.settings)
@click.argument("seats", metavar="[SEAT]...", nargs=-1)
@options.directory
@_voice_arguments
@options.shared_voice_options
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="Turns of each member.  [10 or unending]")
@click.option("--turns", "taking", type=click.Choice(["round-robin", "random", "moderator"]), default="round-robin",
              show_default=True, help="Who speaks next.")  # fmt: skip
@click.option("--moderator", metavar="SEAT", help="The member who is asked who speaks next.")
@click.option("--opening", metavar="TEXT|-", default="Hello.", show_default=True, help="What the hub says first.")
@click.option("--stop-word", metavar="WORD", help="End when a member says it.")
@click.option("--max-seconds", type=options.SECONDS, default="none", show_default=True, help="End after this time.")
@click.option("--timeout", type=options.SECONDS, help="Longest silence of a member, and of its voice.  [30]")
@click.option("--patience", type=click.FloatRange(0), default=30.0, show_default=True, metavar="S",
              help="Wait this long for a member that died, if somebody else seated it.")  # fmt: skip
@click.option("--retries", type=click.IntRange(0), default=2, show_default=True, help="Of a turn that failed.")
@click.option("--transcript", "path", metavar="FILE", help="Write the conversation there, as JSON Lines.")
@click.option("--resume", is_flag=True, help="Continue the transcript after its last whole turn.")
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts, on stderr.")
@options.as_json
@options.version
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Lead a conversation among seats that are taken, or seat the members and clean up afterwards.

    The member `me` is you, at this terminal.

    \b
    Examples:
      chat-models --model alice=a.gguf --model bob=b.gguf --rounds 4
      chat-models alice bob --opening "What is a pipe?" --transcript talk.jsonl
      chat-models me --model alice=tiny-chat
    """
    plan = _Plan(given, ctx.meta["typed"])
    opening = _read_opening(given["opening"])
    with contextlib.ExitStack() as stack:
        room = stack.enter_context(_the_room(plan))
        transcript = stack.enter_context(_open_transcript(plan, room))
        seating = stack.enter_context(Seating(room, patience_s=given["patience"], report=_report))
        seating.seat(plan.commands)
        if ME in plan.members:
            stack.enter_context(_the_person(room))
        watcher = _Watcher(given["as_json"], given["show_thinking"])
        conversation = Conversation(
            room,
            plan.members,
            transcript,
            watcher,
            taking=plan.taking(transcript.header),
            rules=plan.rules,
            moderator=plan.moderator,
            silence_s=options.bounded(given["timeout"] or SILENCE_S),
            limit=Deadline.after(options.bounded(given["max_seconds"])),
            retries=given["retries"],
            bring_back=lambda seat, why: _bring_back(seating, seat, why),
        )
        try:
            why = conversation.lead(opening)
        except BaseException:
            watcher.break_off()
            raise
        output.say(watcher.summary(why))


class _Plan:
    """What the options ask for: the members in order, and how each is seated; UsageError where they clash."""

    def __init__(self, given: dict[str, Any], typed: list[str]) -> None:
        self.directory: str | None = given["directory"]
        self.path: str | None = given["path"]
        self.resume: bool = given["resume"]
        voices = {kind: _pairs(kind, given[f"{kind}_"]) for kind in VOICES}
        named = [name for pairs in voices.values() for name, _ in pairs]
        seats = [check_seat(seat) for seat in given["seats"]]
        if twice := {name for name in named if named.count(name) > 1} | {s for s in seats if seats.count(s) > 1}:
            raise UsageError(f"{twice.pop()} is named twice; a member has one voice and one seat")
        named.sort(key=lambda name: _place(typed, name))
        self.members = [*seats, *(name for name in named if name not in seats)]
        if len(self.members) < 2:
            raise UsageError("a conversation needs two members: chat-models --model alice=a.gguf --model bob=b.gguf")
        self.commands = {
            name: [f"--{kind}={value}", *_options_for(name, kind, given, self.members)]
            for kind, pairs in voices.items()
            for name, value in pairs
        }
        self.commands = {name: self.commands[name] for name in self.members if name in self.commands}
        for name, arguments in self.commands.items():
            attach.command.make_context("attach-model", [name, *arguments])  # wrong usage shows before anything starts
            _check_model(dict(voices["model"]).get(name))
        self.joins = [name for name in self.members if name not in self.commands and name != ME]
        self.kind: str = given["taking"]
        self.moderator: str | None = given["moderator"]
        if (self.kind == "moderator") != (self.moderator is not None):
            raise UsageError("--turns moderator and --moderator SEAT go together")
        if self.moderator and self.moderator not in self.members:
            raise UsageError(f"--moderator {self.moderator} is no member of this conversation")
        rounds = given["rounds"]
        is_bounded = given["stop_word"] or given["max_seconds"] != float("inf") or ME in self.members
        if rounds is None and not is_bounded:
            rounds = DEFAULT_ROUNDS
        self.rules = StopRules(rounds, given["stop_word"])
        if self.resume and not self.path:
            raise UsageError("--resume needs the --transcript to continue")
        seed = next((value for value in given["seed"] if "=" not in value), "0")
        self._seed = int(seed) if seed.isdigit() else 0
        self.settings = {"turns": self.kind, "seed": self._seed, "rounds": rounds, "stop_word": given["stop_word"]}

    def taking(self, header: Header) -> RoundRobin | Random:
        """How turns are taken; the seed of a conversation that is resumed is its own."""
        if self.kind == "random":
            seed = header.settings.get("seed")
            return Random(tuple(self.members), seed if isinstance(seed, int) else self._seed)
        return RoundRobin(tuple(self.members))


def _pairs(kind: str, values: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, is_pair, rest = value.partition("=")
        if not is_pair or not rest:
            raise UsageError(f"--{kind} {value}: give it as NAME={value or 'VALUE'}")
        if name == ME:
            raise UsageError(f"'{ME}' is you at the terminal; give the model another name")
        pairs.append((check_seat(name), rest))
    return pairs


def _place(typed: list[str], name: str) -> int:
    """Where a member was first named on the command line."""
    starts = (f"{name}=", *(f"--{kind}={name}=" for kind in VOICES))
    return next((i for i, word in enumerate(typed) if word.startswith(starts)), len(typed))


def _options_for(name: str, kind: str, given: dict[str, Any], members: list[str]) -> Iterator[str]:
    """The member's own options as attach-model takes them: NAME=VALUE for it, VALUE for all that can use it."""
    if given["timeout"]:
        yield f"--timeout={given['timeout'] if given['timeout'] != float('inf') else 'none'}"
    for option in options.VOICE:
        common, own = [], []
        for value in given[option.replace("-", "_")]:
            to, is_pair, rest = value.partition("=")
            if is_pair and to in members:
                own += [rest] if to == name else []
            else:
                common.append(value)
        values = common if _can_use(kind, option) else []
        if option == options.REPEATABLE:
            values = values + own
        elif own or values:
            values = (own or values)[-1:]
        yield from (f"--{option}={value}" for value in values)


def _can_use(kind: str, option: str) -> bool:
    if kind in ("exec", "filter"):
        return kind == "exec" and option in attach.FOR_PROGRAMS
    return option not in (attach.FOR_ENGINES if kind == "server" else attach.FOR_SERVERS)


def _check_model(file: str | None) -> None:
    if file is not None:
        from modelpipes.engine.locate import find_model

        find_model(file)


def _read_opening(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as e:
        raise MessageError(f"stdin is not UTF-8 text: byte {e.start} cannot be read") from None


@contextlib.contextmanager
def _the_room(plan: _Plan) -> Iterator[Room]:
    """The room that is there, or a fresh one; what we make in it goes at the end."""
    is_fresh = plan.directory is None and not plan.joins
    room = Room.make_fresh() if is_fresh else Room.make(plan.directory) if plan.commands else Room.open(plan.directory)
    wanted = star(HUB, [name for name in plan.members if name not in plan.joins])
    made = [pair for pair in wanted if pair not in room.pipes()]
    try:
        for seat in plan.joins:
            room.require(seat)
        room.make_pipes(made)
        yield room
    finally:
        clean_up(room, made, force=True)


def _open_transcript(plan: _Plan, room: Room) -> Transcript:
    voices = {seat: room.sitting(seat).voice for seat in plan.joins}
    voices |= {seat: arguments[0].lstrip("-").replace("=", " ", 1) for seat, arguments in plan.commands.items()}
    voices |= {ME: TerminalVoice.kind} if ME in plan.members else {}
    header = Header(VERSION, new_id(), tuple(plan.members), voices, plan.settings)
    if plan.path is None:
        return Transcript.unwritten(header)
    return (Transcript.resume if plan.resume else Transcript.create)(plan.path, header)


@contextlib.contextmanager
def _the_person(room: Room) -> Iterator[None]:
    """The person at this terminal, seated in a thread: it must stay in the foreground group."""
    member: Member | None = None
    member = Member(room, ME, TerminalVoice(ME, leave=lambda: member.stop(0) if member else None))
    thread = threading.Thread(target=member.run, daemon=True)
    thread.start()
    try:
        room.wait_for([ME], Deadline.after(5))
        yield
    finally:
        member.stop(0)
        thread.join(2)


def _bring_back(seating: Seating, seat: str, why: PeerError) -> None:
    if seat == ME:
        raise Stopped(f"{ME} left")
    seating.bring_back(seat, why)


def _report(line: str) -> None:
    output.say(f"chat-models: {line}")


class _Watcher:
    """Prints the conversation as it happens, and sums it up."""

    def __init__(self, as_json: bool, show_thinking: bool) -> None:
        self._as_json = as_json
        self._show_thinking = show_thinking
        self._speech: output.Speech | None = None
        self._turn = -1
        self._turns: list[Turn] = []

    def starts(self, speaker: str, turn: int) -> None:
        if self._speech and self._turn == turn:
            self._speech.void()
            return
        self._turn = turn
        self._speech = output.Speech(f"{speaker}: ", show_thinking=self._show_thinking)

    def says(self, content: str, thinking: str) -> None:
        if self._speech and not self._as_json:
            self._speech.say(content, thinking)

    def ends(self, turn: Turn) -> None:
        self._turns.append(turn)
        if self._as_json:
            output.write_json(turn)
            return
        speech = self._speech or output.Speech(f"{turn.sender}: ")
        speech.end(turn.content)
        self._speech = None

    def break_off(self) -> None:
        """The turn that is being spoken will not end: end its line."""
        if self._speech and not self._as_json:
            self._speech.void()

    def summary(self, why: str) -> str:
        """Turns, tokens, times, and why it stopped, in one line."""
        if not self._turns:
            return f"nothing was left to say; ended by: {why}"
        timings = [turn.timing for turn in self._turns if turn.timing and turn.sender != ME]
        parts = [f"{len(timings)} turns"]
        if tokens := sum(turn.usage.completion_tokens for turn in self._turns if turn.usage):
            parts.append(f"{tokens} tokens")
        if first := [t.first_token_ms for t in timings if t.first_token_ms is not None]:
            parts.append(f"first token {statistics.median(first):.0f} ms (median)")
        total_s = sum(t.total_ms for t in timings) / 1000
        return f"{', '.join(parts)}, {total_s:.1f} s in all; ended by: {why}"
