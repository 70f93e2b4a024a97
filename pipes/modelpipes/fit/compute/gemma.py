"""Graphs of Gemma 3n and Gemma 4: every layer gets an embedding of its own, and later layers have no cache.

Follows llama.cpp b11434, src/models/gemma3n.cpp and gemma4.cpp, and `layer_reuse_cb` in `create_memory`
(src/llama-model.cpp).
"""

from __future__ import annotations

from collections.abc import Callable

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.tensor import I32, Tensor

N_ALTUP = 4  # copies of the stream, the first of which the layers work on (llama_hparams::n_altup)
ALTUP_WIDTH = 256  # of a layer's embedding (llama_hparams::n_embd_altup)
SPARSE_LAYERS = 10  # the first ones, whose gates let only the largest through (n_layer_sparsity)


class Attention:
    """What attention shares between layers: positions, and the caches with a window and without."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.positions = b.positions()
        self.full = b.attention_inputs(b.context.cells, windowed=False)
        self.window = b.attention_inputs(b.context.cells_swa, windowed=True)
        self.n_with_cache = sum(b.h.has_kv)

    def __call__(self, il: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """Attend to the layer's own cache, or that of the last layer of its kind that has one."""
        b = self.b
        windowed = b.h.is_swa[il]
        inputs, cells = (self.window, b.context.cells_swa) if windowed else (self.full, b.context.cells)
        shared = None if b.h.has_kv[il] else self.n_with_cache - (2 if windowed else 1)
        return b.attend(inputs, cells, il, q, k, v, shared=shared, wo=b.needed(il, "attn_output"))


def _all_layers(b: Builder, layers: list[int]) -> list[int]:
    """All of them where some read a cache on another device: every one of these needs a copy."""
    borrowing = not all(b.h.has_kv) and len(set(b.homes)) > 1
    return list(range(b.h.n_layer_trunk)) if borrowing else layers


def _slice(cur: Tensor) -> Tensor:
    """One plane of three dimensions."""
    return t.view(cur, cur.ne[:2], cur.nb[:2])


def _layer_embeddings(b: Builder, cur: Tensor, width: int) -> Tensor:
    """`build_inp_per_layer` and `project_per_layer_inputs`: (width, tokens, layers)."""
    n_layer = b.h.n_layer_trunk
    chosen = t.get_rows(b.weight("per_layer_token_embd.weight"), t.graph_input(I32, b.n_tokens))
    chosen = b.graph.expand(t.scale(t.reshape(chosen, width, n_layer, b.n_tokens)))
    projected = t.scale(t.mul_mat(b.weight("per_layer_model_proj.weight"), cur))
    projected = b.norm(t.reshape(projected, width, n_layer, b.n_tokens), b.w("per_layer_proj_norm"))
    return t.cont(t.permute(t.scale(t.add(projected, chosen)), 0, 2, 1, 3))


def _from_own_embedding(b: Builder, il: int, cur: Tensor, embeddings: Tensor) -> Tensor:
    """A layer's embedding, gated by the stream."""
    gate = t.activation(t.mul_mat(b.needed(il, "inp_gate"), cur))
    cur = t.mul_mat(b.needed(il, "proj"), t.mul(gate, _slice(embeddings)))
    return b.norm(cur, b.layer(il, "post_norm"))


def _query(b: Builder, il: int, cur: Tensor, positions: Tensor, width: int | None = None) -> Tensor:
    """Queries alone; of `width` elements where they are cut from a fused product."""
    head = b.h.n_embd_head_k[il]
    if width is not None:
        cur = t.cont(t.view(cur, (width, b.n_tokens), cur.nb[:2]))
    cur = t.reshape(cur, head, cur.ne[0] // head, b.n_tokens)
    return t.rope(b.norm(cur, b.layer(il, "attn_q_norm")), positions)


# Gemma 3n
def gemma3n(b: Builder, layers: list[int]) -> None:
    """`llama_model_gemma3n::graph`."""
    n_embd, n = b.h.n_embd, b.n_tokens
    cur = b.embed(scaled=True)
    attention = Attention(b)
    embeddings = _layer_embeddings(b, cur, ALTUP_WIDTH)
    magnitude = _magnitude(cur)
    repeated = t.repeat(cur, n_embd, n, N_ALTUP - 1)
    added = _with_magnitude(t.mul_mat(b.weight("altup_proj.weight"), repeated), magnitude)
    cur = t.concat(cur, added, 2)
    for il in _all_layers(b, layers):
        cur = _gemma3n_block(b, il, cur, attention, embeddings)
    magnitude = _magnitude(_slice(cur))
    others = t.mul_mat(b.weight("altup_unembd_proj.weight"), _rest(cur))
    others = _with_magnitude(others, magnitude)
    merged = _slice(cur)
    for _ in range(N_ALTUP - 1):
        merged = t.add(merged, _slice(others))
    b.output(t.get_rows(t.scale(merged), b.out_ids()))


def _rest(cur: Tensor) -> Tensor:
    """All copies of the stream but the first."""
    return t.view(cur, (*cur.ne[:2], N_ALTUP - 1), cur.nb[:3])


def _magnitude(cur: Tensor) -> Tensor:
    """`calc_magnitude`."""
    return t.unary("sqrt", t.sum_rows(t.unary("sqr", cur)))


def _with_magnitude(cur: Tensor, magnitude: Tensor) -> Tensor:
    own = _magnitude(cur)
    return t.unary("div", t.mul(cur, magnitude), own)


def _gemma3n_block(b: Builder, il: int, stream: Tensor, attention: Attention, embeddings: Tensor) -> Tensor:
    predictions = _predict(b, il, stream)
    active = _slice(predictions)
    cur = b.norm(active, b.layer(il, "attn_norm"))
    laurel = t.mul_mat(b.needed(il, "laurel_r"), t.mul_mat(b.needed(il, "laurel_l"), cur))
    laurel = t.add(b.norm(laurel, b.layer(il, "laurel_post_norm")), cur)
    cur = attention(il, *_gemma3n_qkv(b, il, cur, attention.positions))
    cur = t.add(b.norm(cur, b.layer(il, "post_attention_norm")), active)
    both = t.scale(t.add(cur, laurel))
    cur = b.norm(both, b.layer(il, "ffn_norm"))
    up, gate = t.mul_mat(b.needed(il, "ffn_up"), cur), t.mul_mat(b.needed(il, "ffn_gate"), cur)
    if il < SPARSE_LAYERS:
        gate = _largest(gate)
    cur = t.mul_mat(b.needed(il, "ffn_down"), t.mul(up, t.activation(gate)))
    cur = t.add(b.norm(cur, b.layer(il, "post_ffw_norm")), both)
    corrected = _correct(b, il, predictions, cur)
    first = t.mul(_slice(corrected), b.needed(il, "altup_correct_scale"))
    first = _from_own_embedding(b, il, first, embeddings)
    return t.concat(_slice(corrected), t.add(_rest(corrected), first), 2)


def _gemma3n_qkv(b: Builder, il: int, cur: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if b.h.has_kv[il]:
        q, k, v = b.qkv(il, cur)
        q, k = (b.norm(cur, b.layer(il, f"attn_{name}_norm")) for cur, name in ((q, "q"), (k, "k")))
        return t.rope(q, positions), t.rope(k, positions), b.norm(v, None)
    fused = b.layer(il, "attn_qkv")
    if fused is None:
        return _query(b, il, t.mul_mat(b.needed(il, "attn_q"), cur), positions), None, None
    width = b.h.n_embd_head_k[il] * b.h.n_head[il]
    return _query(b, il, t.mul_mat(fused, cur), positions, width), None, None


def _largest(cur: Tensor) -> Tensor:
    """`gaussian_topk`: what exceeds the mean by so many standard deviations."""
    mean = t.made("mean", cur.type, (1, *cur.ne[1:]), cur)
    squares = t.sum_rows(t.unary("sqr", t.unary("sub", cur, mean)))
    cutoff = t.add(mean, t.scale(t.unary("sqrt", t.scale(squares))))
    return t.activation(t.unary("sub", cur, cutoff))


def _modalities(b: Builder, il: int, cur: Tensor) -> Tensor:
    """`altup_compute_router_modalities`."""
    cur = t.scale(b.norm(cur, b.layer(il, "altup_router_norm")))
    return t.activation(t.mul_mat(b.needed(il, "altup_router"), cur))


def _predict(b: Builder, il: int, stream: Tensor) -> Tensor:
    """`altup_predict`: what the layer will make of every copy."""
    coefficients = t.mul_mat(b.needed(il, "altup_predict_coef"), _modalities(b, il, _slice(stream)))
    coefficients = t.reshape(coefficients, N_ALTUP, N_ALTUP, b.n_tokens)
    turned = t.cont(t.permute(stream, 1, 2, 0, 3))
    predictions = t.mul_mat(turned, coefficients)
    return t.add(t.cont(t.permute(predictions, 0, 2, 1, 3)), stream)


def _correct(b: Builder, il: int, predictions: Tensor, activated: Tensor) -> Tensor:
    """`altup_correct`: every copy moved by what the layer did differently."""
    modalities = _modalities(b, il, activated)
    innovation = t.unary("sub", activated, _slice(predictions))
    coefficients = t.scale(t.mul_mat(b.needed(il, "altup_correct_coef"), modalities))
    coefficients = t.cont(t.transpose(coefficients), 1, b.n_tokens, N_ALTUP)
    innovation = t.repeat(innovation, b.h.n_embd, b.n_tokens, N_ALTUP)
    return t.add(t.mul(innovation, coefficients), predictions)


# Gemma 4
def gemma4(b: Builder, layers: list[int]) -> None:
    """`llama_model_gemma4::graph`."""
    cur = b.embed(scaled=True)
    attention = Attention(b)
    width = b.h.number("embedding_length_per_layer_input")
    embeddings = _layer_embeddings(b, cur, width) if width else None
    for il in _all_layers(b, layers):
        residual = cur
        cur = b.norm(cur, b.layer(il, "attn_norm"))
        cur = attention(il, *_gemma4_qkv(b, il, cur, attention.positions))
        residual = t.add(b.norm(cur, b.layer(il, "post_attention_norm")), residual)
        cur = b.norm(_gemma4_ffn(b, il, residual), b.layer(il, "post_ffw_norm"))
        cur = t.add(cur, residual)
        if embeddings is not None:
            cur = t.add(cur, _from_own_embedding(b, il, cur, embeddings))
        if (scale := b.layer(il, "layer_output_scale")) is not None:
            cur = t.mul(cur, scale)
    cur = b.norm(cur, b.w("output_norm"))
    cur.is_output = True  # a draft model may read it (t_h_nextn)
    cur = t.get_rows(cur, b.out_ids())
    b.graph.expand(b.linear(cur, b.weight("output.weight")))


def _gemma4_qkv(b: Builder, il: int, cur: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Heads of keys and values have the same width; values may be the keys before their norm."""
    h, n = b.h, b.n_tokens
    head = h.n_embd_head_k[il]
    fused = b.layer(il, "attn_qkv")
    if fused is None:
        q = _query(b, il, t.mul_mat(b.needed(il, "attn_q"), cur), positions)
    else:
        cur = t.mul_mat(fused, cur)
        q = _query(b, il, cur, positions, head * h.n_head[il])
    if not h.has_kv[il]:
        return q, None, None
    if fused is None:
        k = t.mul_mat(b.needed(il, "attn_k"), cur)
        weight_v = b.layer(il, "attn_v")
        v = k if weight_v is None else t.mul_mat(weight_v, cur)
    else:
        k, v = (t.cont(t.view(cur, (head * h.n_head_kv[il], n), cur.nb[:2])) for _ in range(2))
    k, v = (t.reshape(part, head, h.n_head_kv[il], n) for part in (k, v))
    return q, t.rope(b.norm(k, b.layer(il, "attn_k_norm")), positions), b.norm(v, None)


def _gemma4_ffn(b: Builder, il: int, residual: Tensor) -> Tensor:
    """Dense, or dense and experts side by side; the router has a norm of its own."""
    out = b.ffn(il, b.norm(residual, b.layer(il, "ffn_norm")))
    router = b.layer(il, "ffn_gate_inp")
    if router is None:
        return out
    out = b.norm(out, b.layer(il, "post_ffw_norm_1"))
    cur = b.norm(residual, b.layer(il, "pre_ffw_norm_2"))
    logits = t.mul_mat(router, t.mul(t.scale(b.norm(residual, None)), b.weight(f"blk.{il}.ffn_gate_inp.scale")))
    experts = b.norm(moe(b, il, cur, probs=logits), b.layer(il, "post_ffw_norm_2"))
    return t.add(out, experts)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {"gemma3n": gemma3n, "gemma4": gemma4}
