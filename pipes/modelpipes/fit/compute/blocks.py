"""The graph of MiniMax M3, which attends to a few blocks of positions that an indexer chooses for every token.

Follows src/models/minimax-m3.cpp and `build_attn_inp_kv_msa` (src/llama-graph.cpp) of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.latent import store_rows, trunk
from modelpipes.fit.compute.sparse import every_layer
from modelpipes.fit.compute.tensor import F16, F32, I32, I64, Tensor

RESERVED_POSITIONS = 256  # an empty cache's positions, as `llama_kv_cache_msa_context::get_n_pos` pads them


class BlockInputs(Struct, frozen=True):
    """Inputs of the choice of blocks; `n_pos` positions make whole blocks."""

    n_pos: int
    n_block: int
    ids: Tensor
    bias: Tensor
    visible: Tensor
    cell_of: Tensor
    block_of: Tensor
    mask: Tensor  # the plain mask, in single precision


def block_inputs(b: Builder, inputs: AttentionInputs) -> BlockInputs:
    """`build_attn_inp_kv_msa` and `llm_graph_input_msa`, for batches of more than one token for each sequence."""
    per_block = b.h.number("attention.indexer.block_size")
    n_block = -(-RESERVED_POSITIONS // per_block)
    n_pos = n_block * per_block
    return BlockInputs(
        n_pos,
        n_block,
        t.graph_input(I64, b.n_tokens),
        t.graph_input(F32, n_block, b.n_tokens),
        t.graph_input(F32, n_pos, b.n_tokens),
        t.graph_input(I32, n_pos, b.n_streams),
        t.graph_input(I32, b.context.cells, b.n_streams),
        t.cast(inputs.mask, F32),
    )


def block_mask(b: Builder, blocks: BlockInputs, q: Tensor, keys: Tensor) -> Tensor:
    """What one sequence's tokens may look at in each group of heads: [cells, n_tokens, 1, n_groups]."""
    width, groups, n, _ = q.ne
    cells, n_block = keys.ne[1], blocks.n_block
    top_k = min(b.h.indexer_top_k, n_block)
    # Every view of an input is copied to the device on its own, at the start of the graph.
    by_position = t.get_rows(keys, t.view(blocks.cell_of, (blocks.n_pos,)))
    visible = t.view(blocks.visible, (blocks.n_pos, 1, n), (4, *(blocks.visible.nb[1],) * 2))
    bias = t.view(blocks.bias, (n_block, 1, n), (4, *(blocks.bias.nb[1],) * 2))
    scores = t.mul_mat(by_position, t.reshape(q, width, groups * n))
    scores = _add_inplace(t.reshape(scores, blocks.n_pos, groups, n), visible)
    best = t.made("pool_2d", F32, (n_block, groups, n), scores)
    chosen = t.top_k(t.add(best, bias), top_k)
    hidden = t.repeat(t.cast(t.scale(bias), F16), n_block, groups, n)
    zeros = t.scale(t.cast(chosen, F32))
    mask = t.set_rows(
        t.reshape(hidden, 1, n_block, groups * n),
        t.reshape(zeros, 1, top_k, groups * n),
        t.reshape(chosen, top_k, groups * n),
    )
    mask = t.cont(t.permute(t.reshape(mask, n_block, groups, n), 0, 2, 1, 3))
    mask = t.cont(t.transpose(t.reshape(mask, n_block, n * groups)))
    mask = t.cont(t.transpose(t.get_rows(mask, t.view(blocks.block_of, (cells,)))))
    plain = t.view(blocks.mask, (cells, n, 1), blocks.mask.nb)
    mask = _add_inplace(t.reshape(mask, cells, n, groups), plain)
    return t.cast(t.reshape(mask, cells, n, 1, groups), F16)


def _add_inplace(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("add", a.type, a.ne, (a, b), a.nb, a)


def block_attention(
    b: Builder, inputs: AttentionInputs, blocks: BlockInputs, il: int, cur: Tensor, positions: Tensor,
    q: Tensor, k: Tensor, v: Tensor,
) -> Tensor:  # fmt: skip
    """The attention of a layer with an indexer: sequence by sequence, with a mask for every group of heads."""
    h, settings, cells = b.h, b.settings, b.context.cells
    n, streams, width = b.n_tokens // b.n_streams, b.n_streams, h.indexer_head_size
    index_q = _indexer_rows(b, il, "q", cur, positions, h.indexer_n_head)
    index_k = _indexer_rows(b, il, "k", cur, positions, 1)
    index_keys = store_rows(b, blocks.ids, cells, il, index_k, settings.type_k)
    if inputs.k_rotation is not None:
        q, k = b.rotate(q, inputs.k_rotation), b.rotate(k, inputs.k_rotation)
    if inputs.v_rotation is not None:
        v = b.rotate(v, inputs.v_rotation)
    for tensor in (q, k, v):
        b.graph.expand(tensor)
    keys = store_rows(b, inputs.k_ids, cells, il, k, settings.type_k)
    values = store_rows(b, inputs.v_ids, cells, il, v, settings.type_v)
    parts = []
    for _ in range(streams):
        stream_q = t.view(index_q, (width, h.indexer_n_head, n), index_q.nb)
        mask = block_mask(b, blocks, stream_q, t.view(index_keys, (width, cells), index_keys.nb[1:3]))
        own_q, own_keys = t.view(q, (*q.ne[:2], n), q.nb), t.view(keys, keys.ne[:3], keys.nb)
        parts.append(_grouped(own_q, own_keys, t.view(values, values.ne[:3], values.nb), mask))
    out = reduce(lambda a, b: t.concat(a, b, 1), parts)
    return out if inputs.v_rotation is None else b.rotate(out, inputs.v_rotation)


def _indexer_rows(b: Builder, il: int, kind: str, cur: Tensor, positions: Tensor, n_head: int) -> Tensor:
    rows = t.mul_mat(b.needed(il, f"indexer.{kind}_proj"), cur)
    rows = t.reshape(rows, b.h.indexer_head_size, n_head, b.n_tokens)
    return t.rope(b.norm(rows, b.layer(il, f"indexer.{kind}_norm")), positions)


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`build_attn_msa_fa`: every group of heads as a sequence of its own."""
    width, n_head, n, _ = q.ne
    groups = k.ne[1]
    split = t.permute(t.reshape(q, width, n_head // groups, groups, n), 0, 2, 3, 1)
    k, v = t.permute(k, 0, 3, 1, 2), t.permute(v, 0, 3, 1, 2)
    out = t.permute(t.flash_attn_ext(split, k, v, mask), 0, 1, 3, 2)
    if groups > 1:
        out = t.cont(out)
    return t.reshape(out, width * n_head, n)


def minimax_m3(b: Builder, layers: list[int]) -> None:
    """src/models/minimax-m3.cpp; dense attention without flash attention, or if sequences share a cache."""
    cur = b.embed()
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)
    settings = b.settings
    sparse = settings.flash_attn and (settings.n_parallel == 1 or not settings.kv_unified)
    blocks = block_inputs(b, inputs) if sparse else None

    def attend(il: int, cur: Tensor) -> Tensor:
        q, k, v = b.qkv(il, cur)
        q = t.rope(b.norm(q, b.layer(il, "attn_q_norm")), positions)
        k = t.rope(b.norm(k, b.layer(il, "attn_k_norm")), positions)
        if blocks is None or il < b.h.n_layer_dense_lead:
            out = b.attend(inputs, b.context.cells, il, q, k, v)
        else:
            out = block_attention(b, inputs, blocks, il, cur, positions, q, k, v)
        return t.mul_mat(b.needed(il, "attn_output"), out)

    trunk(b, layers if blocks is None else every_layer(b), cur, b.out_ids(), attend)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {"minimax-m3": minimax_m3}
