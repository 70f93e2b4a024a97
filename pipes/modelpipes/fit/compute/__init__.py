"""How much memory a graph's intermediate results take, on each device and on the host."""

from __future__ import annotations

from collections.abc import Callable

from modelpipes.fit.compute import (
    blocks,
    condensed,
    encoder,
    gemma,
    latent,
    linear,
    recurrent,
    rwkv,
    sparse,
    special,
    t5,
    vocoder,
)
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.transformer import transformer

GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    **blocks.GRAPHS,
    **condensed.GRAPHS,
    **encoder.GRAPHS,
    **gemma.GRAPHS,
    **latent.GRAPHS,
    **linear.GRAPHS,
    **recurrent.GRAPHS,
    **rwkv.GRAPHS,
    **sparse.GRAPHS,
    **special.GRAPHS,
    **t5.GRAPHS,
    **vocoder.GRAPHS,
}


def build(b: Builder, layers: list[int]) -> None:
    """Add the nodes of the model's architecture to the builder's graph, those of the given layers only."""
    GRAPHS.get(b.h.arch, transformer)(b, layers)
