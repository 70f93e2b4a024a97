"""What makes a member's answers, as options say it: the options themselves, and the voice that they describe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from modelpipes.commands.cli import options, reading, values
from modelpipes.commands.cli.configured import is_from_file
from modelpipes.commands.cli.sampling import SAMPLING, sampling_of
from modelpipes.errors import EngineError, UsageError
from modelpipes.terminal import output

if TYPE_CHECKING:
    from modelpipes.chat.voices import Voice
    from modelpipes.engine.locate import EngineChoice
    from modelpipes.fit.spec import EngineSpec

# option: (metavar, type, help); attach-model takes them as they are, chat-models as [NAME=]VALUE. All have a key of
# [voice], but for the name of a server's model.
VOICE: dict[str, tuple[str, Any, str]] = {
    "system": ("TEXT|@FILE", values.TEXT_OR_FILE, "What the model is told first."),
    **SAMPLING,
    "model-name": ("NAME", click.STRING, "Which of the models of --server."),
    "api-key-file": ("FILE", values.FILE, "The key of --server.  [$OPENAI_API_KEY]"),
    "ctx-size": ("N", click.IntRange(64), "Context of a conversation, in tokens.  [4096]"),
    "kv-type": ("TYPE", click.STRING, "Type of the cache of keys and values, as q8_0.  [f16]"),
    "gpu-layers": ("N", click.IntRange(0), "Layers on the card.  [as many as fit]"),
    "threads": ("N", click.IntRange(1, 512), "Threads on the CPU.  [the engine's choice]"),
    "batch-size": ("N", click.IntRange(1), "Tokens that the engine reads at a time.  [32, on a card 128]"),
    "cpu-affinity": ("CPUS", options.CPUS, "The CPUs of the engine's process, as 0-3,8.  [all of ours]"),
    "memory-limit": ("SIZE", options.AMOUNT, "Host memory of the engine's process at most.  [no limit]"),
    "draft": ("FILE", values.MODEL, "A smaller model, whose guesses it checks."),
    "parallel": ("N", click.IntRange(1, 64), "Messages to work on at a time.  [1]"),
    "engine": ("ENGINE", click.Choice(["auto", "llama-server", "embedded"]), "auto, llama-server or embedded.  [auto]"),
    "engine-arg": ("ARG", click.STRING, "Passed to the engine as it is; may be repeated."),
}
REPEATABLE = {"engine-arg": "engine_args", "stop": "stop"}  # and their keys
NO_KEY = "model-name"


def voice_options(command: Any) -> Any:
    """The options of `VOICE`, each with its type."""
    for name, (metavar, kind, text) in reversed(VOICE.items()):
        key = None if name == NO_KEY else f"voice.{REPEATABLE.get(name) or name.replace('-', '_')}"
        made = options.option(f"--{name}", key=key, type=kind, metavar=metavar, multiple=name in REPEATABLE, help=text)
        command = made(command)
    return command


def shared_voice_options(command: Any) -> Any:
    """The options of `VOICE` for several members: VALUE for all, NAME=VALUE for one."""
    for name, (metavar, kind, text) in reversed(VOICE.items()):
        pair = values.Paired(kind, is_shared=True)
        command = click.option(f"--{name}", type=pair, multiple=True, metavar=f"[NAME=]{metavar}", help=text)(command)
    return command


# What seats a member of chat-models: option: (metavar, type, help).
SEATING: dict[str, tuple[str, Any, str]] = {
    "model": ("NAME=FILE", values.MODEL, "Seat a model; a GGUF file, or tiny-chat."),
    "server": ("NAME=URL", click.STRING, "Seat a model of a running server."),
    "exec": ("NAME=COMMAND", click.STRING, "Seat a program, run for each message."),
    "filter": ("NAME=COMMAND", click.STRING, "Seat a program kept running, a line in, a line out."),
    "filter-json": ("NAME=COMMAND", click.STRING, "The same in lines of JSON."),
}


def seating_options(command: Any) -> Any:
    """The options of `SEATING`, each for as many members as it is given for."""
    for name, (metavar, kind, text) in reversed(SEATING.items()):
        pair, variable = values.Paired(kind, is_shared=False), f"{name.replace('-', '_')}_"
        command = click.option(f"--{name}", variable, type=pair, multiple=True, metavar=metavar, help=text)(command)
    return command


# Of the options of a voice: those that programs, engines of ours and servers alone can use.
FOR_PROGRAMS = ("parallel",)
FOR_ENGINES = (
    "kv-type", "gpu-layers", "threads", "batch-size", "cpu-affinity", "memory-limit", "draft", "engine", "engine-arg",
)  # fmt: skip
FOR_SERVERS = ("model-name", "api-key-file")
KINDS = ("model", "server", "exec_", "filter_")
API_KEY = "OPENAI_API_KEY"


def read_options(ctx: click.Context) -> dict[str, Any]:
    """The options, without what the configuration says of [voice] that this kind of voice cannot use."""
    given = dict(ctx.params)
    kind = next((kind for kind in KINDS if given[kind]), "").removesuffix("_")
    for name in VOICE:
        parameter = name.replace("-", "_")
        is_beaten = name == "api-key-file" and os.environ.get(API_KEY)
        if is_from_file(ctx, parameter) and (is_beaten or not can_use(kind, name)):
            given[parameter] = () if name in REPEATABLE else None
    return given


def can_use(kind: str, option: str) -> bool:
    """Has this kind of voice any use for an option of VOICE?"""
    if kind in ("exec", "filter", "filter-json"):
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
    if given["in_json"] and kind != "filter_":
        raise UsageError("--json is for --filter: its messages as lines of JSON")
    silence_s = options.bounded(given["timeout"])
    if kind in ("exec_", "filter_"):
        return _program_voice(seat, kind, given, silence_s)
    return _engine_voice(seat, given, silence_s)


def _program_voice(seat: str, kind: str, given: dict[str, Any], silence_s: float | None) -> Voice:
    for name in VOICE:
        if _is_given(given[name.replace("-", "_")]) and name not in FOR_PROGRAMS:
            raise UsageError(f"--{name} is for a model; a program takes its options in its command")
    if kind == "exec_":
        from modelpipes.chat.voices.program import ExecVoice

        return ExecVoice(given["exec_"], parallel=given["parallel"] or 1, silence_s=silence_s, log=given["engine_log"])
    if (given["parallel"] or 1) > 1:
        raise UsageError("--parallel: a filter answers one line after the other; use --exec to answer several")
    from modelpipes.chat.voices.filter import FilterVoice
    from modelpipes.chat.voices.jsonfilter import JsonFilterVoice

    def report(line: str) -> None:
        output.say(f"{seat}: {line}")

    kind_of_filter = JsonFilterVoice if given["in_json"] else FilterVoice
    return kind_of_filter(given["filter_"], silence_s=silence_s, log=given["engine_log"], report=report)


def _engine_voice(seat: str, given: dict[str, Any], silence_s: float | None) -> Voice:
    from modelpipes.chat.voices.engine import EngineVoice
    from modelpipes.engine.confinement import check_machine
    from modelpipes.engine.lifecycle import Engine
    from modelpipes.web.site import root_of

    spec = spec_of_options(given)
    common: dict[str, Any] = {
        "system": given["system"] and reading.read_text(given["system"]),
        "sampling": sampling_of(given),
        "ctx_size": spec.n_ctx_seq,
        "parallel": spec.n_parallel,
        "silence_s": silence_s,
    }
    if given["server"]:
        try:
            root_of(given["server"])
        except EngineError as e:
            raise UsageError(f"--server: {e}") from None
        for name in (*FOR_ENGINES, "engine-log"):
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

    check_machine(spec)
    engine: EngineChoice = given["engine"] or "auto"

    def start_engine() -> Engine:
        if not given["no_fit_check"]:
            from modelpipes.engine.admission import Candidate, admit

            for line in admit([Candidate(seat, spec)], engine):
                output.say(line)
        return Engine(spec, engine=engine, name=seat, log=given["engine_log"])

    # Once the seat is taken: who waits for it learns that the file or the engine is missing.
    return EngineVoice(seat, kind=f"model {os.path.basename(given['model'])}", start_engine=start_engine, **common)


def spec_of_options(given: dict[str, Any]) -> EngineSpec:
    """The engine that these options describe."""
    from modelpipes.fit.spec import spec_of

    return spec_of(
        given["model"] or "",
        ctx_size=given["ctx_size"],
        parallel=given["parallel"],
        kv_type=given["kv_type"],
        gpu_layers=given["gpu_layers"],
        threads=given["threads"],
        batch_size=given["batch_size"],
        cpu_affinity=given["cpu_affinity"],
        memory_limit=given["memory_limit"],
        draft=given["draft"],
        engine_args=given["engine_arg"],
    )


def _api_key(file: str | None) -> str | None:
    return reading.read_text(f"@{file}") if file else os.environ.get(API_KEY) or None
