"""attach-model: take a seat with a model, or any program, and answer."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from modelpipes.commands.cli import options, reading, values
from modelpipes.commands.cli.configured import is_from_file
from modelpipes.commands.cli.signals import ENDING_SIGNALS
from modelpipes.errors import Ended, EngineError, UsageError
from modelpipes.pipe.room import Room, check_seat
from modelpipes.terminal import output

if TYPE_CHECKING:
    from modelpipes.chat.voices import Voice
    from modelpipes.engine.admission import Asked

# Of the options of a voice: those that programs, engines of ours and servers alone can use.
FOR_PROGRAMS = ("parallel",)
FOR_ENGINES = ("kv-type", "gpu-layers", "threads", "engine", "engine-arg")
API_KEY = "OPENAI_API_KEY"
KINDS = ("model", "server", "exec_", "filter_")
FOR_SERVERS = ("model-name", "api-key-file")
SIGNALLED = 128  # and the signal's number, as a shell counts


@click.command(context_settings=options.settings)
@click.argument("seat", type=values.SEAT)
@click.option("-m", "--model", metavar="FILE", type=values.MODEL,
              help="A GGUF file, or tiny-chat; starts an engine for it.")  # fmt: skip
@click.option("--server", metavar="URL", help="A running llama-server, LM Studio, Ollama …; with or without /v1.")
@click.option("--exec", "exec_", metavar="COMMAND", help="A program run for each message: stdin to stdout.")
@click.option("--filter", "filter_", metavar="COMMAND", help="One program kept running: a line in, a line out.")
@options.directory
@options.voice_options
@options.option(
    "--timeout",
    key="voice.timeout",
    type=options.SECONDS,
    default="120",
    show_default=True,
    help="Longest silence of the voice.",
)
@click.option("--once", is_flag=True, help="Answer one message, then leave.")
@click.option("--log", metavar="FILE", type=values.FILE, help="Append what the engine or program writes.")
@options.no_fit_check
@options.common
@click.pass_context
def command(ctx: click.Context, /, seat: str, directory: str | None, once: bool, **_: Any) -> int:
    """Take a seat and answer what comes on the pipes that lead to it.

    \b
    Examples:
      attach-model alice --model tiny-chat --system "You are alice."
      attach-model bob --server http://127.0.0.1:8080
      attach-model upper --filter "stdbuf -oL tr a-z A-Z"
    """
    voice = make_voice(check_seat(seat), read_options(ctx))
    room = Room.open(directory)
    room.require(seat)
    from modelpipes.chat.member import Member

    line = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    member = Member(room, seat, voice, command=line, once=once, report=output.say)
    for signum in ENDING_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda number, _: member.stop(SIGNALLED + number))
    code = member.run()
    if code > SIGNALLED:
        raise Ended(code - SIGNALLED)
    return code


def read_options(ctx: click.Context) -> dict[str, Any]:
    """The options, without what the configuration says of [voice] that this kind of voice cannot use."""
    given = dict(ctx.params)
    kind = next((kind for kind in KINDS if given[kind]), "").removesuffix("_")
    for name in options.VOICE:
        parameter = name.replace("-", "_")
        is_beaten = name == "api-key-file" and os.environ.get(API_KEY)
        if is_from_file(ctx, parameter) and (is_beaten or not can_use(kind, name)):
            given[parameter] = () if name == options.REPEATABLE else None
    return given


def can_use(kind: str, option: str) -> bool:
    """Has this kind of voice any use for an option of options.VOICE?"""
    if kind in ("exec", "filter"):
        return kind == "exec" and option in FOR_PROGRAMS
    return option not in (FOR_ENGINES if kind == "server" else FOR_SERVERS)


def _is_given(value: object) -> bool:
    return value is not None and value != ()  # 0 is given


def make_voice(seat: str, given: dict[str, Any]) -> Voice:
    """The voice that the options describe; UsageError where they describe none, or two."""
    kinds = [kind for kind in KINDS if given[kind]]
    if len(kinds) != 1:
        raise UsageError("give one of --model, --server, --exec and --filter")
    kind = kinds[0]
    silence_s = options.bounded(given["timeout"])
    if kind in ("exec_", "filter_"):
        from modelpipes.chat.voices.program import ExecVoice, FilterVoice

        for name in options.VOICE:
            if _is_given(given[name.replace("-", "_")]) and name not in FOR_PROGRAMS:
                raise UsageError(f"--{name} is for a model; a program takes its options in its command")
        if kind == "exec_":
            return ExecVoice(given["exec_"], parallel=given["parallel"] or 1, silence_s=silence_s, log=given["log"])
        if (given["parallel"] or 1) > 1:
            raise UsageError("--parallel: a filter answers one line after the other; use --exec to answer several")
        return FilterVoice(given["filter_"], silence_s=silence_s, log=given["log"])
    return _engine_voice(seat, given, silence_s)


def _engine_voice(seat: str, given: dict[str, Any], silence_s: float | None) -> Voice:
    from modelpipes.chat.voices.engine import EngineVoice, Sampling
    from modelpipes.engine.client import root_of
    from modelpipes.engine.lifecycle import Engine

    common: dict[str, Any] = {
        "system": reading.read_text(given["system"]) if given["system"] else None,
        "sampling": Sampling(given["max_tokens"], given["temperature"], given["top_p"], given["seed"]),
        "ctx_size": given["ctx_size"] or 4096,
        "parallel": given["parallel"] or 1,
        "silence_s": silence_s,
    }
    if given["server"]:
        try:
            root_of(given["server"])
        except EngineError as e:
            raise UsageError(f"--server: {e}") from None
        for name in (*FOR_ENGINES, "log"):
            if _is_given(given[name.replace("-", "_")]):
                raise UsageError(f"--{name} is for an engine of ours; {given['server']} has its own")
        return EngineVoice(
            seat,
            kind=f"server {given['server']}",
            server=given["server"],
            model_name=given["model_name"],
            api_key=_api_key(given["api_key_file"]),
            **common,
        )
    for name in FOR_SERVERS:
        if _is_given(given[name.replace("-", "_")]):
            raise UsageError(f"--{name} is for --server")

    def start_engine() -> Engine:
        if not given["no_fit_check"]:
            from modelpipes.engine.admission import check_fit

            check_fit([asked_of(seat, given)], given["engine"] or "auto")
        return Engine(
            given["model"],
            ctx_size=common["ctx_size"],
            kv_type=given["kv_type"] or "f16",
            gpu_layers=given["gpu_layers"],
            threads=given["threads"],
            parallel=common["parallel"],
            engine=given["engine"] or "auto",
            engine_args=given["engine_arg"],
            name=seat,
            log=given["log"],
        )

    # Once the seat is taken: who waits for it learns that the file or the engine is missing.
    return EngineVoice(seat, kind=f"model {os.path.basename(given['model'])}", start_engine=start_engine, **common)


def asked_of(seat: str, given: dict[str, Any]) -> Asked:
    """What the fit check needs to know of an engine that these options describe."""
    from modelpipes.engine.admission import Asked

    return Asked(
        seat,
        given["model"],
        ctx_size=given["ctx_size"] or 4096,
        kv_type=given["kv_type"] or "f16",
        parallel=given["parallel"] or 1,
        gpu_layers=given["gpu_layers"],
    )


def _api_key(file: str | None) -> str | None:
    return reading.read_text(f"@{file}") if file else os.environ.get(API_KEY) or None
