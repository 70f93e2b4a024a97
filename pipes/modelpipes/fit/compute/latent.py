"""Graphs of models with multi-head latent attention: keys and values are made from one short row for a token.

Follows llama.cpp b11434: src/models/deepseek2.cpp (also for deepseek2-ocr and mistral4), minicpm3.cpp, plm.cpp, and
`build_attn` over caches without values in src/llama-graph.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.tensor import F16, F32, I64, Tensor
from modelpipes.gguf.types import row_bytes

SOFTMAX_WEIGHT = 3  # LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX_WEIGHT


class KeyInputs(Struct, frozen=True):
    """Inputs of attention over a cache of keys alone: the values are the first part of each key."""

    cells: int
    ids: Tensor
    mask: Tensor


def key_inputs(b: Builder, cells: int, mask_type: str | None = None) -> KeyInputs:
    """`build_attn_inp_k`: which cells keys go to, and which ones each token may look at."""
    mask_type = mask_type or (F16 if b.settings.flash_attn else F32)
    ids = t.graph_input(I64, b.n_tokens)
    return KeyInputs(cells, ids, t.graph_input(mask_type, cells, b.n_tokens // b.n_streams, 1, b.n_streams))


def store_rows(b: Builder, ids: Tensor, cells: int, il: int, rows: Tensor, type: str) -> Tensor:
    """Store a row for each token, of one or more heads, and see the whole cache: `cpy_k` and `get_k`."""
    width, n_head, streams = rows.ne[0], rows.ne[1], b.n_streams
    cache = b.cache("k", il, width * n_head, cells, type)
    merged = cache
    if streams > 1:  # the rows' numbers count through all streams
        merged = t.reshape(cache, width * n_head, cells * streams)
        merged.size = cache.size
    rows = t.view(rows, (width * n_head, rows.ne[2]), (rows.nb[0], rows.nb[2]))
    b.graph.expand(t.set_rows(merged, rows, ids))
    return t.cache_view(cache, (width, n_head, cells, streams), row_bytes(type, width), cache.size)


def attend_keys(
    b: Builder, inputs: KeyInputs, il: int, q: Tensor, k: Tensor, v: Tensor, *, v_mla: Tensor | None = None,
    mask: Tensor | None = None, sinks: Tensor | None = None, wo: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`build_attn` over a cache of keys; `mask` stands for that of the inputs."""
    for tensor in (q, v, k):
        b.graph.expand(tensor)
    keys = store_rows(b, inputs.ids, inputs.cells, il, k, b.settings.type_k)
    values = t.view(keys, (v.ne[0], *keys.ne[1:]), keys.nb)
    cur = b.mha(q, keys, values, inputs.mask if mask is None else mask, sinks=sinks, v_mla=v_mla)
    return cur if wo is None else b.linear(cur, wo)


class Sizes(Struct, frozen=True):
    """Widths of a layer's heads and rows; `rope` of `head_k` elements carry the position."""

    n_head: int
    head_k: int
    head_v: int
    rope: int
    rank: int

    @property
    def nope(self) -> int:
        return self.head_k - self.rope


def sizes(b: Builder, il: int) -> Sizes:
    """Those that the file gives; without the sizes for latent caches, those of the full cache."""
    h = b.h
    head_k = h.n_embd_head_k_mla or h.n_embd_head_k[il]
    head_v = h.n_embd_head_v_mla or h.n_embd_head_v[il]
    return Sizes(h.n_head[il], head_k, head_v, h.n_rot[il], h.n_lora_kv)


def compress(b: Builder, il: int, size: Sizes, cur: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """A token's latent row [rank, n_tokens], and the part of its key that carries the position [rope, 1, n_tokens]."""
    n, row = b.n_tokens, 4 * (size.rank + size.rope)
    both = t.mul_mat(b.needed(il, "attn_kv_a_mqa"), cur)
    latent = b.norm(t.view(both, (size.rank, n), (4, row)), b.layer(il, "attn_kv_a_norm"))
    k_rope = t.view(both, (size.rope, 1, n), (4, row, row))
    k_norm = b.layer(il, "attn_k_norm")
    if k_norm is not None:
        k_rope = b.norm(k_rope, k_norm)
    return latent, k_rope if positions is None else t.rope(k_rope, positions)


def query_rows(b: Builder, il: int, cur: Tensor) -> Tensor:
    """What queries are made from: a short row of their own where the model has such, or else the layer's input."""
    weight = b.layer(il, "attn_q_a")
    return cur if weight is None else b.norm(t.mul_mat(weight, cur), b.layer(il, "attn_q_a_norm"))


def queries(b: Builder, il: int, size: Sizes, rows: Tensor) -> Tensor:
    """Queries [head_k, n_head, n_tokens] from `query_rows`."""
    weight = b.layer(il, "attn_q_b")
    q = t.mul_mat(b.needed(il, "attn_q") if weight is None else weight, rows)
    return t.reshape(q, size.head_k, size.n_head, b.n_tokens)


def absorbed(
    b: Builder, il: int, size: Sizes, q: Tensor, latent: Tensor, k_rope: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values for a cache of latent rows: the queries are brought to their width."""
    n, n_head = b.n_tokens, size.n_head
    q_nope = t.view(q, (size.nope, n_head, n), q.nb)
    q_rope = t.view(q, (size.rope, n_head, n), q.nb)
    if positions is not None:
        q_rope = t.rope(q_rope, positions)
    wide = t.mul_mat(b.needed(il, "attn_k_b"), t.permute(q_nope, 0, 2, 1, 3))
    query = t.concat(t.permute(wide, 0, 2, 1, 3), q_rope, 0)
    value = t.reshape(latent, size.rank, 1, n)
    return query, t.concat(value, k_rope, 0), value


def expanded(
    b: Builder, il: int, size: Sizes, q: Tensor, latent: Tensor, k_rope: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads, made from the latent rows before they are stored."""
    n, n_head, per_head = b.n_tokens, size.n_head, 4 * (size.nope + size.head_v)
    strides = (4, per_head, per_head * n_head)
    both = t.mul_mat(b.needed(il, "attn_kv_b"), latent)
    value = t.cont(t.view(both, (size.head_v, n_head, n), strides))
    k_nope = t.view(both, (size.nope, n_head, n), strides)
    key = t.concat(k_nope, t.repeat(k_rope, size.rope, n_head, n), 0)
    return q if positions is None else t.rope(q, positions), key, value


LatentInputs = KeyInputs | AttentionInputs


def latent_inputs(b: Builder) -> LatentInputs:
    """The cache's inputs: of keys alone where the file has the sizes for it, else of keys and values."""
    return key_inputs(b, b.context.cells) if b.h.is_mla else b.attention_inputs(b.context.cells)


def latent_attention(
    b: Builder, inputs: LatentInputs, il: int, cur: Tensor, positions: Tensor | None, *,
    wo: Tensor | None = None, scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A layer's attention from its normed input to the output projection; None: no positions, no projection."""
    size = sizes(b, il)
    q = queries(b, il, size, query_rows(b, il, cur))
    latent, k_rope = compress(b, il, size, cur, positions)
    make = absorbed if isinstance(inputs, KeyInputs) else expanded
    query, key, value = make(b, il, size, q, latent, k_rope, positions)
    if scales is not None:
        query = t.mul(query, scales)
    if isinstance(inputs, KeyInputs):
        return attend_keys(b, inputs, il, query, key, value, v_mla=b.needed(il, "attn_v_b"), wo=wo)
    return b.attend(inputs, b.context.cells, il, query, key, value, wo=wo)


def experts(b: Builder, il: int, cur: Tensor) -> Tensor:
    """Feed-forward: dense in the first layers, then experts beside those that every token passes."""
    if b.layer(il, "ffn_gate_inp") is None:
        return b.ffn(il, cur)
    normed = bool(b.h.value("expert_weights_norm", False))
    out = moe(b, il, cur, normed=normed, softmax_weight=b.h.number("expert_gating_func") == SOFTMAX_WEIGHT)
    return t.add(out, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp"))


Attention = Callable[[int, Tensor], Tensor]


def trunk(
    b: Builder, layers: list[int], cur: Tensor, out_ids: Tensor, attend: Attention, *, scaled: bool = False
) -> None:
    """Layers of attention (normed input to projected output) and feed-forward, and the output."""
    scale = t.scale if scaled else _unscaled
    cur = scale(cur)
    for il in layers:
        residual = cur
        cur = attend(il, b.norm(cur, b.layer(il, "attn_norm")))
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        residual = t.add(scale(cur), residual)
        cur = t.add(scale(experts(b, il, b.norm(residual, b.layer(il, "ffn_norm")))), residual)
    cur = b.norm(cur, b.w("output_norm"))
    cur.is_output = True
    b.graph.expand(t.mul_mat(b.weight("output.weight"), scale(cur)))


def _unscaled(cur: Tensor) -> Tensor:
    return cur


def deepseek2(b: Builder, layers: list[int], *, scaled: bool = False) -> None:
    """src/models/deepseek2.cpp and plm.cpp; minicpm3.cpp: the same nodes but for scales."""
    cur = b.embed()
    scales = t.graph_input(F32, 1, 1, b.n_tokens) if b.h.value("attention.temperature_scale", 0.0) else None
    positions = b.positions()
    inputs = latent_inputs(b)

    def attend(il: int, cur: Tensor) -> Tensor:
        return latent_attention(b, inputs, il, cur, positions, wo=b.needed(il, "attn_output"), scales=scales)

    trunk(b, layers, cur, b.out_ids(), attend, scaled=scaled)


def deepseek2_ocr(b: Builder, layers: list[int]) -> None:
    """src/models/deepseek2.cpp for deepseek2-ocr: plain attention."""
    cur = b.embed()
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)

    def attend(il: int, cur: Tensor) -> Tensor:
        q, k, v = b.qkv(il, cur)
        q, k = t.rope(q, positions), t.rope(k, positions)
        return b.attend(inputs, b.context.cells, il, q, k, v, wo=b.needed(il, "attn_output"))

    trunk(b, layers, cur, b.out_ids(), attend)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "deepseek2": deepseek2,
    "deepseek2-ocr": deepseek2_ocr,
    "mistral4": deepseek2,
    "minicpm3": partial(deepseek2, scaled=True),
    "plm": deepseek2,
}
