"""Graphs of models whose layers attend with a state in place of a cache, but for every few of them.

The graph of MiniMax 01 follows src/models/minimax-01.cpp of llama.cpp b11434; the others have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from modelpipes.fit.compute import delta, kda, pooled
from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.state import StateInputs, read_state, state_cache, state_inputs, write_state
from modelpipes.fit.compute.tensor import F32, Tensor


class Decays(Struct, frozen=True):
    """How fast each head forgets, and what that means for the tokens of a batch (`llm_graph_input_la`)."""

    slopes: Tensor
    q: Tensor
    k: Tensor
    diagonal: Tensor


def decays(b: Builder) -> Decays:
    """The inputs that the graph of minimax-01.cpp makes."""
    heads, n_seqs = b.h.n_head[0], b.n_seqs
    n = b.n_tokens // n_seqs
    return Decays(
        t.graph_input(F32, heads),
        t.graph_input(F32, 1, heads, n, n_seqs),
        t.graph_input(F32, 1, heads, n, n_seqs),
        t.graph_input(F32, n, n, heads, n_seqs),
    )


def decayed(exponent: Tensor) -> Tensor:
    """What is left: the exponential of a layer's part of it."""
    return t.activation(t.scale(exponent))


def lightning_attention(b: Builder, inputs: StateInputs, decay: Decays, il: int, cur: Tensor) -> Tensor:
    """Attention within the batch without a softmax, and to what the state holds of all before."""
    size, heads, n_seqs = b.h.n_embd_head_k[il], b.h.n_head[il], b.n_seqs
    n = b.n_tokens // n_seqs
    read_state(b, inputs, state_cache(b, il, "r"))  # empty, but read all the same
    cur = t.reshape(cur, cur.ne[0], n, 1, n_seqs)
    both = t.activation(t.mul_mat(b.needed(il, "attn_qkv"), cur))
    both = t.reshape(both, 3 * size, heads, n, n_seqs)
    q, k, v = (t.view(both, (size, heads, n, n_seqs), both.nb) for _ in "qkv")
    cache = state_cache(b, il, "s")
    state = t.reshape(read_state(b, inputs, cache), size, size, heads, n_seqs)

    of_state = t.mul_mat(state, t.permute(t.mul(q, decayed(decay.q)), 0, 2, 1, 3))
    shares = t.mul_mat(t.permute(k, 0, 2, 1, 3), t.permute(q, 0, 2, 1, 3))
    shares = t.mul(shares, decayed(decay.diagonal))
    values = t.cont(t.permute(v, 1, 2, 0, 3))
    out = b.graph.expand(t.add(of_state, t.mul_mat(values, shares)))

    forgetting = t.reshape(decayed(t.scale(decay.slopes)), 1, 1, heads)
    keys = t.cont(t.permute(t.mul(k, decayed(decay.k)), 1, 2, 0, 3))
    write_state(b, cache, t.add(t.mul(state, forgetting), t.mul_mat(keys, values)))

    out = t.reshape(t.cont(t.permute(out, 0, 2, 1, 3)), size * heads, n, 1, n_seqs)
    out = b.norm(out, b.needed(il, "attn_norm_2"))
    out = t.mul(t.activation(t.mul_mat(b.needed(il, "attn_gate"), cur)), out)
    out = t.mul_mat(b.needed(il, "attn_output"), out)
    return t.reshape(out, out.ne[0], b.n_tokens)


def attention(b: Builder, inputs: AttentionInputs, il: int, cur: Tensor, positions: Tensor) -> Tensor:
    q, k, v = b.qkv(il, cur)
    q, k = t.rope(q, positions), t.rope(k, positions)
    return b.attend(inputs, b.context.cells, il, q, k, v, wo=b.needed(il, "attn_output"))


def minimax_01(b: Builder, layers: list[int]) -> None:
    """src/models/minimax-01.cpp: the normed input of a part, not the plain one, is added to its result."""
    cur = b.embed()
    states, inputs = state_inputs(b), b.attention_inputs(b.context.cells)
    positions, out_ids, decay = b.positions(), b.out_ids(), decays(b)
    for il in layers:
        residual = b.norm(cur, b.needed(il, "attn_norm"))
        if b.h.is_recr[il]:
            cur = lightning_attention(b, states, decay, il, residual)
        else:
            cur = attention(b, inputs, il, residual, positions)
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        residual = b.norm(t.add(cur, t.scale(residual)), b.needed(il, "ffn_norm"))
        cur = t.add(moe(b, il, residual), t.scale(residual))
    b.output(cur)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    **delta.GRAPHS,
    **kda.GRAPHS,
    **pooled.GRAPHS,
    "minimax-01": minimax_01,
}
