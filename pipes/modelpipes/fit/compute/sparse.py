"""Graphs of models whose latent attention looks at a few cells alone, which an indexer chooses for each token.

Follows llama.cpp b11434: src/models/deepseek32.cpp, glm-dsa.cpp, dots3note.cpp and hy-v4.cpp, and in
src/llama-graph.cpp `build_attn_inp_k_dsa` and the `build_attn` that takes the chosen cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.latent import (
    KeyInputs,
    absorbed,
    attend_keys,
    compress,
    key_inputs,
    queries,
    query_rows,
    sizes,
    store_keys,
    trunk,
)
from modelpipes.fit.compute.tensor import F16, F32, Tensor


@dataclass(frozen=True, slots=True)
class SparseInputs:
    """Inputs of a latent cache, of the indexer's cache beside it, and the matrix that turns the indexer's rows."""

    latent: KeyInputs
    indexer: KeyInputs
    rotation: Tensor


def sparse_inputs(b: Builder) -> SparseInputs:
    """`build_attn_inp_k_dsa`."""
    rows = ROTATION
    while b.h.indexer_head_size % (2 * rows) == 0:
        rows *= 2
    cells = b.context.cells
    return SparseInputs(key_inputs(b, cells), key_inputs(b, cells, F16), t.graph_input(F32, rows, rows))


ROTATION = 64  # rows of the smallest Hadamard matrix (llama-kv-cache.cpp)


def index(
    b: Builder, inputs: KeyInputs, il: int, cur: Tensor, rows: Tensor, positions: Tensor, rotation: Tensor | None
) -> Tensor:
    """The cells that the indexer finds most telling, for each token: [top_k, n_tokens, 1, n_streams]."""
    h, n, streams = b.h, b.n_tokens, b.n_streams
    width, n_head = h.indexer_head_size, h.indexer_n_head
    q = t.reshape(t.mul_mat(b.needed(il, "indexer.attn_q_b"), rows), width, n_head, n)
    q = t.rope(q, positions)
    k = t.mul_mat(b.needed(il, "indexer.attn_k"), cur)
    k = b.norm(k, b.layer(il, "indexer.k_norm"), b.bias(il, "indexer.k_norm"), op="norm")
    k = t.rope(t.reshape(k, width, 1, n), positions)
    if rotation is not None:
        q, k = t.mul_mat(rotation, q), t.mul_mat(rotation, k)
    keys = store_keys(b, inputs, il, k, b.settings.type_k)
    weights = t.mul_mat(b.needed(il, "indexer.proj"), cur)
    q = t.view(q, (width, n_head, n // streams, streams), (*q.nb[:3], q.nb[3] // streams))
    weights = t.view(weights, (n_head, n // streams, 1, streams), (*weights.nb[:2], *(x // streams for x in weights.nb[2:])))
    score = t.made("lightning_indexer", F32, (inputs.cells, n // streams, 1, streams), q, keys, t.scale(weights), inputs.mask)
    return t.cont(t.top_k(score, min(inputs.cells, h.indexer_top_k)))


def chosen_mask(mask: Tensor, chosen: Tensor) -> Tensor:
    """A mask that leaves the chosen cells alone: all are hidden, these shown again, and the plain mask is added."""
    cells, n, _, streams = mask.ne
    hidden = t.Tensor("fill", mask.type, mask.ne, (mask,))
    hidden = t.view(hidden, (1, cells, n, streams), hidden.nb[:3])
    ids = t.view(chosen, (*chosen.ne[:2], chosen.ne[3]), (chosen.nb[0], chosen.nb[1], chosen.nb[2]))
    zeros = t.leaf(F32, 1, *ids.ne[:3])
    zeros = t.Tensor("fill", F32, zeros.ne, (zeros,))
    shown = t.set_rows(hidden, zeros, ids)
    shown = t.view(shown, mask.ne, mask.nb)
    return t.add(shown, mask)


def deepseek32(b: Builder, layers: list[int]) -> None:
    """src/models/deepseek32.cpp and glm-dsa.cpp: layers without an indexer take the choice of the last one that has."""
    cur = b.embed()
    positions = b.positions()
    inputs = sparse_inputs(b)
    chosen: Tensor | None = None

    def attend(il: int, cur: Tensor) -> Tensor:
        nonlocal chosen
        rows = query_rows(b, il, cur)
        if b.h.is_indexer_full[il] or chosen is None:
            chosen = index(b, inputs.indexer, il, cur, rows, positions, inputs.rotation)
        size = sizes(b, il)
        latent, k_rope = compress(b, il, size, cur, positions)
        query, key, value = absorbed(b, il, size, queries(b, il, size, rows), latent, k_rope, positions)
        return attend_keys(
            b, inputs.latent, il, query, key, value, v_mla=b.needed(il, "attn_v_b"),
            mask=chosen_mask(inputs.latent.mask, chosen), wo=b.needed(il, "attn_output"),
        )  # fmt: skip

    trunk(b, layers, cur, b.out_ids(), attend)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "deepseek32": deepseek32,
    "glm-dsa": deepseek32,
}
