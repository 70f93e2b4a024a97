"""serve-models: own the engines, share the memory, one gateway; and speak to a daemon that runs."""

from __future__ import annotations

import contextlib
import difflib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from modelpipes.commands.cli import options, values
from modelpipes.commands.cli.configured import in_force
from modelpipes.errors import EngineError, UsageError
from modelpipes.terminal import output
from modelpipes.terminal.safetext import make_safe
from modelpipes.values.deadline import Deadline

if TYPE_CHECKING:
    from modelpipes.gateway.record import Daemon

ACTIONS = ("status", "load", "unload", "pin", "unpin", "logs", "reload")
OF_A_MODEL = ("load", "unload", "pin", "unpin", "logs")
ANSWER_S = 10.0
LOOK_S = 0.02  # between two looks for a daemon that starts
LOAD_S = 900.0  # a load waits for its turn, and for the disk


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
@click.option("--follow", "-f", is_flag=True, help="logs: also those to come.")
@options.as_json
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
    as_json: bool,
) -> None:
    """Serve models from one address, swapped in and out of memory as they are asked for.

    ACTION speaks to the daemon that runs: status, load NAME, unload NAME, pin NAME, unpin NAME, logs NAME, reload.
    CONFIG is a file such as config/serve.toml; without one your configuration is taken. Where that names no models,
    every model that find-gguf finds is served.

    \b
    Examples:
      serve-models models.toml
      serve-models status
      serve-models logs qwen -f
    """
    if words and words[0] in ACTIONS:
        if vram is not None:
            raise UsageError("--vram is for a daemon that starts")
        _act(words[0], words[1:], _Daemon(listen, wait or 0.0), follow, as_json)
        return
    if follow or as_json or wait is not None:
        raise UsageError("--wait, --follow and --json are for an action")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is taken for a wish to read the configuration again
    try:
        from modelpipes.serving import daemon
    except ModuleNotFoundError as error:
        how = "install modelpipes with its extra serve: pip install '.[serve]'"
        raise EngineError(f"no {error.name} on this machine: {how}") from None

    configured = in_force(ctx)
    configured.insist()
    daemon.run(configured.path or None, is_private=private, listen=listen, vram=vram, say=_say)


def _say(line: str) -> None:
    output.say(f"serve-models: {line}")


def _act(action: str, names: tuple[str, ...], daemon: _Daemon, follow: bool, as_json: bool) -> None:
    if len(names) != (action in OF_A_MODEL):
        raise UsageError(f"serve-models {action} takes {'one NAME' if action in OF_A_MODEL else 'no name'}")
    if follow and action != "logs":
        raise UsageError("--follow is for logs")
    daemon.find()
    if action == "reload":
        daemon.reload()
    elif action == "status":
        _show(daemon.ask("GET", "/residency"), daemon.ask("GET", "/v1/models"), as_json)
    elif action == "logs":
        daemon.copy(f"/models/{quote(names[0], safe='')}/logs{'?follow=1' if follow else ''}")
    else:
        told = daemon.ask("POST", f"/models/{quote(names[0], safe='')}/{action}", LOAD_S)
        if as_json:
            output.write_json(told)
        else:
            _say(f"{told['name']} is {told['state']}{', pinned' if told['pinned'] else ''}")


def _show(residency: dict[str, Any], models: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.write_json(residency)
        return
    from modelpipes.values.units import format_bytes, format_seconds

    used, budget = residency["used_bytes"], residency["budget_bytes"]
    host_used, host_budget = residency["host_used_bytes"], residency["host_budget_bytes"]
    resident = {one["name"]: one for one in residency["resident"]}
    rows = []
    for model in models["data"]:
        one = resident.get(model["id"])
        rows.append(
            (
                model["id"],
                one["state"] + (", pinned" if one["pinned"] else "") if one else "",
                format_bytes(one["bytes"] + one["host_bytes"]) if one else "",
                one["busy"] if one else "",
                format_seconds(one["idle_s"]) if one and not one["busy"] else "",
            )
        )
    output.write_table(
        rows, ["model", "state", "memory", "busy", "idle"], output.width(), right=("memory", "busy", "idle")
    )
    lines = [f"card {format_bytes(used)} of {format_bytes(budget)}"] if budget else []
    lines.append(f"host {format_bytes(host_used)} of {format_bytes(host_budget)}")
    _say("; ".join(lines))
    for one in residency["waiting"]:
        _say(f"{one['position']}. waits for {one['name']} since {format_seconds(one['waited_s'])}")
    for one in residency["decisions"][-5:]:
        _say(f"{one['at']} {one['action']} {one['name']}: {one['reason']}")


class _Daemon:
    """The daemon that runs, over HTTP."""

    def __init__(self, listen: str | None, wait_s: float) -> None:
        self._listen = listen
        self._deadline = Deadline.after(options.bounded(wait_s))

    def find(self) -> None:
        """Find it. EngineError where none runs, UsageError where several do and nobody said which."""
        from modelpipes.gateway.record import running

        while not (found := [one for one in running() if self._is_meant(one)]):
            if self._deadline.has_passed():
                where = f" on {self._listen}" if self._listen else ""
                raise EngineError(f"no serve-models runs{where}: start one with serve-models CONFIG.toml")
            time.sleep(LOOK_S)
        if len(found) > 1:
            raise UsageError(f"--listen is missing: serve-models runs on {', '.join(one.listen for one in found)}")
        (self._record,) = found

    def _is_meant(self, one: Daemon) -> bool:
        return not one.is_private if self._listen is None else one.listen == self._listen

    def reload(self) -> None:
        """Have it read its configuration again; UsageError where that is wrong, which would change nothing."""
        from modelpipes.config.reading import load, read_key

        if self._record.config:
            read_key(load(self._record.config).config.server)
        os.kill(self._record.pid, signal.SIGHUP)

    def ask(self, method: str, path: str, limit_s: float = ANSWER_S) -> Any:
        """The JSON that it answers; EngineError for a failure."""
        with self._request(method, path, limit_s) as response:
            return self._read(response)

    def copy(self, path: str) -> None:
        """Write the text that it answers to stdout, as it comes."""
        with self._request("GET", path, None) as response:
            if response.status != http.client.OK:
                self._read(response)
            while line := self._line(response):
                output.write_text(make_safe(line.decode("utf-8", "replace")))

    def _read(self, response: http.client.HTTPResponse) -> Any:
        """The whole answer; EngineError where it tells of a failure."""
        try:
            answer = json.loads(response.read())
            if response.status == http.client.OK:
                return answer
            why = answer["error"]["message"]
        except (OSError, http.client.HTTPException) as error:
            raise self._is_silent(error) from None
        except (ValueError, LookupError, TypeError):
            why = f"serve-models on {self._record.listen} answers something that is none of its words"
        raise EngineError(why)

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.readline()
        except (OSError, http.client.HTTPException) as error:
            raise self._is_silent(error) from None

    def _is_silent(self, error: Exception) -> EngineError:
        text = str(error) or type(error).__name__
        return EngineError(f"serve-models on {self._record.listen} does not answer: {text.lower()}")

    @contextlib.contextmanager
    def _request(self, method: str, path: str, limit_s: float | None) -> Iterator[http.client.HTTPResponse]:
        headers = {"Authorization": f"Bearer {self._record.key}"} if self._record.key else {}
        connection = None
        try:
            try:
                connection = _connect(self._record.listen, limit_s)
                connection.request(method, path, headers=headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._is_silent(error) from None
            yield response
        finally:
            if connection is not None:
                connection.close()


def _connect(listen: str, limit_s: float | None) -> http.client.HTTPConnection:
    if not listen.startswith("unix:"):
        return http.client.HTTPConnection(listen, timeout=limit_s)
    connection = http.client.HTTPConnection("localhost", timeout=limit_s)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(limit_s)
    connection.sock.connect(listen.removeprefix("unix:"))
    return connection
