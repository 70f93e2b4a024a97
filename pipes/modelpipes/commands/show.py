"""show: a transcript for people to read."""

from __future__ import annotations

import click

from modelpipes.chat.contents import Contents, read
from modelpipes.chat.preview import Prompt, prompt_for
from modelpipes.chat.rendering.exact import to_json
from modelpipes.chat.rendering.markdown import to_markdown
from modelpipes.chat.rendering.text import to_text
from modelpipes.commands.cli import options, reading, values
from modelpipes.commands.views import prompts
from modelpipes.errors import FileError, UsageError
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline


@click.command(context_settings=options.settings)
@click.argument("transcript", metavar="TRANSCRIPT|-", type=values.TRANSCRIPT)
@click.option("--format", "form", type=click.Choice(["text", "markdown", "html", "json"]), default="text",
              show_default=True, help="Text for a terminal, or a file to keep.")  # fmt: skip
@click.option(
    "--as",
    "seat",
    metavar="SEAT",
    type=values.TALKED,
    help="What this member was told, instead: the messages of a turn.",
)
@click.option("--turn", metavar="N", type=click.IntRange(0), help="Of which turn.  [its last one]")
@click.option("--show-thinking", is_flag=True, help="A reasoning model's thoughts as well.")
@click.option("--max-seconds", type=options.SECONDS, default="none", show_default=True,
              help="Longest wait for the end of stdin.")  # fmt: skip
@options.lenient
@click.pass_context
def command(
    ctx: click.Context, transcript: str, form: str, seat: str | None, turn: int | None, show_thinking: bool,
    max_seconds: float,
) -> int:  # fmt: skip
    """Show a conversation: who said what, and where the time went.

    A transcript that is still being written or damaged is shown as far as it can
    be read; the rest is told on stderr. One of a version to come is refused.

    \b
    Examples:
      modelpipes show talk.jsonl
      modelpipes show talk.jsonl --format html > talk.html
      modelpipes show - --format json < talk.jsonl
      modelpipes show talk.jsonl --as bob --turn 2
    """
    name = "stdin" if transcript == "-" else transcript
    limit = Deadline.after(options.bounded(max_seconds))
    contents = read(reading.read_stdin_bytes(limit) if transcript == "-" else reading.read_transcript(transcript))
    if not contents.is_transcript:
        raise FileError(f"{name}: is no transcript; one is made with chat-models --transcript FILE")
    if contents.refusal:
        raise FileError(f"{name}: {contents.refusal}")
    if seat is not None or turn is not None:
        prompts.write([_told(name, contents, seat, turn)], as_json=form == "json")
        return 0
    match form:
        case "json":
            output.write_json(to_json(contents, show_thinking=show_thinking))
        case "html":
            from modelpipes.chat.rendering.page import to_html  # lazily: it renders Markdown, 40 ms to load

            output.write_text(to_html(contents, show_thinking=show_thinking))
        case "markdown":
            output.write_text(to_markdown(contents, show_thinking=show_thinking))
        case _:
            output.write_text(to_text(contents, output.width(), show_thinking=show_thinking))
    if complaints := contents.complaints():
        output.say(f"{ctx.info_name}: {name}: {'; '.join(complaints)}")
    return FileError.exit_code if contents.unreadable_lines else 0


def _told(name: str, contents: Contents, seat: str | None, turn: int | None) -> Prompt:
    """What a member was told for a turn, its last one where none is named."""
    if seat is None:
        raise UsageError("--turn goes with --as SEAT, whose turn it is")
    if contents.header is None:
        raise FileError(f"{name}: has no header, which says who was told what")
    if seat not in contents.header.members:
        raise UsageError(f"--as {seat}: no member of this conversation; those are {', '.join(contents.header.members)}")
    spoken = [each.turn for each in contents.turns if each.sender == seat]
    last = contents.turns[-1].turn if contents.turns else -1
    if turn is None:
        turn = spoken[-1] if spoken else last + 1
    elif turn > last + 1:
        raise UsageError(f"--turn {turn}: the conversation has come to turn {last}")
    return prompt_for(contents.header, contents.turns, seat, turn)
