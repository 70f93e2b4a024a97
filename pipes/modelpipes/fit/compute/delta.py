"""Graphs of models that mix gated delta nets with attention: Qwen3-Next and Qwen3.5.

Follows llama.cpp b11434: src/models/qwen3next.cpp, qwen35.cpp, qwen35moe.cpp, and delta-net-base.cpp with the fused
operation, which llama.cpp reckons with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.state import StateInputs, read_state, state_cache, state_inputs, write_state
from modelpipes.fit.compute.tensor import F32, Tensor


def shifted_inputs(b: Builder, inputs: StateInputs, cache: Tensor, cur: Tensor, *, copied: bool = False) -> Tensor:
    """`build_conv_state`: `cur` [channels, tokens of a sequence, n_seqs] behind the last inputs before it.

    `copied`: what is kept for the next batch is copied first (qwen4exp.cpp).
    """
    channels, _, n_seqs, _ = cur.ne
    kept = cache.ne[0] // channels
    before = t.reshape(read_state(b, inputs, cache), kept, channels, n_seqs)
    shifted = t.concat(before, t.transpose(cur), 0)
    last = t.view(shifted, before.ne, shifted.nb)
    write_state(b, cache, t.cont(last) if copied else last)
    return shifted


def short_conv(shifted: Tensor, weight: Tensor) -> Tensor:
    """`ggml_ssm_conv` and its activation; the weight as [width, channels]."""
    width, channels = weight.ne[:2]
    conv = t.made("ssm_conv", F32, (channels, shifted.ne[0] - width + 1, shifted.ne[2]), shifted, weight)
    return t.activation(conv)


def unit(cur: Tensor) -> Tensor:
    """`build_gdn_l2_norm`."""
    return t.scale(t.unary("rms_norm", cur))


def delta_net(
    b: Builder, inputs: StateInputs, il: int, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor
) -> Tensor:
    """Read the state, and `build_recurrent_attn`; all [head size, heads, tokens of a sequence, n_seqs]."""
    cache = state_cache(b, il, "s")
    size, heads, n_tokens, n_seqs = v.ne
    state = t.reshape(read_state(b, inputs, cache), size, size, heads, n_seqs)
    rows = (n_tokens + size) * n_seqs  # the states come out behind the results
    both = t.made("gated_delta_net", F32, (size * heads, rows), q, k, v, decay, beta, state)
    row = 4 * size
    write_state(b, cache, t.view(both, (size, size, heads, n_seqs), (4, row, row * size, row * size * heads)))
    return t.view(both, v.ne, (4, row, row * heads, row * heads * n_tokens))


def linear_attention(
    b: Builder, inputs: StateInputs, il: int, cur: Tensor, *, repeats: bool = False, copied: bool = False
) -> Tensor:
    """`build_layer_attn_linear`: decay and beta for each head, queries, keys and values by a short convolution.

    `repeats`: queries and keys are made as many as there are heads of the values (qwen3next.cpp).
    """
    h = b.h
    size, k_heads, v_heads = h.ssm_d_state, h.ssm_n_group, h.ssm_dt_rank
    n_seqs, n_tokens = b.n_seqs, b.n_tokens // b.n_seqs
    mixed, z = mixed_projections(b, il, cur)
    beta, alpha = gates(b, il, cur)
    alpha = t.activation(t.add(alpha, b.weight(f"blk.{il}.ssm_dt.bias")))
    decay = t.reshape(t.mul(alpha, b.weight(f"blk.{il}.ssm_a")), 1, v_heads, n_tokens, n_seqs)
    shifted = shifted_inputs(b, inputs, state_cache(b, il, "r"), mixed, copied=copied)
    conv = short_conv(shifted, b.needed(il, "ssm_conv1d"))
    row = conv.nb[1]
    strides = (4, 4 * size, row, row * n_tokens)
    q = unit(t.view(conv, (size, k_heads, n_tokens, n_seqs), strides))
    k = unit(t.view(conv, (size, k_heads, n_tokens, n_seqs), strides))
    v = t.view(conv, (size, v_heads, n_tokens, n_seqs), strides)
    if repeats and k_heads != v_heads:
        q, k = (repeated_heads(tensor, v_heads) for tensor in (q, k))
    out = delta_net(b, inputs, il, q, k, v, decay, beta)
    gate = t.activation(t.reshape(z, size, v_heads, n_tokens, n_seqs))
    out = t.mul(b.norm(out, b.needed(il, "ssm_norm")), gate)
    out = t.mul_mat(b.needed(il, "ssm_out"), t.reshape(out, size * v_heads, n_tokens, n_seqs))
    return t.reshape(out, h.n_embd, b.n_tokens)


def mixed_projections(b: Builder, il: int, cur: Tensor) -> tuple[Tensor, Tensor]:
    """`build_qkvz`: what is convolved, and what gates the result."""
    n_seqs, n_tokens = b.n_seqs, b.n_tokens // b.n_seqs
    qkv = b.layer(il, "attn_qkv")
    if qkv is not None:
        mixed = t.mul_mat(qkv, cur)
        return t.reshape(mixed, mixed.ne[0], n_tokens, n_seqs), t.mul_mat(b.needed(il, "attn_gate"), cur)
    # older files of Qwen3-Next: all parts of a head together
    size, heads, inner = b.h.ssm_d_state, b.h.ssm_n_group, b.h.ssm_d_inner
    both = t.mul_mat(b.needed(il, "ssm_in"), cur)
    both = t.reshape(both, both.ne[0] // heads, heads, n_tokens, n_seqs)
    widths = (size, size, inner // heads, inner // heads)
    q, k, v, z = (t.view(both, (width, heads, n_tokens, n_seqs), both.nb) for width in widths)
    q, k, v = (t.cont(part, part.ne[0] * heads, n_tokens, n_seqs) for part in (q, k, v))
    return t.concat(t.concat(q, k, 0), v, 0), t.cont(z)


def gates(b: Builder, il: int, cur: Tensor) -> tuple[Tensor, Tensor]:
    """Beta [1, heads, tokens of a sequence, n_seqs] and alpha [heads, ...], of one matrix in Qwen3-Next."""
    k_heads, heads = b.h.ssm_n_group, b.h.ssm_dt_rank
    n_seqs, n_tokens = b.n_seqs, b.n_tokens // b.n_seqs
    both = b.layer(il, "ssm_ba")
    if both is None:
        beta = t.reshape(t.mul_mat(b.needed(il, "ssm_beta"), cur), 1, heads, n_tokens, n_seqs)
        alpha = t.mul_mat(b.needed(il, "ssm_alpha"), cur)
        return t.activation(beta), t.reshape(alpha, heads, n_tokens, n_seqs)
    mixed = t.reshape(t.mul_mat(both, cur), 2 * heads // k_heads, k_heads, n_tokens, n_seqs)
    half = t.view(mixed, (heads // k_heads, k_heads, n_tokens, n_seqs), mixed.nb)
    beta = t.reshape(t.activation(t.cont(half)), 1, heads, n_tokens, n_seqs)
    other = t.view(mixed, half.ne, mixed.nb)
    return beta, t.cont(other, heads, n_tokens, n_seqs)


def repeated_heads(cur: Tensor, heads: int) -> Tensor:
    """Queries or keys for each head of the values."""
    size, k_heads, n_tokens, n_seqs = cur.ne
    cur = t.reshape(cur, size, 1, k_heads, n_tokens * n_seqs)
    cur = t.repeat(cur, size, heads // k_heads, k_heads, n_tokens * n_seqs)
    return t.reshape(cur, size, heads, n_tokens, n_seqs)


def gated_attention(b: Builder, inputs: AttentionInputs, il: int, cur: Tensor, positions: Tensor) -> Tensor:
    """`build_layer_attn`: queries come with a gate for what attention gives."""
    h, n = b.h, b.n_tokens
    size, heads, kv_heads = h.n_embd_head_k[il], h.n_head[il], h.n_head_kv[il]
    both, k, v = separate_projections(b, il, cur)
    row = 4 * 2 * size
    strides = (4, row, row * heads)
    q = b.norm(t.view(both, (size, heads, n), strides), b.needed(il, "attn_q_norm"))
    k = b.norm(t.reshape(k, size, kv_heads, n), b.needed(il, "attn_k_norm"))
    q, k = t.rope(q, positions), t.rope(k, positions)
    cur = b.attend(inputs, b.context.cells, il, q, k, t.reshape(v, size, kv_heads, n))
    gate = t.activation(t.cont(t.view(both, (size, heads, n), strides), size * heads, n))
    return t.mul_mat(b.needed(il, "attn_output"), t.mul(cur, gate))


def separate_projections(b: Builder, il: int, cur: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`build_qkv` without heads: of one matrix the parts are copied."""
    h, n = b.h, b.n_tokens
    fused = b.layer(il, "attn_qkv")
    if fused is None:
        q, k, v = (b.linear(cur, b.needed(il, name), b.bias(il, name)) for name in ("attn_q", "attn_k", "attn_v"))
        return q, k, v
    both = b.linear(cur, fused, b.bias(il, "attn_qkv"))
    widths = (2 * h.n_embd_head_k[il] * h.n_head[il], h.n_embd_k_gqa(il), h.n_embd_v_gqa(il))
    q, k, v = (t.cont(t.view(both, (width, n), both.nb[:2])) for width in widths)
    return q, k, v


def feed_forward(b: Builder, il: int, cur: Tensor) -> Tensor:
    """`build_layer_ffn`: dense, or experts and a gated one that every token passes."""
    if b.layer(il, "ffn_gate_inp") is None:
        return b.ffn(il, cur)
    out = moe(b, il, cur)
    if b.layer(il, "ffn_up_shexp") is None:
        return out
    shared = b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp")
    gate = t.activation(t.mul_mat(b.needed(il, "ffn_gate_inp_shexp"), cur))
    return t.add(out, t.mul(shared, gate))


def late_output(b: Builder, cur: Tensor, out_ids: Tensor, *, classifies: bool = False) -> None:
    """The last norm of all tokens, kept for a block that predicts further ones, and the logits of some.

    `classifies`: beside these what a classifier gives, if the file has one (qwen35.cpp).
    """
    cur = b.norm(cur, b.w("output_norm"))
    cur.is_output = True
    cur = t.get_rows(cur, out_ids)
    if classifies and (weight := b.w("cls.output")) is not None:
        b.graph.expand(b.linear(cur, weight, b.weights["cls.output.bias"])).is_output = True
    b.graph.expand(t.mul_mat(b.weight("output.weight"), cur))


def delta(b: Builder, layers: list[int], *, repeats: bool = False, classifies: bool = False) -> None:
    """src/models/qwen3next.cpp, qwen35.cpp and qwen35moe.cpp."""
    cur = b.embed()
    states, inputs = state_inputs(b), b.attention_inputs(b.context.cells)
    positions = b.positions()
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        cur = b.graph.expand(b.norm(cur, b.needed(il, "attn_norm")))
        if b.h.is_recr[il]:
            cur = linear_attention(b, states, il, cur, repeats=repeats)
        else:
            cur = gated_attention(b, inputs, il, cur, positions)
        residual = t.add(cur, residual)
        cur = feed_forward(b, il, b.norm(residual, b.needed(il, "post_attention_norm")))
        cur = t.add(cur, residual)
    late_output(b, cur, out_ids, classifies=classifies)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "qwen3next": partial(delta, repeats=True),
    "qwen35": partial(delta, classifies=True),
    "qwen35moe": delta,
}
