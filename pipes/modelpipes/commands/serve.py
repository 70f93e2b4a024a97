"""serve-models: own the engines, share the memory, one gateway; and speak to a daemon that runs."""

from __future__ import annotations

import difflib
import os
import signal

import click

from modelpipes.commands.cli import options, values
from modelpipes.commands.cli.configured import in_force
from modelpipes.errors import EngineError, UsageError
from modelpipes.terminal import output
from modelpipes.terminal.controlling import has_terminal
from modelpipes.terminal.drawing import SCREEN
from modelpipes.terminal.safetext import make_safe
from modelpipes.values.deadline import Deadline

ACTIONS = ("status", "load", "unload", "pin", "unpin", "logs", "events", "reload")
OF_A_MODEL = ("load", "unload", "pin", "unpin", "logs")


def _meant(ctx: click.Context, incomplete: str) -> values.Meant:
    """What may stand there: a configuration or an action, then the name of a model of the daemon that runs."""
    from modelpipes.gateway import record

    words = ctx.params.get("words") or ()
    if not words:
        return [*ACTIONS, values.path(incomplete, suffix=".toml")]
    found = record.running() if len(words) == 1 and words[0] in OF_A_MODEL else []
    return [name for one in found for name in (values.models_of(one.config) or values.model_names(incomplete))]


class _Serve(click.Command):
    """Takes a first word that is no action for --config: then all commands read their configuration in one way."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and not {"-h", "--help", "--version"} & set(args):
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            words = given["words"]
            if isinstance(words, tuple) and words[0] not in ACTIONS:
                if "config" in given or len(words) > 1:
                    actions = ", ".join(ACTIONS)
                    raise UsageError(f"{words[0]!r} is no action ({actions}), and one configuration is enough")
                if not words[0]:
                    raise UsageError("CONFIG is empty: give the name of a file")
                near = difflib.get_close_matches(words[0], ACTIONS, 1)
                if near and not os.path.exists(words[0]):
                    raise UsageError(f"{words[0]!r} is no action, nor a file: did you mean {near[0]}?")
                args = [f"--config={words[0]}", *args]
                args.remove(words[0])
        return super().parse_args(ctx, args)


@click.command(cls=_Serve, context_settings=options.settings)
@click.argument("words", metavar="[CONFIG.toml | ACTION [NAME]]", nargs=-1, type=values.Text(_meant))
@click.option("--listen", metavar="ADDRESS", help="127.0.0.1:9090, or unix:PATH.  [as configured]")
@click.option("--vram", type=options.BYTES, metavar="SIZE", help="The budget, such as 16GB.  [as configured]")
@click.option("--wait", type=options.SECONDS, metavar="TIME", help="ACTION: wait so long for a daemon to be there.")
@click.option("--private", is_flag=True, hidden=True, help="For a leader's own: actions do not find it.")
@click.option("--follow", "-f", is_flag=True, help="logs, events: also those to come.")
@click.option("--since", type=click.IntRange(min=0), metavar="ID", help="events: only what came after this one.")
@options.formats("table", "json")
@options.lenient
@click.pass_context
def command(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    listen: str | None,
    vram: int | None,
    wait: float | None,
    private: bool,
    follow: bool,
    since: int | None,
    format_: str,
) -> None:
    """Serve models from one address, swapped in and out of memory as they are asked for.

    ACTION speaks to the daemon that runs: status, load NAME, unload NAME, pin NAME, unpin NAME, logs NAME, events,
    reload.
    CONFIG is a file such as config/serve.toml; without one your configuration is taken. Where that names no models,
    every model that find-gguf finds is served.

    \b
    Examples:
      serve-models models.toml
      serve-models status
      serve-models logs qwen -f
      serve-models events -f
    """
    if words and words[0] in ACTIONS:
        if vram is not None:
            raise UsageError("--vram is for a daemon that starts")
        if since is not None and words[0] != "events":
            raise UsageError("--since is for events")
        _act(words[0], words[1:], listen, wait or 0.0, follow, since or 0, format_)
        return
    if follow or since is not None or format_ != SCREEN or wait is not None:
        raise UsageError("--wait, --follow, --since, --format and --json are for an action")
    ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()  # not under nohup
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is taken for a wish to read the configuration again
    try:
        from modelpipes.serving import daemon, sources
    except ModuleNotFoundError as error:
        how = "install modelpipes with its extra serve: pip install '.[serve]'"
        raise EngineError(f"no {error.name} on this machine: {how}") from None

    from modelpipes.commands.views.serve import tell

    configured = in_force(ctx)
    configured.insist()
    daemon.run(
        configured.path or None,
        sources=(sources.named, sources.found),
        is_private=private,
        listen=listen,
        vram=vram,
        sink=tell,
        ends_with_terminal=ends_with_terminal,
    )


def _act(
    action: str, names: tuple[str, ...], listen: str | None, wait_s: float, follow: bool, since: int, format_: str
) -> None:
    from modelpipes.commands.views import serve as view
    from modelpipes.gateway import steering

    if len(names) != (action in OF_A_MODEL):
        raise UsageError(f"serve-models {action} takes {'one NAME' if action in OF_A_MODEL else 'no name'}")
    if follow and action not in ("logs", "events"):
        raise UsageError("--follow is for logs and events")
    daemon = steering.find(listen, Deadline.after(options.bounded(wait_s)))
    match action:
        case "reload":
            daemon.reload()
        case "status":
            residency, models = daemon.residency(), daemon.models()
            if format_ == "json":
                output.write_json(residency)
            else:
                view.show(residency, models, format_)
        case "events":
            for event in daemon.events(since, follow=follow):
                output.write_text(event.decode() + "\n" if format_ == "json" else view.told(event))
        case "logs":
            for line in daemon.logs(names[0], follow=follow):
                output.write_text(make_safe(line.decode("utf-8", "replace")))
        case "load" | "unload" | "pin" | "unpin":
            told = daemon.act(action, names[0])
            if format_ == "json":
                output.write_json(told)
            else:
                view.tell_state(told, format_)
