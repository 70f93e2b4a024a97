"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import os
import select
from typing import Any

import click

from modelpipes import __version__, units
from modelpipes.deadline import Deadline
from modelpipes.errors import DeadlineError, MessageError, UsageError


class Seconds(click.ParamType[float]):
    """A time such as 30, 500ms or 2m, as seconds; `none` is infinity, which bounds nothing."""

    name = "time"

    def __init__(self, *, may_be_0: bool = False) -> None:
        self._may_be_0 = may_be_0

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if self._may_be_0 and value == "0":
            return 0.0
        try:
            seconds = units.parse_seconds(value) if isinstance(value, str) else value
        except UsageError as e:
            self.fail(str(e), param, ctx)
        return float("inf") if seconds is None else float(seconds)


class Bytes(click.ParamType[int]):
    """A size such as 14GB (10^9), 14G or 14GiB (2^30), or 500MB, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return units.parse_bytes(value) if isinstance(value, str) else int(value)
        except UsageError as e:
            self.fail(str(e), param, ctx)


BYTES = Bytes()
SECONDS = Seconds()
SECONDS_OR_0 = Seconds(may_be_0=True)


def bounded(seconds: float) -> float | None:
    """What the rest of the house calls no bound."""
    return None if seconds == float("inf") else seconds


directory = click.option(
    "-d", "--dir", "directory", metavar="DIR", help="The room.  [$PIPE_DIR, else the default room]"
)
no_fit_check = click.option("--no-fit-check", is_flag=True, help="Start engines also where memory will not do.")
as_json = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
version = click.version_option(__version__, message="%(prog)s %(version)s")
settings = {"help_option_names": ["-h", "--help"], "max_content_width": 80}

# option: (metavar, type, help); attach-model takes them as they are, chat-models as [NAME=]VALUE
VOICE: dict[str, tuple[str, Any, str]] = {
    "system": ("TEXT|@FILE", str, "What the model is told first."),
    "max-tokens": ("N", click.IntRange(1), "Longest answer."),
    "temperature": ("T", click.FloatRange(0), "How freely it chooses words."),
    "top-p": ("P", click.FloatRange(0, 1), "Of the likeliest words, this share."),
    "seed": ("N", click.IntRange(0), "Same seed, same answer."),
    "model-name": ("NAME", str, "Which of a server's models."),
    "api-key-file": ("FILE", str, "A server's key.  [$OPENAI_API_KEY]"),
    "ctx-size": ("N", click.IntRange(64), "Context of a conversation, in tokens.  [4096]"),
    "gpu-layers": ("N", click.IntRange(0), "Layers on the card.  [as many as fit]"),
    "parallel": ("N", click.IntRange(1, 64), "Messages to work on at a time.  [1]"),
    "engine": ("ENGINE", click.Choice(["auto", "llama-server", "embedded"]), "auto, llama-server or embedded.  [auto]"),
    "engine-arg": ("ARG", str, "Passed to the engine as it is; may be repeated."),
}
REPEATABLE = "engine-arg"


def voice_options(command: Any) -> Any:
    """The options of `VOICE`, each with its type."""
    for name, (metavar, kind, text) in reversed(VOICE.items()):
        command = click.option(f"--{name}", type=kind, metavar=metavar, multiple=name == REPEATABLE, help=text)(command)
    return command


def shared_voice_options(command: Any) -> Any:
    """The options of `VOICE` for several members: VALUE for all, NAME=VALUE for one."""
    for name, (metavar, _, text) in reversed(VOICE.items()):
        option = click.option(f"--{name}", multiple=True, metavar=f"[NAME=]{metavar}", help=text)
        command = option(command)
    return command


def read_text(value: str) -> str:
    """The text itself, or what the file says that `@FILE` names."""
    if not value.startswith("@"):
        return value
    try:
        with open(os.path.expanduser(value[1:]), encoding="utf-8") as file:
            return file.read().strip()
    except OSError as e:
        raise UsageError(f"{value[1:]}: cannot be read: {(e.strerror or str(e)).lower()}") from None
    except ValueError as e:  # no UTF-8, or no file's name
        raise UsageError(f"{value[1:]}: cannot be read: {e}") from None


def read_stdin(limit: Deadline) -> str:
    """All of stdin, as text; MessageError where it is none, DeadlineError where it does not end in time."""
    try:
        return read_stdin_bytes(limit).decode("utf-8")
    except UnicodeDecodeError as e:
        raise MessageError(f"stdin is not UTF-8 text: byte {e.start} cannot be read") from None


def read_stdin_bytes(limit: Deadline) -> bytes:
    """All of stdin; MessageError where it cannot be read, DeadlineError where it does not end in time."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    data = bytearray()
    try:
        while True:
            if not poll.poll(limit.poll_ms()):
                raise DeadlineError("stdin did not end within the time allowed (--max-seconds)")
            try:
                piece = os.read(0, 65536)
            except BlockingIOError:
                continue  # a neighbour who shares it made it so, and was faster
            if not piece:
                return bytes(data)
            data += piece
    except OSError as e:
        raise MessageError(f"stdin cannot be read: {(e.strerror or str(e)).lower()}") from None
