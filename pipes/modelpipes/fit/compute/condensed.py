"""The graph of DeepSeek V4: a window of raw keys beside condensed ones, one for every 4 or 128 tokens of the context.

Follows llama.cpp b11434: src/models/deepseek4.cpp, `build_inp_dsv4` (src/llama-graph.cpp), and the plan that
`dsv4_build_reserve_comp_plan` (src/llama-kv-cache-dsv4.cpp) makes for the largest batch.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.latent import KeyInputs, key_inputs, query_rows, store_rows
from modelpipes.fit.compute.sparse import chosen_mask, every_layer, hadamard, shown_zeros, stream_weights, weighted
from modelpipes.fit.compute.tensor import F16, F32, I32, I64, Tensor

FINE, COARSE = 4, 128  # tokens that one condensed key stands for
PADDING = 256  # cells


class Condenser(Struct, frozen=True):
    """Inputs of one kind of condensed keys; those of the fine kind are made from two stretches that overlap."""

    keys: KeyInputs
    ratio: int
    overlaps: bool
    positions: Tensor  # of tokens in their stretch
    kept_from: Tensor
    kept_at: Tensor
    read: Tensor
    key_positions: Tensor
    rotation: Tensor | None


def condenser(b: Builder, ratio: int, head: int, mask_type: str | None = None, rotated: bool = False) -> Condenser:
    """`dsv4_build_comp_inputs`; `rotated` whatever the cache's type."""
    overlaps = ratio == FINE
    cells = -(-max(-(-b.context.n_ctx_seq // ratio), 1) // PADDING) * PADDING
    stretches = 2 if overlaps else 1
    n_keys = b.n_tokens // ratio + b.n_seqs
    n_kept = min(b.n_tokens, stretches * ratio * b.n_streams)
    positions, kept_from, kept_at, read, key_positions = (
        t.graph_input(I32, n) for n in (b.n_tokens, n_kept, n_kept, stretches * ratio * n_keys, n_keys)
    )
    plain = key_inputs(b, cells, mask_type)
    keys = KeyInputs(cells, t.graph_input(I64, n_keys), plain.mask)
    rotation = hadamard(head) if rotated else rotation_of(b, head)
    return Condenser(keys, ratio, overlaps, positions, kept_from, kept_at, read, key_positions, rotation)


def rotation_of(b: Builder, head: int) -> Tensor | None:
    """The matrix that rows of a quantised cache are turned with."""
    plain = b.settings.type_k in ("f32", "f16", "bf16")
    return None if plain or head % 64 else hadamard(head)


class Inputs(Struct, frozen=True):
    """`llm_graph_input_dsv4`."""

    raw: KeyInputs
    rotation: Tensor | None
    fine: Condenser
    coarse: Condenser
    indexer: Condenser


def inputs_of(b: Builder) -> Inputs:
    head, index_head = b.h.n_embd_head_k[0], b.h.indexer_head_size
    return Inputs(
        key_inputs(b, b.context.cells_swa),
        rotation_of(b, head),
        condenser(b, FINE, head),
        condenser(b, COARSE, head),
        condenser(b, FINE, index_head, F16, rotated=True),
    )


def condense(b: Builder, inputs: Condenser, il: int, cur: Tensor, name: str, head: int) -> Tensor:
    """Make keys of the stretches that this batch ends, keep what it leaves unfinished, and see all keys."""
    state_width = 2 * head if inputs.overlaps else head
    rows = (2 if inputs.overlaps else 1) * inputs.ratio * b.n_streams
    state = [_state(b, il, state_width, rows) for _ in range(2)]
    values = t.mul_mat(b.needed(il, f"{name}_kv"), cur)
    scores = t.mul_mat(b.needed(il, f"{name}_gate"), cur)
    scores = t.add(scores, t.get_rows(b.needed(il, f"{name}_ape"), inputs.positions))
    sources = [t.concat(kept, new, 1) for kept, new in zip(state, (values, scores), strict=True)]
    merge = _overlapping if inputs.overlaps else _apart
    values_by, scores_by = merge(inputs, sources, head)
    keys = t.sum_rows(t.mul(values_by, t.soft_max(scores_by)))
    keys = b.norm(t.cont(t.permute(keys, 1, 0, 2, 3)), b.layer(il, f"{name}_norm"))
    keys = t.rope(keys, inputs.key_positions)
    if inputs.rotation is not None:
        keys = b.rotate(keys, inputs.rotation)
    seen = store_rows(b, inputs.keys.ids, inputs.keys.cells, il, keys, b.settings.type_k)
    kept = [t.get_rows(new, inputs.kept_from) for new in (values, scores)]
    for old, new in zip(state, kept, strict=True):
        b.graph.expand(t.set_rows(old, new, inputs.kept_at))
    return seen


def _state(b: Builder, il: int, width: int, rows: int) -> Tensor:
    state = t.stored((width, rows), 4 * width * rows, b.homes[il], weight=False)
    return t.view(state, (width, rows))


def _apart(inputs: Condenser, sources: list[Tensor], head: int) -> list[Tensor]:
    """`build_hca_compressed_kv_from_state`: [ratio, head, keys] of values and of scores."""
    parts = (t.reshape(t.get_rows(source, inputs.read), head, inputs.ratio, _n_keys(inputs)) for source in sources)
    return [t.cont(t.permute(part, 1, 0, 2, 3)) for part in parts]


def _overlapping(inputs: Condenser, sources: list[Tensor], head: int) -> list[Tensor]:
    """`build_overlap_compressed_kv_from_state`: [2 * ratio, head, keys] of values and of scores."""
    n_keys = _n_keys(inputs)
    n_read = inputs.ratio * n_keys
    merged = []
    for source in sources:
        row = t.reshape(t.scale(t.view(source, (source.ne[0],))), source.ne[0], 1)
        rows = t.get_rows(t.concat(source, row, 1), inputs.read)
        halves = [t.cont(t.view(rows, (head, n_read), (4, rows.nb[1]))) for _ in range(2)]
        before, now = (t.reshape(half, head, inputs.ratio, n_keys) for half in halves)
        merged.append(t.cont(t.permute(t.concat(before, now, 1), 1, 0, 2, 3)))
    return merged


def _n_keys(inputs: Condenser) -> int:
    return inputs.key_positions.ne[0]


def index(b: Builder, inputs: Condenser, keys: Tensor, il: int, rows: Tensor, cur: Tensor, positions: Tensor) -> Tensor:
    """`build_lid_top_k`: the fine keys that the indexer finds most telling for each token."""
    h, streams = b.h, b.n_streams
    n, width, n_head = b.n_tokens // streams, h.indexer_head_size, h.indexer_n_head
    q = t.rope(t.reshape(t.mul_mat(b.needed(il, "indexer.attn_q_b"), rows), width, n_head, b.n_tokens), positions)
    assert inputs.rotation is not None
    q = b.rotate(q, inputs.rotation)
    q = t.view(q, (width, n_head, n, streams), (*q.nb[:3], q.nb[2] * n))
    weights = t.scale(t.mul_mat(b.needed(il, "indexer.proj"), cur))
    weights = t.view(weights, (n_head, n, 1, streams), (*weights.nb[:2], weights.nb[1] * n, weights.nb[1] * n))
    cells = inputs.keys.cells
    score = t.made("lightning_indexer", F32, (cells, n, 1, streams), q, keys, weights, inputs.keys.mask)
    return t.cont(t.top_k(score, min(cells, h.indexer_top_k)))


def attention(b: Builder, inputs: Inputs, il: int, cur: Tensor, positions: Tensor) -> Tensor:
    """`build_attention`: over the window, and over condensed keys where the layer has any."""
    h, n, ratio = b.h, b.n_tokens, b.h.dsv4_compress_ratios[il]
    head, n_head = h.n_embd_head_k[0], h.n_head[0]
    rows = query_rows(b, il, cur)
    q = t.rope(t.unary("rms_norm", t.reshape(t.mul_mat(b.needed(il, "attn_q_b"), rows), head, n_head, n)), positions)
    key = b.norm(t.mul_mat(b.needed(il, "attn_kv"), cur), b.layer(il, "attn_kv_a_norm"))
    key = t.rope(t.reshape(key, head, 1, n), positions)
    condensed, mask = None, None
    if ratio == FINE:
        condensed = condense(b, inputs.fine, il, cur, "attn_compressor", head)
        index_keys = condense(b, inputs.indexer, il, cur, "indexer_compressor", h.indexer_head_size)
        chosen = index(b, inputs.indexer, index_keys, il, rows, cur, positions)
        mask = inputs.fine.keys.mask
        mask = chosen_mask(mask, chosen, shown_zeros(b, mask, mask.type))
    elif ratio == COARSE:
        condensed, mask = condense(b, inputs.coarse, il, cur, "attn_compressor", head), inputs.coarse.keys.mask
    if inputs.rotation is not None:
        q, key = b.rotate(q, inputs.rotation), b.rotate(key, inputs.rotation)
    b.graph.expand(q)
    b.graph.expand(key)
    keys, plain = store_rows(b, inputs.raw.ids, inputs.raw.cells, il, key, b.settings.type_k), inputs.raw.mask
    if condensed is not None and mask is not None:
        keys, plain = t.concat(keys, condensed, 2), t.concat(plain, mask, 0)
    out = b.mha(q, keys, keys, plain, sinks=b.layer(il, "attn_sinks"))
    if inputs.rotation is not None:
        out = b.rotate(out, inputs.rotation)
    return _project(b, il, t.unary("rope_back", t.reshape(out, head, n_head, n), positions))


def _project(b: Builder, il: int, cur: Tensor) -> Tensor:
    """The output projection, in two steps, the first of them for groups of heads."""
    n, groups = b.n_tokens, b.h.number("attention.output_group_count")
    rank = b.h.number("attention.output_lora_rank")
    cur = t.permute(t.reshape(cur, cur.ne[0] * cur.ne[1] // groups, groups, n), 0, 2, 1, 3)
    cur = t.made("mul_mat", F32, (rank, n, groups), b.needed(il, "attn_output_a"), cur)
    cur = t.cont(t.permute(cur, 0, 2, 1, 3), rank * groups, n)
    return t.mul_mat(b.needed(il, "attn_output_b"), cur)


def experts(b: Builder, il: int, cur: Tensor, tokens: Tensor) -> Tensor:
    """Experts, chosen by the router or (in the first layers) by the token alone, beside the shared ones."""
    by_token = b.layer(il, "ffn_gate_tid2eid")
    chosen = None if by_token is None else t.get_rows(by_token, tokens)
    out = moe(b, il, cur, normed=bool(b.h.value("expert_weights_norm", False)), chosen=chosen)
    return t.add(out, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp"))


def mix(b: Builder, cur: Tensor, il: int, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """`build_hc_pre`: one stream made of all; how much of the result goes back, and how streams change places."""
    width, streams, n, _ = cur.ne
    weights = stream_weights(b, cur, f"blk.{il}.hc_{part}")
    scale, base = b.weight(f"blk.{il}.hc_{part}_scale.weight"), b.weight(f"blk.{il}.hc_{part}_base.weight")
    before, after = (_gate(weights, scale, base, streams, n) for _ in range(2))
    crossed = t.made("dsv4_hc_comb", F32, (streams, streams, n), weights, scale, base)
    return t.made("dsv4_hc_pre", F32, (width, n), cur, before), after, crossed


def _gate(weights: Tensor, scale: Tensor, base: Tensor, streams: int, n: int) -> Tensor:
    cur = t.mul(t.view(weights, (streams, n)), t.view(scale, (1,)))
    return t.scale(t.activation(t.add(cur, t.view(base, (streams,)))))


def spread(cur: Tensor, residual: Tensor, after: Tensor, crossed: Tensor) -> Tensor:
    """`build_hc_post`."""
    return t.made("dsv4_hc_post", F32, residual.ne, cur, residual, after, crossed)


def deepseek4(b: Builder, _: list[int]) -> None:
    """src/models/deepseek4.cpp."""
    n_embd, streams, n = b.h.n_embd, b.h.dsv4_hc_mult, b.n_tokens
    cur = b.embed()
    tokens = cur.src[1]
    positions = b.positions()
    out_ids = b.out_ids()
    inputs = inputs_of(b)
    b.graph.expand(inputs.raw.mask)
    cur = t.repeat(t.reshape(cur, n_embd, 1, n), n_embd, streams, n)
    for il in every_layer(b):
        mixed, after, crossed = mix(b, cur, il, "attn")
        out = attention(b, inputs, il, b.norm(mixed, b.layer(il, "attn_norm")), positions)
        cur = spread(out, cur, after, crossed)
        mixed, after, crossed = mix(b, cur, il, "ffn")
        for tensor in (cur, after, crossed):
            b.graph.expand(tensor)
        out = experts(b, il, b.norm(mixed, b.layer(il, "ffn_norm")), tokens)
        cur = spread(out, cur, after, crossed)
    cur = t.reshape(t.get_rows(t.reshape(cur, n_embd * streams, n), out_ids), n_embd, streams, b.n_outputs)
    b.output(weighted(cur, stream_weights(b, cur, "output_hc")))


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {"deepseek4": deepseek4}
