"""chat-models: lead a conversation; one command does set-up, seats, talk and clean-up."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelpipes.chat.conversation import Conversation
from modelpipes.chat.member import Member
from modelpipes.chat.seating import Seating
from modelpipes.chat.transcript import VERSION, Header, Transcript, Turn
from modelpipes.chat.turns import DEFAULT_ROUNDS, Random, RoundRobin, StopRules
from modelpipes.chat.voices.terminal import TerminalVoice
from modelpipes.commands.cli import options, values
from modelpipes.commands.cli.members import ME, InOrder, Members, read_members
from modelpipes.errors import Ended, MessageError, PipesError, UsageError
from modelpipes.pipe.asker import SILENCE_S
from modelpipes.pipe.cleanup import clean_up
from modelpipes.pipe.fifo import RETRY_S
from modelpipes.pipe.message import new_id
from modelpipes.pipe.room import HUB, Room, star
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.gateway.private import PrivateDaemon

SIT_DOWN_S = 5.0  # for the person's seat to be taken; a dying holder is waited for a part of it


def _voice_arguments(command: Any) -> Any:
    for name, kind, metavar, text in reversed(
        [
            ("model", values.MODEL, "NAME=FILE", "Seat a model; a GGUF file, or tiny-chat."),
            ("server", click.STRING, "NAME=URL", "Seat a model of a running server."),
            ("exec", click.STRING, "NAME=COMMAND", "Seat a program, run for each message."),
            ("filter", click.STRING, "NAME=COMMAND", "Seat a program kept running, a line in, a line out."),
        ]
    ):
        pair = values.Paired(kind, is_shared=False)
        command = click.option(f"--{name}", f"{name}_", type=pair, multiple=True, metavar=metavar, help=text)(command)
    return command


@click.command(cls=InOrder, context_settings=options.settings)
@click.argument("seats", metavar="[SEAT]...", nargs=-1, type=values.MEMBER)
@options.directory
@_voice_arguments
@options.shared_voice_options
@click.option("--serve", metavar="CONFIG", type=values.CONFIGURATION,
              help="Seat SEAT=NAME: models of a serve-models of its own, swapped.")  # fmt: skip
@options.option(
    "--rounds",
    key="chat-models.rounds",
    type=click.IntRange(1),
    metavar="N",
    help="Turns of each member.  [10 or unending]",
)
@click.option("--turns", "taking", type=click.Choice(["round-robin", "random", "moderator"]), default="round-robin",
              show_default=True, help="Who speaks next; random goes by --seed.")  # fmt: skip
@click.option("--moderator", metavar="SEAT", type=values.NAMED, help="The member who is asked who speaks next.")
@click.option("--opening", metavar="TEXT|-", default="Hello.", show_default=True, help="What the hub says first.")
@click.option("--stop-word", metavar="WORD", help="End when a member says it.")
@options.option("--max-seconds", key="chat-models.max_seconds", type=options.SECONDS, default="none", show_default=True,
              help="End after this time, also in mid-answer; loading does not count.")  # fmt: skip
@options.option(
    "--timeout",
    key="chat-models.timeout",
    type=options.SECONDS,
    help="Longest silence of a member, and of its voice.  [30 and 120]",
)
@options.option("--patience", key="chat-models.patience", type=options.SECONDS_OR_0, default="30", show_default=True,
              help="Wait this long for a member that died, if somebody else seated it; 0: end at once.")  # fmt: skip
@options.option(
    "--retries",
    key="chat-models.retries",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    metavar="N",
    help="New attempts at a turn that failed.",
)
@click.option(
    "--transcript", "path", metavar="FILE", type=values.TRANSCRIPT, help="Write the conversation there, as JSON Lines."
)
@click.option("--resume", is_flag=True, help="Continue the transcript after its last whole turn.")
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts, on stderr.")
@options.no_fit_check
@options.as_json
@options.common
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Lead a conversation among seats that are taken, or seat the members and clean up afterwards.

    The member `me` is you, at this terminal.

    \b
    Examples:
      chat-models --model alice=a.gguf --model bob=b.gguf --rounds 4
      chat-models alice bob --opening "What is a pipe?" --transcript talk.jsonl
      chat-models me --model alice=tiny-chat
      chat-models --serve models.toml alice=qwen bob=gemma carol=phi
    """
    with contextlib.ExitStack() as stack:
        gateway = None
        if given["serve"]:
            from modelpipes.gateway.private import serving

            _check_served(given["seats"])
            gateway = stack.enter_context(serving(given["serve"], options.configured(ctx).variables))
        is_for_voices = not options.is_from_file(ctx, "timeout")
        _lead({**given, "voice_timeout": given["timeout"] if is_for_voices else None}, ctx.meta["names"], gateway)


def _check_served(seats: Sequence[str]) -> None:
    if not any("=" in seat for seat in seats):
        raise UsageError("--serve seats its models as SEAT=NAME: chat-models --serve models.toml alice=qwen bob=gemma")


def _lead(given: dict[str, Any], names: Sequence[str], gateway: PrivateDaemon | None) -> None:
    members = read_members(given, names, gateway)
    if not given["no_fit_check"]:
        members.check_fit()
    _check_moderator(given["taking"], given["moderator"], members)
    if given["resume"] and not given["path"]:
        raise UsageError("--resume needs the --transcript to continue")
    settings = _settings(given, members)
    rules = StopRules(settings["rounds"], settings["stop_word"])
    opening = _read_opening(given["opening"], members)
    with contextlib.ExitStack() as stack:
        room = stack.enter_context(_the_room(given["directory"], members))
        transcript = stack.enter_context(_open_transcript(given["path"], given["resume"], members, settings, room))
        seating = stack.enter_context(Seating(room, patience_s=given["patience"], report=_report))
        seating.seat(members.commands)
        if ME in members.names:
            stack.enter_context(_the_person(room))
        watcher = _Watcher(given["as_json"], given["show_thinking"])
        conversation = Conversation(
            room,
            members.names,
            transcript,
            watcher,
            taking=_turn_taking(given["taking"], members, transcript.header),
            rules=rules,
            moderator=given["moderator"],
            silence_s=options.bounded(given["timeout"] or SILENCE_S),
            limit=Deadline.after(options.bounded(given["max_seconds"])),
            retries=given["retries"],
            bring_back=seating.bring_back,
            guests=(ME,),
        )
        try:
            why = conversation.lead(opening)
        except Ended:
            watcher.break_off()
            if watcher.heard:
                output.say(watcher.summary("a signal"))
            raise
        except BaseException:
            watcher.break_off()
            raise
        output.say(watcher.summary(why))
        if gateway and (swaps := gateway.swaps()):
            output.say(swaps)


def _check_moderator(kind: str, moderator: str | None, members: Members) -> None:
    if (kind == "moderator") != (moderator is not None):
        raise UsageError("--turns moderator and --moderator SEAT go together")
    if moderator and moderator not in members.names:
        raise UsageError(f"--moderator {moderator} is no member of this conversation")


def _settings(given: dict[str, Any], members: Members) -> dict[str, Any]:
    """What the transcript's header tells of how the conversation is led."""
    rounds = given["rounds"]
    is_bounded = given["stop_word"] or given["max_seconds"] != float("inf") or ME in members.names
    if rounds is None and not is_bounded:
        rounds = DEFAULT_ROUNDS
    seeds = [seed for seed in given["seed"] if "=" not in seed]
    if seeds and not seeds[-1].isdecimal():
        raise UsageError(f"--seed {seeds[-1]}: give a whole number")
    seed = int(seeds[-1]) if seeds else int.from_bytes(os.urandom(4))
    return {"turns": given["taking"], "seed": seed, "rounds": rounds, "stop_word": given["stop_word"]}


def _turn_taking(kind: str, members: Members, header: Header) -> RoundRobin | Random:
    """How turns are taken; the seed of a conversation that is resumed is its own."""
    if kind == "random":
        seed = header.settings.get("seed")
        return Random(members.names, seed if isinstance(seed, int) else 0)
    return RoundRobin(members.names)


def _read_opening(text: str, members: Members) -> str:
    if text == "-" and ME in members.names:
        raise UsageError(f"--opening - reads stdin to its end, where '{ME}' is to type; give the opening as TEXT")
    opening = options.read_stdin(Deadline.never()).removesuffix("\n") if text == "-" else text
    if not opening.strip():
        raise UsageError("the opening is empty")
    try:
        opening.encode()
    except UnicodeEncodeError:
        raise MessageError("the opening is not UTF-8 text") from None
    return opening


@contextlib.contextmanager
def _the_room(directory: str | None, members: Members) -> Iterator[Room]:
    """The room that is there, or a fresh one; what we make in it goes at the end."""
    if directory is None and not members.joined:
        for orphan in Room.orphans():
            clean_up(orphan)
        room = Room.make_fresh()
    else:
        room = Room.make(directory) if members.commands else Room.open(directory)
    wanted = star(HUB, [name for name in members.names if name not in members.joined])
    made: list[tuple[str, str]] = []
    try:
        there = set(room.pipes())
        made = [pair for pair in wanted if pair not in there]
        for seat in members.joined:
            room.require(seat)
        room.make_pipes(made)
        yield room
    finally:
        clean_up(room, made, force=True)


def _open_transcript(
    path: str | None, is_resumed: bool, members: Members, settings: dict[str, Any], room: Room
) -> Transcript:
    voices = {name: members.voices.get(name) or room.sitting(name).voice for name in members.names}
    header = Header(VERSION, new_id(), members.names, voices, settings)
    if path is None:
        return Transcript.unwritten(header)
    if not is_resumed:
        return Transcript.create(path, header)
    transcript = Transcript.resume(path, header)
    if set(transcript.header.members) != set(members.names):
        transcript.close()
        theirs = ", ".join(transcript.header.members)
        raise UsageError(f"{path} is a conversation of {theirs}: --resume goes on with the same members")
    return transcript


@contextlib.contextmanager
def _the_person(room: Room) -> Iterator[None]:
    """The person at this terminal, seated in a thread: it must stay in the foreground group."""
    member = Member(room, ME, TerminalVoice(ME, leave=lambda: member.stop(0)))
    failed: list[PipesError] = []

    def sit() -> None:
        try:
            member.run()
        except PipesError as e:
            failed.append(e)

    thread = threading.Thread(target=sit, daemon=True)
    thread.start()
    try:
        deadline = Deadline.after(SIT_DOWN_S)
        while not failed and room.sitting(ME).pid != os.getpid():
            deadline.check(f"member ready in seat {ME}")
            time.sleep(RETRY_S)
        if failed:
            raise failed[0]
        yield
    finally:
        member.stop(0)
        thread.join(2)


def _report(line: str) -> None:
    output.say(f"chat-models: {line}")


class _Watcher:
    """Prints the conversation as it happens, and sums it up."""

    def __init__(self, as_json: bool, show_thinking: bool) -> None:
        self._as_json = as_json
        self._show_thinking = show_thinking
        self._speech: output.Speech | None = None
        self._turn = -1
        self.heard = self._count = self._tokens = 0
        self._total_ms = 0.0
        self._first_ms = array("d")

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
        self._add_up(turn)
        if self._as_json:
            output.write_json(turn)
            return
        speech = self._speech or output.Speech(f"{turn.sender}: ")
        speech.end(turn.content, turn.thinking)
        self._speech = None

    def _add_up(self, turn: Turn) -> None:
        self.heard += 1
        self._count += turn.turn > 0
        self._tokens += turn.usage.completion_tokens if turn.usage else 0
        if turn.timing and turn.sender != ME:
            self._total_ms += turn.timing.total_ms
            if turn.timing.first_token_ms is not None:
                self._first_ms.append(turn.timing.first_token_ms)

    def break_off(self) -> None:
        """The turn that is being spoken will not end: end its line."""
        if self._speech and not self._as_json:
            with contextlib.suppress(BrokenPipeError, PipesError):  # what broke it off is told, not this
                self._speech.void()

    def summary(self, why: str) -> str:
        """Turns, tokens, times, and why it stopped, in one line."""
        if not self.heard:
            return f"nothing was left to say; ended by: {why}"
        parts = [f"{self._count} turn{'s' if self._count != 1 else ''}"]
        if self._tokens:
            parts.append(f"{self._tokens} tokens")
        if self._first_ms:
            parts.append(f"first token {statistics.median(self._first_ms):.0f} ms (median)")
        return f"{', '.join(parts)}, {self._total_ms / 1000:.1f} s in all; ended by: {why}"
