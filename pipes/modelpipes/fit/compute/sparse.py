"""Graphs of models whose latent attention looks at a few cells alone, which an indexer chooses for each token.

Follows llama.cpp b11434: src/models/deepseek32.cpp, glm-dsa.cpp, dots3note.cpp and hy-v4.cpp, and in
src/llama-graph.cpp `build_attn_inp_k_dsa` and the `build_attn` that takes the chosen cells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from msgspec import Struct
from msgspec.structs import replace

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.latent import (
    KeyInputs,
    Sizes,
    absorbed,
    attend_keys,
    compress,
    experts,
    key_inputs,
    queries,
    query_rows,
    sizes,
    store_rows,
    trunk,
)
from modelpipes.fit.compute.tensor import F16, F32, Tensor

ROTATION = 64  # rows of the smallest Hadamard matrix (llama-kv-cache.cpp)


class SparseInputs(Struct, frozen=True):
    """Inputs of a latent cache, of the indexer's cache beside it, and the matrix that turns the indexer's rows."""

    latent: KeyInputs
    indexer: KeyInputs
    rotation: Tensor | None


def sparse_inputs(b: Builder, *, turned: bool = True) -> SparseInputs:
    """`build_attn_inp_k_dsa`; the indexer's rows are `turned`, or not (hy-v4.cpp)."""
    rotation = hadamard(b.h.indexer_head_size) if turned else None
    return SparseInputs(key_inputs(b, b.context.cells), key_inputs(b, b.context.cells, F16), rotation)


def hadamard(head: int) -> Tensor:
    """The largest matrix that rows of keys can be turned with (the constructor of `llama_kv_cache`)."""
    rows = ROTATION
    while 2 * rows <= head and head % (2 * rows) == 0:  # a header may say that heads have no elements
        rows *= 2
    return t.graph_input(F32, rows, rows)


def index(b: Builder, inputs: SparseInputs, il: int, cur: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """The cells that the indexer finds most telling for each token: [top_k, n_tokens, 1, n_streams]."""
    h, streams, cells = b.h, b.n_streams, inputs.indexer.cells
    n, width, n_head = b.n_tokens // streams, h.indexer_head_size, h.indexer_n_head
    q = t.rope(t.reshape(t.mul_mat(b.needed(il, "indexer.attn_q_b"), rows), width, n_head, b.n_tokens), positions)
    k = t.mul_mat(b.needed(il, "indexer.attn_k"), cur)
    k = b.norm(k, b.layer(il, "indexer.k_norm"), b.bias(il, "indexer.k_norm"), op="norm")
    k = t.rope(t.reshape(k, width, 1, b.n_tokens), positions)
    if inputs.rotation is not None:
        q, k = t.mul_mat(inputs.rotation, q), t.mul_mat(inputs.rotation, k)
    keys = store_rows(b, inputs.indexer.ids, cells, il, k, b.settings.type_k)
    weights = t.mul_mat(b.needed(il, "indexer.proj"), cur)
    q = t.view(q, (width, n_head, n, streams), (*q.nb[:3], q.nb[2] * n))
    weights = t.view(weights, (n_head, n, 1, streams), (*weights.nb[:2], weights.nb[1] * n, weights.nb[1] * n))
    score = t.made(
        "lightning_indexer", F32, (cells, n, 1, streams), q, keys, t.scale(weights), inputs.indexer.mask
    )  # fmt: skip
    return t.cont(t.top_k(score, min(cells, h.indexer_top_k)))


def chosen_mask(mask: Tensor, chosen: Tensor, zeros: Tensor) -> Tensor:
    """A mask that shows the chosen cells alone: all are hidden, these shown again, and the plain mask is added."""
    cells, n, _, streams = mask.ne
    hidden = t.unary("fill", mask)
    hidden = t.view(hidden, (1, cells, n, streams), hidden.nb[:3])
    ids = t.view(chosen, (chosen.ne[0], n, streams), (*chosen.nb[:2], chosen.nb[2]))
    shown = t.set_rows(hidden, zeros, ids)
    return t.add(t.view(shown, mask.ne, mask.nb), mask)


def shown_zeros(b: Builder, mask: Tensor, type: str = F32) -> Tensor:
    """What shows the chosen cells: a leaf, which takes memory from the start of the graph until its layer is done."""
    cells, n, _, streams = mask.ne
    return t.unary("fill", t.leaf(type, 1, min(cells, b.h.indexer_top_k), n, streams))


def every_layer(b: Builder) -> list[int]:
    """All layers, whichever were asked for: what each holds from the start adds up, so that none may be left out."""
    return list(range(b.h.n_layer_trunk))


def sparse_attention(
    b: Builder, inputs: SparseInputs | KeyInputs, il: int, size: Sizes, cur: Tensor, positions: Tensor,
    last: Tensor | None, indexed: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """A layer's attention without the output projection, and the cells chosen for it: its own choice, or the last."""
    rows = query_rows(b, il, cur)
    mask = None
    plain = inputs
    if isinstance(inputs, SparseInputs):
        plain = inputs.latent
        if indexed or last is None:
            last = index(b, inputs, il, cur, rows, positions)
        mask = chosen_mask(plain.mask, last, shown_zeros(b, plain.mask))
    assert isinstance(plain, KeyInputs)
    latent, k_rope = compress(b, il, size, cur, positions)
    query, key, value = absorbed(b, il, size, queries(b, il, size, rows), latent, k_rope, positions)
    out = attend_keys(
        b, plain, il, query, key, value, v_mla=b.needed(il, "attn_v_b"), mask=mask, sinks=b.layer(il, "attn_sinks")
    )
    return out, last


def deepseek32(b: Builder, _: list[int]) -> None:
    """src/models/deepseek32.cpp, and glm-dsa.cpp, where some layers take the choice of an earlier one."""
    cur = b.embed()
    positions = b.positions()
    inputs = sparse_inputs(b)
    last: Tensor | None = None

    def attend(il: int, cur: Tensor) -> Tensor:
        nonlocal last
        indexed = b.h.is_indexer_full[il] or b.h.facts.indexed_always
        out, last = sparse_attention(b, inputs, il, sizes(b, il), cur, positions, last, indexed)
        return t.mul_mat(b.needed(il, "attn_output"), out)

    trunk(b, every_layer(b), cur, b.out_ids(), attend)


def dots3note(b: Builder, _: list[int]) -> None:
    """src/models/dots3note.cpp: layers with an indexer, and layers with a window and heads of other widths."""
    h = b.h
    cur = b.embed()
    positions = b.positions()
    full, window = sparse_inputs(b), key_inputs(b, b.context.cells_swa)

    def attend(il: int, cur: Tensor) -> Tensor:
        size = sizes(b, il)
        if h.is_swa[il]:
            head_k, head_v = h.number("attention.key_length_mla_swa"), h.number("attention.value_length_mla_swa")
            size = replace(size, head_k=head_k, head_v=head_v, rank=h.number("attention.kv_lora_rank_swa"))
        out = sparse_attention(b, window if h.is_swa[il] else full, il, size, cur, positions, None, True)[0]
        gate = t.activation(t.mul_mat(b.needed(il, "attn_gate"), cur))
        by_head = t.reshape(out, size.head_v, size.n_head, b.n_tokens)
        out = t.mul(by_head, t.reshape(gate, 1, size.n_head, b.n_tokens))
        return t.mul_mat(b.needed(il, "attn_output"), t.reshape(out, size.head_v * size.n_head, b.n_tokens))

    trunk(b, every_layer(b), cur, b.out_ids(), attend)


def hy_v4(b: Builder, layers: list[int]) -> None:
    """src/models/hy-v4.cpp: several residual streams, mixed before and after attention and feed-forward."""
    h = b.h
    inputs: SparseInputs | KeyInputs
    cur = b.embed()
    positions = b.positions()
    inputs = sparse_inputs(b, turned=False) if h.indexer_top_k else key_inputs(b, b.context.cells)
    out_ids = b.out_ids()
    last: Tensor | None = None
    cur = t.repeat(t.reshape(cur, h.n_embd, 1, b.n_tokens), h.n_embd, h.dsv4_hc_mult, b.n_tokens)
    for il in every_layer(b) if h.indexer_top_k else layers:
        mixed, post = _mix(b, cur, il, "attn")
        mixed = b.norm(mixed, b.layer(il, "attn_norm"))
        out, last = sparse_attention(b, inputs, il, sizes(b, il), mixed, positions, last, h.is_indexer_full[il])
        out = t.mul(out, t.activation(t.mul_mat(b.needed(il, "attn_gate"), mixed)))
        cur = _spread(t.mul_mat(b.needed(il, "attn_output"), out), cur, post)
        mixed, post = _mix(b, cur, il, "ffn")
        cur = _spread(experts(b, il, b.norm(mixed, b.layer(il, "ffn_norm"))), cur, post)
    flat = t.get_rows(t.reshape(cur, h.n_embd * h.dsv4_hc_mult, b.n_tokens), out_ids)
    cur = t.reshape(flat, h.n_embd, h.dsv4_hc_mult, b.n_outputs)
    b.output(_reduce(cur, stream_weights(b, cur, "output_hc")))


def stream_weights(b: Builder, cur: Tensor, name: str) -> Tensor:
    """How much of every residual stream counts, for each token: [streams, n_tokens] (twice as many for layers)."""
    flat = t.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2])
    return t.mul_mat(b.weight(f"{name}_fn.weight"), t.unary("rms_norm", flat))


def _mix(b: Builder, cur: Tensor, il: int, part: str) -> tuple[Tensor, Tensor]:
    """`build_hc_pre`: one stream made of all, and how much of the result goes back to each."""
    streams, n = cur.ne[1], cur.ne[2]
    weights = stream_weights(b, cur, f"blk.{il}.hc_{part}")
    scale, base = b.weight(f"blk.{il}.hc_{part}_scale.weight"), b.weight(f"blk.{il}.hc_{part}_base.weight")
    pre, post = (
        t.scale(
            t.activation(t.add(t.mul(t.view(weights, (streams, n)), t.view(scale, (1,))), t.view(base, (streams,))))
        )
        for _ in range(2)
    )
    return _reduce(cur, pre), post


def _reduce(cur: Tensor, weights: Tensor) -> Tensor:
    """`hy_v4_hc_reduce`."""
    return t.cast(weighted(t.cast(cur, F32), weights), F32)


def weighted(cur: Tensor, weights: Tensor) -> Tensor:
    """The sum of residual streams, each times its weight."""
    width, streams, n, _ = cur.ne
    return reduce(
        t.add,
        [
            t.mul(t.view(cur, (width, n), (4, cur.nb[2])), t.view(weights, (1, n), (4, weights.nb[1])))
            for _ in range(streams)
        ],
    )


def _spread(cur: Tensor, residual: Tensor, post: Tensor) -> Tensor:
    """`build_hc_post`: the result of a part, added to every residual stream."""
    width, streams, n, _ = residual.ne
    cur, post, residual = t.cast(cur, F32), t.cast(post, F32), t.cast(residual, F32)
    parts = []
    for _ in range(streams):
        stream = t.view(residual, (width, n), (4, residual.nb[2]))
        part = t.add(stream, t.mul(cur, t.view(post, (1, n), (4, post.nb[1]))))
        parts.append(t.reshape(part, width, 1, n))
    return t.cast(reduce(lambda a, b: t.concat(a, b, 1), parts), F32)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "deepseek32": deepseek32,
    "glm-dsa": deepseek32,
    "dots3note": dots3note,
    "hy_v4": hy_v4,
}
