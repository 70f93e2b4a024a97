"""The state that recurrent layers keep for each sequence: two rows, the recent inputs and what became of all.

Follows llama.cpp b11434: the cells of src/llama-memory-recurrent.cpp, and `build_rs_inp_impl`, `build_rs` in
src/llama-graph.cpp. The graph that sizes the buffers reads and writes the states of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.tensor import I32, Tensor


class StateInputs(Struct, frozen=True):
    """Which cell each sequence continues from: of all, of those in the batch, of all but the first."""

    all: Tensor
    batch: Tensor
    tail: Tensor


def state_inputs(b: Builder) -> StateInputs:
    """`build_rs_inp_impl`; also a part of every `build_inp_mem_hybrid*`."""
    ids = t.graph_input(I32, b.n_seqs)
    return StateInputs(ids, t.view(ids, (b.n_seqs,)), t.view(ids, (b.n_seqs - 1,)))


def state_cache(b: Builder, il: int, kind: Literal["r", "s"]) -> Tensor:
    """A layer's rolling (r) or recurrent (s) states, one row for each sequence; make it once for a layer."""
    width = b.h.n_embd_r if kind == "r" else b.h.n_embd_s
    return t.stored((width, b.n_seqs), 4 * width * b.n_seqs, b.homes[il], weight=False)


def read_state(
    b: Builder, inputs: StateInputs, cache: Tensor, reader: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """`build_rs`: clear a fresh state, read those of the batch, move those of other sequences.

    Gives the states as (width, n_seqs), or what `reader` makes of all states and the numbers of those to read.
    """
    graph = b.graph
    states = t.reshape(cache, *cache.ne[:2])
    fresh = t.view(states, (cache.ne[0],))
    graph.expand(Tensor("scale", fresh.type, fresh.ne, (fresh,), fresh.nb, fresh))
    gathered = t.get_rows(states, inputs.all if reader is None else inputs.tail)
    read = t.view(gathered, (cache.ne[0], b.n_seqs)) if reader is None else reader(states, inputs.batch)
    graph.expand(read)
    others = t.view(gathered, (cache.ne[0], 0))
    graph.expand(t.cpy(others, t.view(cache, (cache.ne[0], 0))))
    return read


def write_state(b: Builder, cache: Tensor, values: Tensor) -> None:
    """Copy `values`, whatever their shape, over the states of the batch."""
    b.graph.expand(t.cpy(values, t.view(cache, (cache.n_elements,))))
