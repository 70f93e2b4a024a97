"""fit-models: which models share a card, with which settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from modelpipes.commands.cli import cards, options, values
from modelpipes.commands.cli.configured import is_from_file
from modelpipes.commands.views import cards as cardview
from modelpipes.commands.views import plan_json, plan_sh
from modelpipes.commands.views.plan import View, write_document, write_screen
from modelpipes.engine.admission import free_space_of
from modelpipes.engine.locate import find_model
from modelpipes.errors import PipesError, UsageError
from modelpipes.fit.plan import Wishes, plan
from modelpipes.fit.rating import LEAST_CONTEXT
from modelpipes.fit.search import KV_TYPES
from modelpipes.gguf.modelfile import stem
from modelpipes.gguf.shards import read_model
from modelpipes.gguf.types import CACHE_TYPES
from modelpipes.terminal.drawing import SCREEN

if TYPE_CHECKING:
    from modelpipes.config.settings import Use


@click.command(context_settings=options.settings)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=values.MODEL)
@cards.card_options
@cards.use_option(lambda use: {"reserve": 0, "min_ctx": use.ctx_size, "kv_type": use.kv_type})
@click.option("--ctx-size", type=click.IntRange(1), metavar="N",
              help="Context of each model, in tokens.  [the largest]")  # fmt: skip
@click.option("--min-ctx", type=click.IntRange(1), metavar="N",
              help=f"Without --ctx-size: at least so much.  [{LEAST_CONTEXT}]")  # fmt: skip
@click.option("--kv-type", type=click.Choice(list(CACHE_TYPES)), metavar="TYPE",
              help=f"Type of the caches of keys and values.  [the best of {', '.join(KV_TYPES)}]")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1, 256), default=1, metavar="N",
              help="Conversations at a time, which share the context.  [1]")  # fmt: skip
@click.option("--flash-attn/--no-flash-attn", default=True, help="Flash attention.  [yes]")
@click.option("--whole", is_flag=True, help="No layers and no experts on the host.")
@options.formats("table", "json", "sh", text="How to report; sh: as llama-server commands.")
@options.common
@click.pass_context
def command(
    ctx: click.Context, /, files: tuple[str, ...], use: Use | None, gpu: str, vram: int | None, reserve: int,
    ctx_size: int | None, min_ctx: int | None, kv_type: str | None, parallel: int, flash_attn: bool, whole: bool,
    format_: str,
) -> None:  # fmt: skip
    """Plan several models for one card, or for the cards there are.

    FILE is a model file or a name that find-gguf prints; one given twice gets
    two engines. All of them whole comes first: with the largest common context,
    then the best KV type. Else, at the least context, the host takes over
    experts and layers. Else some models take turns, and the exit code is 1.

    With --use they share what that use case has for all its models together, with
    its context as the least.

    \b
    Examples:
      fit-models llama-3.1-8b.gguf qwen2.5-7b.gguf
      fit-models *.gguf --gpu 'RTX 3060' --ctx-size 8192 --kv-type q8_0
      fit-models a.gguf b.gguf --format json | jq '.models[].context'
      fit-models a.gguf b.gguf --gpu '2x rtx3090' --format sh > engines.sh
      fit-models a.gguf b.gguf --use two
    """
    if ctx_size is not None and min_ctx is not None:
        if not is_from_file(ctx, "min_ctx"):
            raise UsageError("--ctx-size fixes the context and --min-ctx bounds it: give one of them")
        min_ctx = None
    if use and len(files) > use.models:
        raise UsageError(f"--use: that case has {use.models} at once, and here are {len(files)} models")
    paths = [find_model(file) for file in files]
    headers = [read_model(path) for path in paths]
    wishes = Wishes(
        n_ctx=ctx_size,
        min_ctx=min_ctx or LEAST_CONTEXT,
        kv_types=(kv_type,) if kv_type else KV_TYPES,
        whole_only=whole,
        n_parallel=parallel,
        flash_attn=flash_attn,
    )
    chosen = cards.choose_cards(gpu, vram, use, for_all=True)
    space = free_space_of(chosen).space(reserve, is_steady=True)
    made = plan(headers, space, wishes)
    names = [stem(path) if _is_path(file, path) else file for file, path in zip(files, paths, strict=True)]
    view = View(made, names, paths, chosen, space)
    if format_ == "json":
        asked = plan_json.PlanAsked(
            ctx_size, wishes.min_ctx, wishes.kv_types, parallel, flash_attn, whole, reserve, space.host_bytes
        )
        plan_json.write(view, cardview.describe(chosen, is_given=vram is not None or use is not None), asked)
    elif format_ == "sh":
        if made.is_together:
            plan_sh.write(view)
    elif format_ == SCREEN:
        write_screen(view)
    else:
        write_document(view, format_)
    if not made.is_together:
        raise PipesError(f"no plan for all of them together: {made.reason}")


def _is_path(file: str, path: str) -> bool:
    return os.path.abspath(os.path.expanduser(file)) == path
