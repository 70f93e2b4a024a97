"""Graphs of models that mix recurrent layers with attention to cells which an indexer chooses by the pool.

Follows llama.cpp b11434: src/models/glm5-next.cpp and qwen4exp.cpp, and llama-memory-hybrid-idx.cpp for the pools:
a few neighbouring cells each. Each layer has its own view of some inputs, of which a device gets copies: to leave
out layers changes what it needs. GLM 5 Next gathers the cells for batches of up to 16 tokens: not here.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.delta import feed_forward, gated_attention, linear_attention, shifted_inputs
from modelpipes.fit.compute.kda import feed_forward as limited_feed_forward
from modelpipes.fit.compute.kda import kimi_delta_attention
from modelpipes.fit.compute.latent import KeyInputs, attend_keys, key_inputs, store_rows
from modelpipes.fit.compute.state import StateInputs, state_inputs
from modelpipes.fit.compute.tensor import F16, F32, I32, I64, Tensor

POOL_PADDING = 64  # `kpool_pad`


class PoolInputs(Struct, frozen=True):
    """Inputs of an indexer (`llm_graph_input_kpool`): the pools, their cells, who may look at them, the new ones."""

    ids: Tensor
    cells: Tensor
    members: Tensor
    mask: Tensor
    tail: Tensor
    live: Tensor | None  # which choices count; Qwen 4 finds out by itself
    new_members: Tensor
    new_cells: Tensor
    new_positions: Tensor
    selects_tail: bool

    @property
    def n_new(self) -> int:
        return self.new_cells.ne[0]

    @property
    def n_pools(self) -> int:
        return self.cells.ne[0]


def pool_inputs(b: Builder, *, selects_tail: bool, marks_live: bool) -> PoolInputs:
    """`build_inp_kpool` for a full cache.

    `selects_tail`: the cells that fill no pool yet are always looked at. `marks_live`: which of the chosen cells
    are in use is told.
    """
    size, n = b.h.indexer_kpool, b.n_tokens
    n_new = max(b.context.cells // size * b.n_seqs, 1)
    n_pools = -(-(n_new + 1) // POOL_PADDING) * POOL_PADDING
    n_chosen = size * chosen_pools(b, n_pools) + (size - 1 if selects_tail else 0)
    inputs = PoolInputs(
        ids=t.graph_input(I64, n),
        cells=t.graph_input(I32, n_pools),
        members=t.graph_input(I32, size, n_pools),
        mask=t.graph_input(F16, n_pools, n),
        tail=t.graph_input(I32, size - 1, n),
        live=t.graph_input(F32, n_chosen, 1, 1, n) if marks_live else None,
        new_members=t.graph_input(I32, size, n_new),
        new_cells=t.graph_input(I64, n_new),
        new_positions=t.graph_input(I32, 4 * n_new),
        selects_tail=selects_tail,
    )
    for tensor in (inputs.cells, inputs.members, inputs.mask, inputs.tail, inputs.live):
        if tensor is not None:
            b.graph.expand(tensor)
    return inputs


def chosen_pools(b: Builder, n_pools: int) -> int:
    """How many pools a token looks at."""
    return min(n_pools, b.h.indexer_top_k // b.h.indexer_kpool)


Pooling = Callable[[Tensor], Tensor]  # of rows [width, cells of a pool, pools] into [width, pools]


def pooled_keys(b: Builder, inputs: PoolInputs, il: int, rows: Tensor, pool: Pooling) -> Tensor:
    """Store the batch's rows, pool those of new pools, and give the keys of all pools [width, 1, pools]."""
    width, n = b.h.indexer_head_size, b.n_tokens
    empty = t.unary("fill", t.leaf(F32, width, n))
    rows = t.concat(rows, empty, 0)
    rows = t.reshape(rows, rows.ne[0], 1, n)
    keys = store_rows(b, inputs.ids, b.context.cells, il, rows, b.settings.type_k)
    n_cells = b.context.cells * b.n_streams
    per_token = rows.ne[0] - width
    members = t.reshape(inputs.new_members, b.h.indexer_kpool * inputs.n_new)
    found = t.get_rows(t.view(keys, (per_token, n_cells)), members)
    fresh = pool(t.reshape(found, per_token, b.h.indexer_kpool, inputs.n_new))
    stored = t.view(keys, (width, n_cells))
    b.graph.expand(t.set_rows(stored, fresh, inputs.new_cells))
    return t.reshape(t.get_rows(stored, inputs.cells), width, 1, inputs.n_pools)


def pool_scores(inputs: PoolInputs, q: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """`ggml_lightning_indexer`: [pools, n_tokens]."""
    return t.made("lightning_indexer", F32, (keys.ne[2], q.ne[2]), q, keys, weights, inputs.mask)


def chosen_cells(b: Builder, inputs: PoolInputs, pools: Tensor) -> Tensor:
    """The cells of the chosen pools [pools, n_tokens], and those that fill no pool yet."""
    n_pools, n = pools.ne[:2]
    cells = t.get_rows(inputs.members, t.reshape(pools, n_pools * n))
    cells = t.reshape(cells, b.h.indexer_kpool * n_pools, n)
    return b.graph.expand(t.concat(cells, inputs.tail, 0) if inputs.selects_tail else cells)


def chosen_mask(mask: Tensor, cells: Tensor, live: Tensor, spare: Tensor) -> Tensor:
    """A mask that shows the chosen cells alone; a choice that does not count shows a cell of its own behind them."""
    n_cells = mask.ne[0]
    n_chosen, n = cells.ne[:2]
    hidden = filled(mask.type, n_cells + n_chosen, n)
    shown = filled(mask.type, n_chosen, n)
    ids = t.unary("sub", t.cast(cells, F32), spare)
    ids = t.cast(t.add(t.mul(ids, live), spare), I32)
    shown = t.set_rows(hidden, shown, t.reshape(ids, n_chosen, n, 1))
    row = shown.nb[2]
    return t.add(t.view(shown, mask.ne, (shown.nb[0], row, row * mask.ne[1], row * mask.ne[1] * mask.ne[2])), mask)


def filled(type: str, width: int, n: int) -> Tensor:
    """Rows of one number, [1, width, n]."""
    return t.reshape(t.repeat(t.unary("fill", t.leaf(type, width)), width, n), 1, width, n)


# GLM 5 Next
def glm_selection(b: Builder, inputs: PoolInputs, il: int, cur: Tensor, q_rows: Tensor, mask: Tensor) -> Tensor:
    """`build_kpool_select`: pools are averages, weighted by gates of their cells; gives a mask."""
    h, n, size, width = b.h, b.n_tokens, b.h.indexer_kpool, b.h.indexer_head_size
    q = t.reshape(t.mul_mat(b.needed(il, "indexer.attn_q_b"), q_rows), width, h.indexer_n_head, n)
    k = t.mul_mat(b.needed(il, "indexer.attn_k"), cur)
    k = b.norm(k, b.layer(il, "indexer.k_norm"), b.bias(il, "indexer.k_norm"), op="norm")
    rows = t.concat(k, t.mul_mat(b.needed(il, "indexer_compressor_gate"), cur), 0)

    def pool(rows: Tensor) -> Tensor:
        n_new = rows.ne[2]
        keys, gates = (t.view(rows, (width, size, n_new), rows.nb) for _ in range(2))
        gates = t.cont(t.permute(t.add(gates, b.needed(il, "indexer_compressor_ape")), 1, 0, 2, 3))
        shares = t.reshape(t.soft_max(t.reshape(gates, size, width * n_new)), size, width, n_new)
        total = t.sum_rows(t.mul(shares, t.cont(t.permute(keys, 1, 0, 2, 3))))
        return t.reshape(total, width, n_new)

    keys = pooled_keys(b, inputs, il, rows, pool)
    score = pool_scores(inputs, q, keys, t.scale(t.mul_mat(b.needed(il, "indexer.proj"), cur)))
    cells = chosen_cells(b, inputs, best_first(score, chosen_pools(b, inputs.n_pools)))
    assert inputs.live is not None
    live = t.activation(t.reshape(inputs.live, *cells.ne))
    return chosen_mask(t.reshape(mask, mask.ne[0], n), cells, live, t.made("arange", F32, (cells.ne[0],)))


def best_first(score: Tensor, count: int) -> Tensor:
    """The pools with the highest scores, in order: [count, n_tokens]."""
    n_pools, n = score.ne[:2]
    top = t.top_k(score, count)
    scores = t.get_rows(t.reshape(score, 1, n_pools, n), top)
    order = t.argsort(t.reshape(scores, count, n))
    top = t.get_rows(t.reshape(t.cast(top, F32), 1, count, n), order)
    return t.cast(t.cont(t.reshape(top, count, n)), I32)


def sparse_attention(
    b: Builder, keys: KeyInputs, pools: PoolInputs, il: int, cur: Tensor, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`build_dsa_layer`: latent attention without positions; also the mask, which later layers may use."""
    h, n = b.h, b.n_tokens
    q_rows = b.norm(t.mul_mat(b.needed(il, "attn_q_a"), cur), b.needed(il, "attn_q_a_norm"))
    q = t.reshape(t.mul_mat(b.needed(il, "attn_q_b"), q_rows), h.n_embd_head_k_mla, h.n_head[il], n)
    latent = b.norm(t.mul_mat(b.needed(il, "attn_kv_a_mqa"), cur), b.needed(il, "attn_kv_a_norm"))
    latent = t.reshape(latent, h.n_lora_kv, 1, n)
    q = t.permute(t.mul_mat(b.needed(il, "attn_k_b"), t.permute(q, 0, 2, 1, 3)), 0, 2, 1, 3)
    if last is None or h.is_indexer_full[il]:
        last = glm_selection(b, pools, il, cur, q_rows, keys.mask)
    mask = t.reshape(last, *keys.mask.ne)
    v_mla, wo = b.needed(il, "attn_v_b"), b.needed(il, "attn_output")
    return attend_keys(b, keys, il, q, latent, latent, v_mla=v_mla, mask=mask, wo=wo), last


def mix(b: Builder, il: int, part: str, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`build_hc_pre`: one stream of all; how much of a result each takes, and how much of each other."""
    width, count, n, _ = streams.ne
    flat = t.unary("rms_norm", t.reshape(streams, width * count, n))
    weights = t.mul_mat(b.needed(il, f"hc_{part}_fn"), flat)
    scale, base = b.needed(il, f"hc_{part}_scale"), b.needed(il, f"hc_{part}_base")
    before, after = (
        t.scale(t.activation(t.add(t.mul(t.view(weights, (count, n)), t.view(scale, (1,))), t.view(base, (count,)))))
        for _ in range(2)
    )
    between = t.made("dsv4_hc_comb", F32, (count, count, n), weights, scale, base)
    return t.made("dsv4_hc_pre", F32, (width, n), streams, before), after, between


def is_spread_at_once(b: Builder) -> bool:
    """Whether results are added to the streams by one operation (`fused_dsv4_hc_post`).

    Not where blocks lie both on the host and on a device: ggml would run that of the last one on the host
    on the device, for which llama.cpp takes the operation to be unsupported.
    """
    return len({home == b.settings.n_devices for home in b.homes}) == 1


def spread(b: Builder, cur: Tensor, streams: Tensor, after: Tensor, between: Tensor) -> Tensor:
    """`build_hc_post`: the streams after a result has been added to them."""
    if is_spread_at_once(b):
        return t.made("dsv4_hc_post", F32, streams.ne, cur, streams, after, between)
    width, count, n, _ = streams.ne
    out: Tensor | None = None
    for _ in range(count):
        total = t.mul(cur, t.view(after, (1, n), (4, after.nb[1])))
        for stream in stream_views(streams):
            total = t.add(total, t.mul(stream, t.view(between, (1, n), (4, between.nb[2]))))
        total = t.reshape(total, width, 1, n)
        out = total if out is None else t.concat(out, total, 1)
    assert out is not None
    return out


def chosen_streams(streams: Tensor, out_ids: Tensor) -> Tensor:
    """The streams of the tokens that give logits."""
    width, count, n, _ = streams.ne
    rows = t.get_rows(t.reshape(streams, width * count, n), out_ids)
    return t.reshape(rows, width, count, rows.ne[1])


def stream_views(streams: Tensor) -> list[Tensor]:
    """Each stream by itself: [width, n_tokens]."""
    width, count, n, _ = streams.ne
    return [t.view(streams, (width, n), (4, streams.nb[2])) for _ in range(count)]


def glm5_next(b: Builder, layers: list[int]) -> None:
    """src/models/glm5-next.cpp: several residual streams, mixed before and after attention and feed-forward."""
    cur = b.embed()
    states, keys = state_inputs(b), key_inputs(b, b.context.cells)
    has_tail = bool(b.h.value("attention.indexer.kpool_select_tail", True))
    pools = pool_inputs(b, selects_tail=has_tail, marks_live=True)
    out_ids, last = b.out_ids(), None
    streams = t.repeat(t.reshape(cur, cur.ne[0], 1, b.n_tokens), cur.ne[0], b.h.dsv4_hc_mult, b.n_tokens)
    normed = bool(b.h.value("expert_weights_norm", False))
    for il in layers:
        cur, after, between = mix(b, il, "attn", streams)
        cur = b.graph.expand(b.norm(cur, b.needed(il, "attn_norm")))
        if b.h.is_recr[il]:
            cur = kimi_delta_attention(b, states, il, cur)
        else:
            cur, last = sparse_attention(b, keys, pools, il, cur, last)
        streams = spread(b, cur, streams, after, between)
        cur, after, between = mix(b, il, "ffn", streams)
        cur = limited_feed_forward(b, il, b.norm(cur, b.needed(il, "ffn_norm")), normed, limits_at_once=True)
        streams = spread(b, cur, streams, after, between)
    cur, *others = stream_views(chosen_streams(streams, out_ids))
    for other in others:
        cur = t.add(cur, other)
    b.output(t.scale(cur))


# Qwen 4
def qwen_selection(b: Builder, inputs: PoolInputs, il: int, cur: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """`build_qsa_sel`: pools are averages, normed and turned after that; gives a mask."""
    h, n, size, width = b.h, b.n_tokens, b.h.indexer_kpool, b.h.indexer_head_size

    def pool(rows: Tensor) -> Tensor:
        n_new = rows.ne[2]
        first, *others = (t.view(rows, (width, n_new), (4, rows.nb[2])) for _ in range(size))
        total = t.cont(first)
        for other in others:
            total = t.add(total, other)
        total = b.norm(t.scale(total), b.needed(il, "indexer.k_norm"))
        return t.reshape(t.rope(t.reshape(total, width, 1, n_new), inputs.new_positions), width, n_new)

    keys = pooled_keys(b, inputs, il, t.mul_mat(b.needed(il, "indexer.k_proj"), cur), pool)
    q = t.reshape(t.mul_mat(b.needed(il, "indexer.q_proj"), cur), width, h.indexer_n_head, n)
    q = t.rope(b.norm(q, b.needed(il, "indexer.q_norm")), positions)
    score = pool_scores(inputs, q, keys, t.unary("fill", t.leaf(F32, h.indexer_n_head, n)))
    count = chosen_pools(b, inputs.n_pools)
    pools = t.top_k(score, count)
    cells = chosen_cells(b, inputs, pools)
    live = t.unary("clamp", t.scale(t.get_rows(t.reshape(score, 1, inputs.n_pools, n), pools)))
    live = t.reshape(t.repeat(live, size, count, n), size * count, n)
    live = t.concat(live, t.unary("clamp", t.scale(t.cast(inputs.tail, F32))), 0)
    spare = t.scale(t.made("cumsum", F32, live.ne, t.unary("fill", live)))
    return chosen_mask(mask, cells, live, spare)


def narrow(b: Builder, streams: Tensor, name: str, fused: bool = True) -> tuple[Tensor, Tensor]:
    """`build_hc_mix`: one stream, made of all by gates of low rank; also all, normed."""
    width, count, n, _ = streams.ne
    norm, down, up = (b.weight(f"{name}_{part}.weight") for part in ("norm", "down", "up"))
    normed = t.reshape(b.norm(streams, norm), width * count, n)
    gate = t.mul_mat(up, t.activation(t.scale(t.mul_mat(down, normed))))
    if fused:
        sides = (t.reshape(side, width, count, n) for side in (normed, gate))
        return t.made("dsv4_hc_pre", F32, (width, n), *sides), normed
    first, *others = stream_views(t.reshape(t.mul(normed, t.activation(gate)), width, count, n))
    mixed = t.cont(first)
    for other in others:
        mixed = t.add(mixed, other)
    return t.scale(mixed), normed


def injected(cur: Tensor, streams: Tensor, weights: Tensor) -> Tensor:
    """`build_hc_combine`: the streams after a result has been added to each with a weight of its own."""
    return t.made("dsv4_hc_post", F32, streams.ne, cur, streams, t.scale(t.activation(t.scale(weights))))


def ngram_embeddings(b: Builder) -> Tensor:
    """`build_inp_ple`: rows of a table for the last few tokens at each place."""
    rows = (b.h.number("ple.ngram_size") - 1) * b.h.number("ple.heads_per_ngram")
    found = t.get_rows(b.weight("per_layer_token_embd.weight"), t.graph_input(I32, rows * b.n_tokens))
    return b.graph.expand(t.reshape(found, found.ne[0] * rows, b.n_tokens))


def remember(b: Builder, inputs: StateInputs, il: int, rows: Tensor, streams: Tensor) -> Tensor:
    """`build_ple`: embeddings of the last few tokens, gated and convolved, added to all streams."""
    h = b.h
    width, count, n, _ = streams.ne
    key = t.mul_mat(b.needed(il, "ple_key"), rows)
    value = t.mul_mat(b.needed(il, "ple_value"), rows)
    key = b.norm(t.reshape(key, width, count, n), b.needed(il, "ple_norm_key"))
    score = t.scale(t.sum_rows(t.mul(key, b.norm(streams, b.needed(il, "ple_norm_query")))))
    size = t.unary("sqrt", t.unary("clamp", t.activation(score)))
    gate = t.activation(t.mul(t.activation(score), size))
    gated = t.mul(t.repeat(t.reshape(value, width, 1, n), width, count, n), gate)
    normed = b.norm(t.reshape(gated, width, count, n), b.needed(il, "ple_norm_conv"))
    past = t.stored((h.ple_conv_state, b.n_seqs), 4 * h.ple_conv_state * b.n_seqs, b.homes[il], weight=False)
    channels, per_sequence = width * count, n // b.n_seqs
    shifted = shifted_inputs(b, inputs, past, t.reshape(normed, channels, per_sequence, b.n_seqs), copied=True)
    kernel = b.needed(il, "ple_conv1d")
    total: Tensor | None = None
    for _ in range(kernel.ne[0]):
        part = t.view(shifted, (per_sequence, channels, b.n_seqs), shifted.nb)
        weight = t.reshape(t.cont(t.view(kernel, (1, channels))), channels)
        part = t.mul(t.cont(t.transpose(part)), weight)
        total = part if total is None else t.add(total, part)
    assert total is not None
    return t.add(streams, t.add(gated, t.reshape(t.cont(t.activation(total)), width, count, n)))


def qwen4(b: Builder, layers: list[int]) -> None:
    """src/models/qwen4exp.cpp: several residual streams, mixed in place of norms."""
    h = b.h
    cur = b.embed()
    states, inputs = state_inputs(b), b.attention_inputs(b.context.cells)
    pools = pool_inputs(b, selects_tail=True, marks_live=False) if h.indexer_kpool else None
    positions, out_ids = b.positions(), b.out_ids()
    rows = ngram_embeddings(b) if any(h.is_ple) else None
    streams = t.repeat(t.reshape(cur, cur.ne[0], 1, b.n_tokens), cur.ne[0], h.dsv4_hc_mult, b.n_tokens)
    b.graph.expand(streams)
    for il in layers:
        if h.is_ple[il] and rows is not None:
            streams = remember(b, states, il, rows, streams)
        cur, normed = narrow(b, streams, f"blk.{il}.hc_attn")
        b.graph.expand(cur)
        weights = t.mul_mat(b.needed(il, "hc_attn_inject"), normed)
        if h.is_recr[il]:
            cur = linear_attention(b, states, il, cur, copied=True)
        else:
            seen = inputs
            if pools is not None and h.dsv4_compress_ratios[il]:
                mask = qwen_selection(b, pools, il, cur, positions, inputs.mask)
                seen = AttentionInputs(inputs.k_ids, inputs.v_ids, mask, inputs.k_rotation, inputs.v_rotation)
            cur = gated_attention(b, seen, il, cur, positions)
        if il == layers[-1]:
            cur, weights = t.get_rows(cur, out_ids), t.get_rows(weights, out_ids)
            streams = chosen_streams(streams, out_ids)
        streams = injected(cur, streams, weights)
        cur, normed = narrow(b, streams, f"blk.{il}.hc_ffn")
        weights = t.mul_mat(b.needed(il, "hc_ffn_inject"), normed)
        streams = injected(feed_forward(b, il, cur), streams, weights)
    cur, _ = narrow(b, streams, "output_hc", fused=False)
    b.graph.expand(t.mul_mat(b.weight("output.weight"), cur))


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "glm5-next": glm5_next,
    "qwen4exp": qwen4,
}
