"""A listing as find-gguf shows it: a table, for the screen or as a document; JSON, JSON Lines, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from modelpipes.commands.views.cards import DescribedCards
from modelpipes.fit.listing import Line, Listing
from modelpipes.gguf.findings import DataCheck, DataFinding
from modelpipes.gguf.modelfile import path_base64, printable
from modelpipes.gguf.types import TENSOR_TYPES, TYPE_IDS
from modelpipes.terminal import output
from modelpipes.terminal.table import Table
from modelpipes.values.units import format_bytes, format_count

FORMATS = ("table", "json", "jsonl", "csv")
UNITS = (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20))
# What a finding of each severity is called, and what to do about it.
FINDINGS = {
    "error": ("damaged", "get the file again"),
    "suspect": ("suspect", "padding and biases are so, and a lost block may be"),
    "unchecked": ("not checked", "a newer version may know it"),
}
COUNTS = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3))


class ListingAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the files were rated for: the context in tokens, and the memory that counted."""

    ctx_size: int
    kv_type: str
    parallel: int
    flash_attn: bool
    reserve_bytes: int
    host_available_bytes: int | None  # None: nothing was rated


class Unread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that could not be read, why, and at which byte it shows. The path is as in a line."""

    path: str
    path_bytes: str | None
    reason: str
    offset: int | None


class ListingReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of a listing as JSON says it; `gpu` is null where nothing was rated."""

    gpu: DescribedCards | None
    settings: ListingAsked
    files: list[Line]
    problems: list[Unread]


def write_listing(listing: Listing, gpu: DescribedCards | None, settings: ListingAsked, format_: str) -> None:
    """Write the lines to stdout in one of FORMATS, or as a document; JSON tells also of cards, settings, problems."""
    if format_ == "json":
        problems = [
            Unread(printable(each.path), path_base64(each.path), each.reason, each.offset) for each in listing.problems
        ]
        output.write_json(ListingReport(gpu, settings, listing.lines, problems))
    elif format_ == "jsonl":
        for line in listing.lines:
            output.write_json(line)
    elif format_ == "csv":
        output.write_text(_csv(listing.lines))
    else:
        output.write_table(_table(listing.lines, is_rated=gpu is not None), format_)


def tell(listing: Listing, searched: Sequence[str], *, verbose: bool) -> None:
    """Say on stderr what could not be read, what is damaged, and why nothing was found.

    `verbose`: also why each file fits or does not.
    """
    for problem in listing.problems:
        at = "" if problem.offset is None else f" (at byte {problem.offset})"
        output.say(f"{printable(problem.path) or repr('')}: {problem.reason}{at}")
    for line in listing.lines:
        for finding in line.data.findings if line.data else ():
            output.say(_finding(finding))
    if verbose:
        for line in listing.lines:
            if line.reason:
                output.say(f"{line.path}: {line.reason}")
    if listing.lines:
        return
    if listing.n_files:
        output.say(f"none of {listing.n_files} files is what was asked for")
    elif not listing.problems:
        nowhere = f"no GGUF file in {', '.join(map(printable, searched))}" if searched else "no known model folder here"
        output.say(f"{nowhere}: name one that has models (find-gguf DIR), or set SEARCH_PATH")


def _csv(lines: list[Line]) -> str:
    """As RFC 4180 has it: a header, CRLF, quotes where needed; the memory as two sums, of the data the verdict."""
    fields = [name for name in Line.__struct_fields__ if name != "memory"] + ["device_bytes", "host_bytes"]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(fields)
    writer.writerows([_csv_cell(getattr(line, name)) for name in fields] for line in lines)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, DataCheck):
        return value.verdict
    return str(value).lower() if isinstance(value, bool) else value


def _finding(found: DataFinding) -> str:
    """One line: which file, what is wrong, where, what to do about it."""
    label, advice = FINDINGS[found.severity]
    size = f"{format_bytes(found.size_bytes)} of " if found.kind == "zeros" else ""
    where = f"{found.tensor} ({found.type})"
    if found.severity != "unchecked":
        unit = "value" if TENSOR_TYPES[TYPE_IDS[found.type]].block_size == 1 else "block"
        where += f", row {found.row}, {unit} {found.block}"
    if found.n_tensors > 1:
        where += f", and in {format_count(found.n_tensors - 1, 'more tensor')}"
    return f"{found.path}: {label}: {size}{found.reason} in {where} (at byte {found.offset}): {advice}"


def _table(lines: list[Line], *, is_rated: bool) -> Table:
    left_out = set(() if is_rated else RATED)
    left_out |= {"advised"} if not any(line.advised_quantization for line in lines) else set()
    left_out |= {"data"} if not any(line.data for line in lines) else set()
    headers = [name for name in COLUMNS if name not in left_out]
    return Table(headers, [[COLUMNS[name](line) for name in headers] for line in lines], NUMBERS, SPARE)


def _amount(size_bytes: int | None) -> str:
    """A size as people say it: 4.6G, 604M; G is 2^30, as coreutils has it."""
    if size_bytes is None:
        return "-"
    unit, scale = next(((unit, scale) for unit, scale in UNITS if size_bytes >= scale), ("K", 1 << 10))
    return f"{size_bytes / scale:.{int(size_bytes < 100 * scale)}f}{unit}"


def _count(number: int) -> str:
    """Parameters as people say them: 8.03B, 596M."""
    # 0.9995: what would round to 1000M is 1B.
    said = (f"{number / scale:.3g}{letter}" for letter, scale in COUNTS if number >= 0.9995 * scale)
    return next(said, str(number or "-"))


def _verdict(line: Line) -> str:
    """How it fits, and by what means; or what the file is instead of a model."""
    if line.fit == "partial":
        return f"partial {line.gpu_layers}/{line.n_layers}" + " -experts" * bool(line.cpu_moe)
    if line.fit == "tight":
        return "tight reserve" if line.fit_context == line.context else "tight ctx"
    return line.fit or ("-" if line.kind == "model" else line.kind)


COLUMNS: dict[str, Callable[[Line], str]] = {
    "name": lambda line: line.name,
    "arch": lambda line: line.architecture or "-",
    "params": lambda line: _count(line.parameters),
    "quant": lambda line: line.quantization or "-",
    "advised": lambda line: line.advised_quantization or "-",
    "size": lambda line: _amount(line.size_bytes),
    "trained": lambda line: str(line.context_length or "-"),
    "memory": lambda line: _amount(line.device_bytes) + "~" * (line.estimate == "generic"),
    "fit": _verdict,
    "max ctx": lambda line: str(line.max_context or "-"),
    "data": lambda line: line.data.verdict if line.data else "-",
    "path": lambda line: line.path,
}
NUMBERS = ("params", "size", "trained", "memory", "max ctx")
RATED = ("fit", "max ctx")
SPARE = ("trained", "arch", "size", "params", "quant", "max ctx")  # in a narrow terminal, the least needed first
