"""chat-models: lead a conversation; one command does set-up, seats, talk and clean-up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from modelpipes.chat.preview import first_prompts
from modelpipes.chat.talk import Talk, prepared
from modelpipes.chat.transcript import Header, Turn
from modelpipes.chat.turns import DEFAULT_ROUNDS, StopRules
from modelpipes.commands.cli import options, reading, resumption, values, voices
from modelpipes.commands.cli.configured import in_force, is_from_file
from modelpipes.commands.cli.members import ME, InOrder, Members, read_members
from modelpipes.commands.views import prompts
from modelpipes.commands.views.loading import show_arriving
from modelpipes.commands.views.talk import Watcher
from modelpipes.errors import MessageError, PipesError, UsageError
from modelpipes.pipe.asker import SILENCE_S
from modelpipes.pipe.log import Log
from modelpipes.pipe.room import HUB
from modelpipes.terminal import output
from modelpipes.terminal.waiting import Waiting
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.gateway.private import PrivateDaemon

OPENING = "Hello."
LABELS = click.Choice(["auto", "always", "never"])


@click.command(cls=InOrder, context_settings=options.settings)
@click.argument("seats", metavar="[SEAT]...", nargs=-1, type=values.MEMBER)
@options.directory
@voices.seating_options
@voices.shared_voice_options
@click.option("--serve", metavar="CONFIG", type=values.CONFIGURATION,
              help="Seat SEAT=NAME: models of a serve-models of its own, swapped.")  # fmt: skip
@options.option("--rounds", key="chat-models.rounds", type=click.IntRange(1), metavar="N",
                help="Turns of each member, a silent moderator apart.  [10 or unending]")  # fmt: skip
@click.option("--turns", "taking", type=click.Choice(["round-robin", "random", "moderator"]), default="round-robin",
              show_default=True, help="Who speaks next; random goes by --seed.")  # fmt: skip
@click.option("--moderator", metavar="SEAT", type=values.NAMED,
              help="The member who is asked who speaks next, and does not speak.")  # fmt: skip
@click.option("--moderator-speaks", is_flag=True, help="It takes turns as well.")
@click.option("--labels", type=values.Paired(LABELS, is_shared=True), multiple=True, metavar="[NAME=]WHEN",
              help="Tell names with words: always, never, or auto, to who hears several.  [auto]")  # fmt: skip
@click.option("--opening", metavar="TEXT|-",
              help="What the hub says first.  [Hello.; with `me`, who begins, nothing]")  # fmt: skip
@click.option("--stop-word", metavar="WORD", help="End when a member says it.")
@options.option("--max-seconds", key="chat-models.max_seconds", type=options.SECONDS, default="none", show_default=True,
              help="End after this time, also in mid-answer; loading does not count.")  # fmt: skip
@options.option("--timeout", key="chat-models.timeout", type=options.SECONDS,
                help="Longest silence of a member, and of its voice.  [30 and 120]")  # fmt: skip
@options.option("--patience", key="chat-models.patience", type=options.SECONDS_OR_0, default="30", show_default=True,
              help="Wait this long for a member that died, if somebody else seated it; 0: end at once.")  # fmt: skip
@options.option("--retries", key="chat-models.retries", type=click.IntRange(0), default=2, show_default=True,
                metavar="N", help="New attempts at a turn that failed.")  # fmt: skip
@click.option("--transcript", "path", metavar="FILE", type=values.TRANSCRIPT,
              help="Write the conversation there, as JSON Lines.")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Continue the transcript, with its members and settings unless others are given.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what each model would be told first, and start nothing.")
@options.logged
@click.option("-v", "--verbose", is_flag=True, help="The lines of --log, on stderr.")
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
            gateway = stack.enter_context(serving(given["serve"], in_force(ctx).variables))
        is_for_voices = not is_from_file(ctx, "timeout")
        given["voice_timeout"] = given["timeout"] if is_for_voices else None
        header = resumption.header_of(given, ctx.meta["names"]) if given["resume"] else None
        if header:
            for line in resumption.take_settings(ctx, given, header):
                output.say(f"chat-models: {line}")
        _lead(given, ctx.meta["names"], gateway, header)


def _lead(given: dict[str, Any], names: Sequence[str], gateway: PrivateDaemon | None, header: Header | None) -> None:
    members = read_members(given, names, gateway, header)
    for line in members.overrides(header) if header else ():
        output.say(f"chat-models: {line}")
    if not (given["no_fit_check"] or given["dry_run"]):
        members.check_fit()
    talk = _describe(given, members)
    opening = _read_opening(given["opening"], members)
    if given["dry_run"]:
        first = Turn(0, HUB, opening) if opening is not None else None
        prompts.write(first_prompts(talk.header(members.abouts()), first), as_json=given["as_json"])
        return
    watcher = Watcher(as_json=given["as_json"], show_thinking=given["show_thinking"], guests=(ME,))
    log = _open_log(given, watcher)
    with Waiting() as waiting, prepared(talk, watcher, _report, show_arriving(waiting), log) as conversation:
        log.note(HUB, "leads", conversation=conversation.id, members=",".join(members.names))
        why = ""
        try:
            with watcher:
                why = conversation.lead(opening)
        except PipesError as error:
            why = str(error)
            raise
        finally:
            log.note(HUB, "ended", conversation=conversation.id, why=why or "a signal")
        watcher.sum_up(why)
        if gateway and (swaps := gateway.swaps()):
            output.say(swaps)


def _open_log(given: dict[str, Any], watcher: Watcher) -> Log:
    """The log; members that are seated here write to the same file."""
    log = Log(given["log"], echo=watcher.say_beside if given["verbose"] else None, with_content=given["log_content"])
    if given["log"]:
        os.environ["LOG_FILE"] = given["log"]
        os.environ["LOG_CONTENT"] = "1" if given["log_content"] else "0"
    return log


def _report(line: str) -> None:
    output.say(f"chat-models: {line}")


def _check_served(seats: Sequence[str]) -> None:
    if not any("=" in seat for seat in seats):
        raise UsageError("--serve seats its models as SEAT=NAME: chat-models --serve models.toml alice=qwen bob=gemma")


def _describe(given: dict[str, Any], members: Members) -> Talk:
    """The talk that the options describe; UsageError where they contradict each other."""
    moderator = given["moderator"]
    if (given["taking"] == "moderator") != (moderator is not None):
        raise UsageError("--turns moderator and --moderator SEAT go together")
    if moderator and moderator not in members.names:
        raise UsageError(f"--moderator {moderator} is no member of this conversation")
    if given["moderator_speaks"] and not moderator:
        raise UsageError("--moderator-speaks needs the --moderator")
    if moderator and not given["moderator_speaks"] and len(members.names) < 3:
        raise UsageError("a moderator needs two members who speak, or --moderator-speaks")
    rounds = given["rounds"]
    is_bounded = given["stop_word"] or given["max_seconds"] != float("inf") or ME in members.names
    if rounds is None and not is_bounded:
        rounds = DEFAULT_ROUNDS
    return Talk(
        members=members.names,
        commands=members.commands,
        voices=members.voices,
        passing=members.served,
        person=ME if ME in members.names else None,
        directory=given["directory"],
        taking=given["taking"],
        seed=_read_seed(given["seed"]),
        moderator=moderator,
        moderator_speaks=given["moderator_speaks"],
        has_opening=given["opening"] is not None or ME not in members.names,
        labels=_read_labels(given["labels"], members.names),
        rules=StopRules(rounds, given["stop_word"]),
        transcript=given["path"],
        is_resumed=given["resume"],
        silence_s=options.bounded(given["timeout"] or SILENCE_S),
        patience_s=given["patience"],
        limit_s=options.bounded(given["max_seconds"]),
        retries=given["retries"],
    )


def _read_labels(given: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Who is told names: what is for all of them, and for one."""
    for value in given:
        if value.rpartition("=")[2] not in LABELS.choices:
            raise UsageError(f"--labels {value}: give always, never or auto, for all or as NAME=never")
    common = [value for value in given if "=" not in value]
    labels = dict.fromkeys(names, common[-1]) if common else {}
    for name, _, value in (value.partition("=") for value in given if "=" in value):
        if name not in names:
            raise UsageError(
                f"--labels {name}=…: no member '{name}' in this conversation; those are {', '.join(names)}"
            )
        labels[name] = value
    return labels


def _read_seed(given: Sequence[str]) -> int:
    """The seed that is for all of them; one of the moment where none is."""
    seeds = [seed for seed in given if "=" not in seed]
    if seeds and not seeds[-1].isdecimal():
        raise UsageError(f"--seed {seeds[-1]}: give a whole number")
    return int(seeds[-1]) if seeds else int.from_bytes(os.urandom(4))


def _read_opening(text: str | None, members: Members) -> str | None:
    """What the hub says first; None where a person begins."""
    if text is None:
        return None if ME in members.names else OPENING
    if text == "-" and ME in members.names:
        raise UsageError(f"--opening - reads stdin to its end, where '{ME}' is to type; give the opening as TEXT")
    opening = reading.read_stdin(Deadline.never()).removesuffix("\n") if text == "-" else text
    if not opening.strip():
        raise UsageError("the opening is empty")
    try:
        opening.encode()
    except UnicodeEncodeError:
        raise MessageError("the opening is not UTF-8 text") from None
    return opening
