"""show: a transcript for people to read."""

from __future__ import annotations

import os
import stat

import click

from modelpipes.chat.contents import read
from modelpipes.chat.rendering.exact import to_json
from modelpipes.chat.rendering.markdown import to_markdown
from modelpipes.chat.rendering.page import to_html
from modelpipes.chat.rendering.text import to_text
from modelpipes.commands.cli import options, values
from modelpipes.errors import FileError
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

READ_BYTES = 1 << 20


@click.command(context_settings=options.settings)
@click.argument("transcript", metavar="TRANSCRIPT|-", type=values.TRANSCRIPT)
@click.option("--format", "form", type=click.Choice(["text", "markdown", "html", "json"]), default="text",
              show_default=True, help="Text for a terminal, or a file to keep.")  # fmt: skip
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts as well.")
@click.option("--max-seconds", type=options.SECONDS, default="none", show_default=True,
              help="Longest wait for the end of stdin.")  # fmt: skip
@options.lenient
@click.pass_context
def command(ctx: click.Context, transcript: str, form: str, show_thinking: bool, max_seconds: float) -> int:
    """Show a conversation: who said what, and where the time went.

    A transcript that is still being written, damaged or of a newer version is
    shown as far as it can be read; the rest is told on stderr.

    \b
    Examples:
      modelpipes show talk.jsonl
      modelpipes show talk.jsonl --format html > talk.html
      modelpipes show - --format json < talk.jsonl
    """
    name = "stdin" if transcript == "-" else transcript
    limit = Deadline.after(options.bounded(max_seconds))
    contents = read(options.read_stdin_bytes(limit) if transcript == "-" else _read_file(transcript))
    if not contents.is_transcript:
        raise FileError(f"{name}: is no transcript; one is made with chat-models --transcript FILE")
    match form:
        case "json":
            output.write_json(to_json(contents, show_thinking=show_thinking))
        case "html":
            output.write_text(to_html(contents, show_thinking=show_thinking))
        case "markdown":
            output.write_text(to_markdown(contents, show_thinking=show_thinking))
        case _:
            output.write_text(to_text(contents, output.width(), show_thinking=show_thinking))
    if complaints := contents.complaints():
        output.say(f"{ctx.info_name}: {name}: {'; '.join(complaints)}")
    return FileError.exit_code if contents.unreadable_lines else 0


def _read_file(path: str) -> bytes:
    try:
        # O_NONBLOCK: where a FIFO lies in place of a file, the open must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as e:
        raise FileError(f"{path}: cannot open the transcript: {getattr(e, 'strerror', None) or e}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileError(f"{path}: a transcript must be a regular file; give - to read stdin")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as e:
        raise FileError(f"{path}: cannot read the transcript: {e.strerror}") from None
    finally:
        os.close(descriptor)
