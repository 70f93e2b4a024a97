"""find-gguf: what models there are, and what fits the card."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from modelpipes import output
from modelpipes.commands import cards, options
from modelpipes.errors import UsageError
from modelpipes.fit.listing import SORTS, Filter, Line, describe, sort_lines
from modelpipes.fit.settings import Settings
from modelpipes.fit.survey import Survey
from modelpipes.gguf import places
from modelpipes.gguf.modelfile import ModelFile, Problem, path_base64, printable
from modelpipes.gguf.scan import find_model_files

DAY_S = 86400
PROGRESS_S = 0.5
# Columns that a narrow terminal does without, the least needed first.
DROPPED_FIRST = ("trained", "arch", "size", "params", "quant", "max ctx")
NUMBERS = ("params", "size", "trained", "memory", "max ctx")  # columns
MIN_PATH = 16
FORMATS = ("table", "json", "jsonl", "csv")


@click.command(context_settings=options.settings)
@click.argument("folders", metavar="[DIR]...", nargs=-1)
@click.option("--format", "format_", type=click.Choice(FORMATS), default="table", help="How to report.  [table]")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--sort", type=click.Choice(list(SORTS)), default="name", show_default=True, help="Which file comes first.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--ctx-size", type=click.IntRange(1), default=4096, metavar="N", help="Context in tokens.  [4096]")
@cards.prediction_options
@cards.card_options
@click.option("--gpu-fit/--no-gpu-fit", default=True, help="Rate the files on the card.  [yes]")
@click.option("--fits", is_flag=True, help="Only what fits.")
@click.option("--min-size", type=options.BYTES, metavar="SIZE", help="Only files of at least SIZE, as 500MB or 4G.")
@click.option("--max-size", type=options.BYTES, metavar="SIZE", help="Only files of at most SIZE.")
@click.option("--max-age", type=click.FloatRange(0), metavar="DAYS", help="Only files that changed in DAYS.")
@click.option("--arch", multiple=True, metavar="ARCH", help="Only this architecture; may be a pattern.")
@click.option("--quant", multiple=True, metavar="QUANT", help="Only this quantisation, as Q4_K_M, or q4*.")
@click.option("--strict", is_flag=True, help="Walk every header whole, trusting no short cut.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep what was read before.")
@click.option("-v", "--verbose", is_flag=True, help="Tell where was looked, and why a file fits or not.")
@options.version
def command(
    folders: tuple[str, ...], format_: str, as_json: bool, sort: str, reverse: bool, ctx_size: int, kv_type: str | None,
    parallel: int, flash_attn: bool, gpu: str, vram: int | None, reserve: int, gpu_fit: bool, fits: bool,
    min_size: int | None, max_size: int | None, max_age: float | None, arch: tuple[str, ...],
    quant: tuple[str, ...], strict: bool, no_cache: bool, verbose: bool,
) -> int:  # fmt: skip
    """Find GGUF files; tell what they are, what memory they need and what fits.

    Looks in DIR (or at a file), else in $SEARCH_PATH, else where models usually
    lie: ~/models, LM Studio, Hugging Face, llama.cpp, Ollama.

    \b
    fits     all of it, with the reserve kept free
    tight    only into the reserve, or with a smaller context
    partial  some layers, or all but the experts; the rest in host memory
    no       neither

    \b
    Examples:
      find-gguf
      find-gguf ~/models --gpu rtx4090 --ctx-size 16384 --sort fit
      find-gguf --fits --vram 8GB --format json | jq -r '.files[].path'
      find-gguf --gpu '2x rtx3060' --kv-type q8_0 --sort memory
    """
    given = Filter(
        fits=fits,
        min_size=min_size,
        max_size=max_size,
        modified_after_s=None if max_age is None else time.time() - max_age * DAY_S,
        architectures=arch,
        quantizations=quant,
    )
    if fits and not gpu_fit:
        raise UsageError("--fits asks what --no-gpu-fit leaves out")
    chosen = cards.choose_cards(gpu, vram) if gpu_fit else ()
    room = cards.room_of(chosen, reserve) if gpu_fit else None
    settings = Settings(
        n_ctx=ctx_size, n_parallel=parallel, flash_attn=flash_attn, type_k=kv_type or "f16", type_v=kv_type or "f16",
        backend="cuda",
    )  # fmt: skip
    started = time.monotonic()
    survey = Survey(settings, room, strict=strict, cached=not no_cache)
    searched = list(folders) or places.default_places()
    problems: list[Problem] = []
    lines: list[Line] = []
    for found in with_progress(find_model_files(searched)):
        if isinstance(found, Problem):
            problems.append(found)
        elif given.wants_file(found):
            judged = survey.rate_file(found)
            if isinstance(judged, Problem):
                problems.append(judged)
            elif given.wants(line := describe(found, judged)):
                lines.append(line)
    survey.save()
    places.remember(folders)
    sort_lines(lines, sort, reverse=reverse)
    head = {
        "gpu": cards.describe_cards(chosen, is_given=vram is not None) if chosen else None,
        "settings": {
            "ctx_size": ctx_size, "kv_type": settings.type_k, "parallel": parallel, "flash_attn": flash_attn,
            "reserve_bytes": reserve, "host_available_bytes": room and room.host_bytes,
        },
    }  # fmt: skip
    report(lines, problems, head, "json" if as_json else format_)
    if verbose:
        spent = time.monotonic() - started
        output.say(f"looked in {', '.join(map(printable, searched)) or 'no folder'}: {len(lines)} shown, "
                   f"{survey.n_read} headers read, {spent:.2f} s")  # fmt: skip
        for line in lines:
            if line.reason:
                output.say(f"{line.path}: {line.reason}")
    if not lines and not problems:
        output.say(hint(searched, bool(folders)))
    return 1 if problems and not lines and not survey.n_rated else 0


def with_progress(found: Iterable[ModelFile | Problem]) -> Iterator[ModelFile | Problem]:
    """The same; while it lasts, a count on a terminal's stderr."""
    next_at = time.monotonic() + PROGRESS_S
    shown = False
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    for count, each in enumerate(found):
        yield each
        if is_terminal and time.monotonic() >= next_at:
            output.prompt(f"\r{count} files …")
            next_at = time.monotonic() + PROGRESS_S
            shown = True
    if shown:
        output.prompt("\r" + " " * 24 + "\r")


def hint(searched: list[str], is_asked: bool) -> str:
    """Where to look, for who found nothing."""
    if is_asked:
        return f"no GGUF file in {', '.join(map(printable, searched))} that was asked for"
    where = ", ".join(map(printable, searched)) or "none of the known model folders, which are not here"
    return f"no GGUF file in {where}: name a folder (find-gguf DIR) or set SEARCH_PATH"


def report(lines: list[Line], problems: list[Problem], head: dict[str, Any], format_: str) -> None:
    """Write the lines to stdout; what could not be read to stderr, but for JSON, which has a place for it."""
    if format_ == "json":
        output.write_json({**head, "files": lines, "problems": [problem_record(each) for each in problems]})
        return
    if format_ == "jsonl":
        for line in lines:
            output.write_json(line)
    elif format_ == "csv":
        write_csv(lines)
    else:
        write_table(lines, head)
    for each in problems:
        at = "" if each.offset is None else f" (at byte {each.offset})"
        output.say(f"{printable(each.path)}: {each.reason}{at}")


def problem_record(problem: Problem) -> dict[str, Any]:
    path, exact = printable(problem.path), path_base64(problem.path)
    return {"path": path, "path_bytes": exact, "reason": problem.reason, "offset": problem.offset}


def write_csv(lines: list[Line]) -> None:
    """As RFC 4180 has it: a header, CRLF, quotes where needed."""
    import csv
    import io

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    fields = [name for name in Line.__struct_fields__ if name != "memory"]
    writer.writerow([*fields, "device_bytes", "host_bytes"])
    for line in lines:
        host = None if line.memory is None else sum(line.memory["host"].values())
        writer.writerow([*(getattr(line, name) for name in fields), line.device_bytes, host])
    output.write_text(text.getvalue())


def write_table(lines: list[Line], head: dict[str, Any]) -> None:
    """Name, what it is, what it needs, whether it fits, and the path; in a narrow terminal the least of it."""
    width = output.width()
    columns = dict(COLUMNS)
    if head["gpu"] is None:
        del columns["fit"], columns["max ctx"]
    rows = {name: [show(line) for line in lines] for name, show in columns.items()}
    for name in DROPPED_FIRST:
        taken = sum(2 + max([len(key), *(len(cell) for cell in cells)]) for key, cells in rows.items() if key != "path")
        if width is None or taken + MIN_PATH <= width:
            break
        rows.pop(name, None)
    output.write_table(list(zip(*rows.values(), strict=True)), list(rows), width, NUMBERS)


def amount(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / (1 << 30):.1f}G"


def count(number: int) -> str:
    """Parameters as people say them: 8.0B, 596M."""
    for letter, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= scale:
            return f"{number / scale:.3g}{letter}"
    return str(number)


def verdict(line: Line) -> str:
    """How it fits, and what that means: a context, or layers."""
    if line.fit == "partial":
        return f"partial {line.gpu_layers}/{line.n_layers}" + (" -experts" if line.cpu_moe else "")
    if line.fit == "tight":
        return "tight " + ("ctx" if line.reason.startswith("at ") else "reserve")
    return line.fit or "-"


COLUMNS = {
    "name": lambda line: line.name,
    "arch": lambda line: line.architecture or line.kind,
    "params": lambda line: count(line.parameters),
    "quant": lambda line: line.quantization,
    "size": lambda line: amount(line.size_bytes),
    "trained": lambda line: str(line.context_length or "-"),
    "memory": lambda line: amount(line.device_bytes) + ("~" if line.estimate == "generic" else ""),
    "fit": verdict,
    "max ctx": lambda line: str(line.max_context or "-"),
    "path": lambda line: line.path,
}
