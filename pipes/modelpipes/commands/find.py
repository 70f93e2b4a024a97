"""find-gguf: what models there are, and what fits the card."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import msgspec

from modelpipes.commands.cli import cards, options, values
from modelpipes.commands.views import cards as cardview
from modelpipes.commands.views.listing import FORMATS, ListingAsked, tell, write_listing
from modelpipes.engine.admission import free_space_of
from modelpipes.errors import FileError, UsageError
from modelpipes.fit.listing import SORTS, Filter, Line, list_files, sort_lines
from modelpipes.fit.spec import EngineSpec
from modelpipes.fit.survey import Survey
from modelpipes.gguf import places
from modelpipes.terminal import output

if TYPE_CHECKING:
    from modelpipes.config.settings import Use
    from modelpipes.gguf.findings import DataCheck
    from modelpipes.gguf.modelfile import ModelFile

DAY_S = 86400
MAX_CONTEXT = (1 << 32) - 1  # llama.cpp's n_ctx has 32 bits
CHECK = ("gguf", "numpy")  # what the extra of that name installs


@click.command(context_settings=options.settings)
@click.argument("folders", metavar="[DIR]...", nargs=-1, type=values.PLACE)
@click.option("--dir", "more", multiple=True, metavar="DIR", type=values.PLACE,
              help="The same as DIR; may be repeated.")  # fmt: skip
@options.formats(*FORMATS)
@click.option("--sort", type=click.Choice(list(SORTS)), default="name",
              help="By name, or the best, largest or newest first.  [name]")  # fmt: skip
@click.option("--reverse", is_flag=True, help="The other way round.")
@options.option("--ctx-size", key="find-gguf.ctx_size", type=click.IntRange(1, MAX_CONTEXT), default=4096, metavar="N",
              help="Context in tokens.  [4096]")  # fmt: skip
@cards.prediction_options
@cards.card_options
@cards.use_option(lambda use: {"reserve": 0, "ctx_size": use.ctx_size, "kv_type": use.kv_type})
@click.option("--gpu-fit/--no-gpu-fit", default=True, help="Rate the files on the card.  [yes]")
@click.option("--fits", is_flag=True, help="Only what fits.")
@click.option("--min-size", type=options.BYTES, metavar="SIZE", help="Only files of at least SIZE, as 500MB or 4G.")
@click.option("--max-size", type=options.BYTES, metavar="SIZE", help="Only files of at most SIZE.")
@click.option("--max-age", type=click.FloatRange(0), metavar="DAYS", help="Only files that changed in DAYS.")
@click.option("--arch", multiple=True, metavar="ARCH", help="Only this architecture, as llama, or qwen*.")
@click.option("--quant", multiple=True, metavar="QUANT", help="Only this quantisation, as Q4_K_M, or q4*.")
@click.option("--strict", is_flag=True, help="Walk every header whole, trusting no short cut.")
@click.option("--check-data", is_flag=True, help="Read all data; tell what is damaged. Exit code 1 if anything is.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep what was read before.")
@click.option("-v", "--verbose", is_flag=True, help="Tell where was looked, and why a file fits or not.")
@options.common
def command(
    folders: tuple[str, ...], more: tuple[str, ...], use: Use | None, format_: str, sort: str, reverse: bool,
    ctx_size: int, kv_type: str, parallel: int, flash_attn: bool, gpu: str, vram: int | None, reserve: int,
    gpu_fit: bool, fits: bool, min_size: int | None, max_size: int | None, max_age: float | None,
    arch: tuple[str, ...], quant: tuple[str, ...], strict: bool, check_data: bool, no_cache: bool, verbose: bool,
) -> int:  # fmt: skip
    """Find GGUF files; tell what they are, what memory they need and what fits.

    Looks in DIR (or at a file), else in $SEARCH_PATH, else where models usually
    lie: ~/models, LM Studio, Hugging Face, llama.cpp, Ollama.

    \b
    fits     all of it, with the reserve kept free
    tight    only into the reserve, or with a smaller context
    partial  so many layers, or all but the experts; the rest in host memory
    no       neither

    With --use each file is rated as one of the models of that use case, with its
    memory and context, and the quantisation is advised that leaves it room.

    \b
    Examples:
      find-gguf
      find-gguf ~/models --gpu rtx4090 --ctx-size 16384 --sort fit
      find-gguf --fits --vram 8GB --format json | jq -r '.files[].path'
      find-gguf --gpu '2x rtx3060' --kv-type q8_0 --sort memory
      find-gguf --use two --fits
      find-gguf --check-data ~/models
    """
    folders += more
    if fits and not gpu_fit:
        raise UsageError("--fits asks what --no-gpu-fit leaves out")
    if not flash_attn and kv_type not in cards.PLAIN_KV_TYPES:
        raise UsageError(f"--kv-type {kv_type} needs flash attention")
    wanted = Filter(
        fits=fits,
        min_bytes=min_size,
        max_bytes=max_size,
        modified_after_s=None if max_age is None else time.time() - max_age * DAY_S,
        architectures=arch,
        quantizations=quant,
    )
    settings = EngineSpec(
        n_ctx=ctx_size, n_parallel=parallel, flash_attn=flash_attn, type_k=kv_type, type_v=kv_type, backend="cuda"
    )
    chosen = cards.choose_cards(gpu, vram, use) if gpu_fit else ()
    space = free_space_of(chosen).space(reserve, is_steady=True) if gpu_fit else None
    searched = folders or places.default_places()
    with Survey(settings, space, strict=strict, cached=not no_cache) as survey, output.Progress() as progress:
        check = data_checker(progress.show, strict=strict) if check_data else None
        listing = list_files(searched, survey, wanted, progress.show, check)
    if not no_cache:
        places.remember(folders)
    sort_lines(listing.lines, sort, reverse=reverse)
    if use:
        advise(listing.lines, use)
    described = cardview.describe(chosen, is_given=vram is not None or use is not None) if chosen else None
    asked = ListingAsked(ctx_size, kv_type, parallel, flash_attn, reserve, space.host_bytes if space else None)
    write_listing(listing, described, asked, format_)
    tell(listing, searched, verbose=verbose)
    for refusal in filter(None, () if no_cache else (survey.refusal, places.refusal())):
        output.say(refusal)
    if verbose:
        output.say(f"looked in {', '.join(searched) or 'no folder'}: {len(listing.lines)} of {listing.n_files} files "
                   f"shown, {survey.n_read} headers read")  # fmt: skip
    if check_data:
        return 1 if listing.problems or any(line.is_damaged for line in listing.lines) else 0
    return 1 if listing.problems and not listing.n_files else 0


def data_checker(progress: Callable[[str], None], *, strict: bool) -> Callable[[ModelFile], DataCheck]:
    """What reads the data of a file. Raises FileError where what it needs is not installed."""
    import importlib.util  # lazily: only this needs it

    missing = [name for name in CHECK if importlib.util.find_spec(name) is None]
    if missing:
        how = "install modelpipes with its extra check: pip install 'modelpipes[check]'"
        raise FileError(f"--check-data needs {' and '.join(missing)}, not on this machine: {how}")
    from modelpipes.gguf.data.check import check_data  # lazily: headers are read without numpy

    return lambda file: check_data(file, progress, strict=strict)


def advise(lines: list[Line], use: Use) -> None:
    """Tell for each model the quantisation that the use case has for its number of parameters."""
    from modelpipes.values.units import parse_count

    quants = sorted((parse_count(size), quant) for size, quant in use.quant.items())
    for i, line in enumerate(lines):
        if line.kind == "model":
            advised = next((quant for most, quant in quants if line.parameters <= most), None)
            lines[i] = msgspec.structs.replace(line, advised_quantization=advised)
