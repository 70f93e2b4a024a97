"""An annotated configuration for a card: every key, the use cases of its memory worked out by one rule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelpipes.config.settings import SECTIONS, VERSION, VERSION_TEXT, Amount, Use, keys
from modelpipes.config.writing import write_value
from modelpipes.errors import UsageError
from modelpipes.gguf.types import CacheType
from modelpipes.values.formats import CONFIGURATION

GB = 10**9
DESKTOP_GB = 2  # of the number that a card is called by, which counts in GiB
SYSTEM_GB = 4  # of a machine without one
CPU_GB = 16  # the memory of the machine that the example for the CPU is for
CASES = {"one": (1, 32768), "two": (2, 8192), "three": (3, 4096)}  # models at once, and the context of each
SMALL_GB = 14  # with less than a 16 GB card gives, a single model has half the context
# Bits a weight takes on average in llama.cpp's files, best first.
QUANTS = {
    "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.87, "IQ4_XS": 4.3, "Q3_K_M": 3.95, "IQ3_XXS": 3.15,
}  # fmt: skip
# Up to so many parameters: bytes of an f16 cache for a token, of models with grouped heads, as nearly all have since
# 2024 (qwen3-4b, qwen3-8b, qwen2.5-14b, mistral-small-24b, qwen2.5-32b, qwen2.5-72b). Others need up to 4 times that.
CACHE_BYTES = {"4.5B": 147456, "8.5B": 147456, "15B": 196608, "25B": 163840, "33B": 262144, "73B": 327680}
KV_TYPE: CacheType = "q8_0"
KV_SHARE = 34 / 64  # of an f16 cache: 32 values in 34 bytes
BESIDES_GB = 0.9  # computing, and the engine's own share of the card
COMMENT_COLUMN = 40

HEAD = """\
# Configuration of modelpipes for {what}: every key there is, each explained once.
# Copy it to ~/.config/modelpipes/config.toml, or name it: --config FILE, or $MODELPIPES_CONFIG.
# `modelpipes config show` prints what is in force and where it comes from.
#
# A flag beats an environment variable, which beats this file, which beats the default. What is commented out shows
# the default, or in [brackets] what holds without it. Sizes: "8GB" (10^9), "8GiB" (2^30) or bytes; times: seconds,
# "500ms", "30s", "2m"; "none" is no limit. Relative paths are meant from this file's folder.
# Made by: modelpipes config example --gpu {gpu}
"""
RULE = """
# What fits at once: {all_gb:g} GB for models, whole, halved and cut in three, rounded down to half a GB. The rest of
# {total_gb:.1f} GB is for {rest}, and for what nobody predicts. `quant` is the best quantisation that this leaves
# room for, by the number of parameters, for models with grouped heads; find-gguf rates every other one.
"""


def example_for(gpu: str) -> str:
    """The configuration for a card that is named as rtx3090, or for `cpu`; UsageError where the name is not of one."""
    from modelpipes.machine.cards import parse_gpu

    if gpu == "cpu":
        return write_example("cpu", None)
    cards = parse_gpu(gpu).cards
    if len(cards) != 1 or cards[0].stand_in:
        raise UsageError(f"--gpu {gpu}: name one card, or cpu")
    return write_example(cards[0].name, cards[0].total_bytes)


def write_example(gpu: str, total_bytes: int | None) -> str:
    """The text for a card with so much memory; None: for a machine without one."""
    card_gb = round(total_bytes / (1 << 30)) if total_bytes else CPU_GB
    spared = DESKTOP_GB if total_bytes else SYSTEM_GB
    if card_gb <= spared:
        raise UsageError(f"{gpu} has {card_gb} GB, of which {spared} are for other things: no model is left room")
    uses = dict(use_cases(card_gb - spared))
    what = f"{gpu} ({card_gb} GB)" if total_bytes else f"a machine without a card, {CPU_GB} GB of memory"
    name = re.sub("[^a-z0-9]", "", gpu.lower()) if total_bytes else "cpu"
    lines = [HEAD.format(what=what, gpu=name), "\n", _line(f"# {VERSION} = {CONFIGURATION.version}", VERSION_TEXT)]
    given: dict[str, Mapping[str, Any]] = {
        "voice": {"ctx_size": 8192 if card_gb - spared >= SMALL_GB else 4096},
        "watch-gpu": {"alert_vram": 95, "alert_temp": 85} if total_bytes else {},
    }
    for heading, kind in SECTIONS.items():
        if heading == "use.NAME":
            rest = "the desktop" if total_bytes else "everything else"
            total_gb = (total_bytes or CPU_GB << 30) / GB
            lines.append(RULE.format(all_gb=card_gb - spared, total_gb=total_gb, rest=rest))
            for name, use in uses.items():
                explained = {} if name != next(iter(uses)) else {key.name: key.text for key in keys(Use)}
                lines.append(f"{'' if explained else chr(10)}[use.{name}]\n{''.join(_use_lines(use, explained))}")
            continue
        name = heading.replace("NAME", "qwen")
        is_asked = heading != "models.NAME"
        lines.append(f"\n# {(kind.__doc__ or '').partition(chr(10))[0]}\n{'' if is_asked else '# '}[{name}]\n")
        lines += _lines(heading, given.get(heading, {}))
    return "".join(lines)


def use_cases(all_gb: float) -> Iterator[tuple[str, Use]]:
    """Each case of CASES: its share of the memory, rounded down to half a GB, and what that leaves room for."""
    for name, (count, ctx_size) in CASES.items():
        memory = Amount(int(all_gb / count * 2) * GB // 2)
        tokens = ctx_size // 2 if all_gb < SMALL_GB and count == 1 else ctx_size
        quant = {size: found for size in CACHE_BYTES if (found := best_quant(size, memory, tokens))}
        yield name, Use(memory=memory, ctx_size=tokens, kv_type=KV_TYPE, models=count, quant=quant)


def best_quant(size: str, memory: int, ctx_size: int) -> str | None:
    """The best quantisation with which models up to this size take no more than `memory` bytes."""
    parameters = float(size.removesuffix("B")) * GB
    weights = memory - BESIDES_GB * GB - CACHE_BYTES[size] * KV_SHARE * ctx_size
    return next((name for name, bits in QUANTS.items() if parameters * bits / 8 <= weights), None)


def _use_lines(use: Use, explained: Mapping[str, str]) -> Iterator[str]:
    for name in use.__struct_fields__:
        yield _line(f"{name} = {write_value(getattr(use, name))}", explained.get(name, ""))


def _lines(heading: str, given: Mapping[str, Any]) -> Iterator[str]:
    for key in keys(SECTIONS[heading]):
        value = given.get(key.name, key.example if key.default is None else key.default)
        written = f"{'' if key.name in given else '# '}{key.name} = {write_value(value)}"
        yield _line(written, key.text)


def _line(written: str, text: str) -> str:
    if not text or len(written) > COMMENT_COLUMN - 2:
        return f"# {text}\n{written}\n" if text else f"{written}\n"
    return f"{written:<{COMMENT_COLUMN}}# {text}\n"
