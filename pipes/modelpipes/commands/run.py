"""run: one model, one prompt or a talk with the person at the terminal; no room."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelpipes.commands.cli import options, reading, values, voices
from modelpipes.commands.views.single import Single
from modelpipes.commands.views.talk import Watcher
from modelpipes.errors import DeadlineError, UsageError
from modelpipes.terminal.safetext import make_line
from modelpipes.terminal.waiting import Waiting
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.chat.voices import Voice

STDIN = 0
FROM_STDIN = "-"


@click.command(context_settings=options.settings)
@click.argument("model", metavar="FILE|NAME", type=values.MODEL)
@click.argument("words", metavar="[PROMPT…] [-]", nargs=-1)
@click.option("--server", metavar="URL", help="The server that has the model NAME; with or without /v1.")
@voices.voice_options
@click.option("--timeout", type=options.SECONDS, default="120", show_default=True, help="Longest silence of the model.")
@click.option("--max-seconds", type=options.SECONDS, default="none", show_default=True,
              help="Longest time of a prompt in all.")  # fmt: skip
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts, on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Times and rates, on stderr.")
@options.no_fit_check
@options.as_json
@options.common
@click.pass_context
def command(ctx: click.Context, /, **_: Any) -> None:
    """Ask one model, or talk with it; nothing stays.

    It is told the prompt alone, and first --system, where that is given. Without PROMPT it is told what stdin has; at
    a terminal you talk with it. With `-` after a PROMPT, what stdin has follows it.

    \b
    Examples:
      modelpipes run tiny-chat "What is 3 and 4?"
      git diff | modelpipes run a.gguf "Say what was changed:" -
      modelpipes run llama3.2 --server http://127.0.0.1:11434 --json "Hello."
      modelpipes run tiny-chat
    """
    words: tuple[str, ...] = ctx.params.pop("words")
    name = _name(ctx.params["model"])
    given = _read_options(ctx)
    if not words and os.isatty(STDIN):
        _talk(name, given)
    else:
        _ask(name, words, given)


def _name(model: str) -> str:
    """What the model is called where it speaks: a file without its folder and suffix, or a server's name for it."""
    return make_line(os.path.basename(model).removesuffix(".gguf"))


def _read_options(ctx: click.Context) -> dict[str, Any]:
    """The options as those of attach-model."""
    given = ctx.params
    if given["server"]:
        given["model_name"] = given["model_name"] or given["model"]
        given["model"] = None
    given.update(exec_=None, filter_=None, in_json=False, engine_log=None)
    return voices.read_options(ctx)


@contextlib.contextmanager
def _prepared(name: str, given: dict[str, Any], limit: Deadline) -> Iterator[Voice]:
    """The voice, ready to answer; what was started for it ends with us."""
    from modelpipes.chat.voices import LOAD_S
    from modelpipes.chat.voices.loading import watched
    from modelpipes.commands.views.loading import show_arriving

    voice = voices.make_voice(name, given)
    with contextlib.closing(voice):
        with Waiting() as waiting, watched(voice, name, show_arriving(waiting)):
            voice.prepare(Deadline.after(LOAD_S).earlier(limit))
        yield voice


def _ask(name: str, words: Sequence[str], given: dict[str, Any]) -> None:
    from modelpipes.chat.duet import ME, answer
    from modelpipes.pipe.message import Heard

    limit = Deadline.after(options.bounded(given["max_seconds"]))
    prompt = _read_prompt(words, limit)
    with contextlib.ExitStack() as stack:
        voice = stack.enter_context(_prepared(name, given, limit))
        single = stack.enter_context(
            Single(name, as_json=given["as_json"], show_thinking=given["show_thinking"], verbose=given["verbose"])
        )
        began_s = time.perf_counter()
        reply = answer(voice, name, [Heard(0, ME, prompt)], single, limit=limit)
        if reply.stop == "timeout":
            raise DeadlineError(f"{name} did not finish within the time allowed (--max-seconds)")
        single.end(reply, round((time.perf_counter() - began_s) * 1000, 3))


def _read_prompt(words: Sequence[str], limit: Deadline) -> str:
    """What to ask: the words, stdin, or the words and then stdin."""
    if len(words) > 1 and words[-1] == FROM_STDIN:
        return f"{' '.join(words[:-1])}\n\n{reading.read_message((), limit)}"
    return reading.read_message(words, limit)


def _talk(name: str, given: dict[str, Any]) -> None:
    from modelpipes.chat.duet import ME, Duet
    from modelpipes.chat.guest import Guest
    from modelpipes.terminal import lineeditor

    for option, is_given in (("--max-seconds", given["max_seconds"] != float("inf")), ("--json", given["as_json"])):
        if is_given:
            raise UsageError(f"{option} is for a PROMPT, and none is given: you would talk")
    watcher = Watcher(as_json=False, show_thinking=given["show_thinking"], guests=(ME,), name="modelpipes run")
    with contextlib.ExitStack() as stack:
        voice = stack.enter_context(_prepared(name, given, Deadline.never()))
        guest = stack.enter_context(Guest(ME)) if lineeditor.is_possible() else None
        with watcher:
            why = Duet(voice, name, watcher).lead(guest)
    watcher.sum_up(why)
