"""Graphs of models that mix Kimi delta attention with latent attention: Kimi Linear, Ling 3 and Kimi K3.

Follows llama.cpp b11434: src/models/kimi-linear.cpp, bailingmoe3.cpp and kimi-k3.cpp. How a decay is limited is left
out: it takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.delta import delta_net, late_output, unit
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.latent import latent_attention, latent_inputs
from modelpipes.fit.compute.state import StateInputs, read_state, state_cache, state_inputs, write_state
from modelpipes.fit.compute.tensor import F32, Tensor


def kimi_delta_attention(b: Builder, inputs: StateInputs, il: int, cur: Tensor) -> Tensor:
    """A recurrent layer (`build_kda_layer`): a decay for each element of a head."""
    h = b.h
    size, heads, n_seqs = h.n_embd_head_kda, h.n_head[0], b.n_seqs
    shape = (size, heads, b.n_tokens // n_seqs, n_seqs)
    q, k, v = convolved(b, inputs, il, cur)
    decay = t.add(low_rank(b, il, cur, "ssm_f_a", "ssm_f_b"), b.weight(f"blk.{il}.ssm_dt.bias"))
    per_head = t.reshape(b.weight(f"blk.{il}.ssm_a"), 1, heads, 1)
    decay = t.reshape(t.mul(t.reshape(decay, size, heads, b.n_tokens), per_head), *shape)
    beta = t.activation(t.reshape(t.mul_mat(b.needed(il, "ssm_beta"), cur), 1, *shape[1:]))
    out = t.cont(delta_net(b, inputs, il, unit(q), unit(k), v, decay, beta))
    full_gate = b.layer(il, "ssm_g")
    gate = low_rank(b, il, cur, "ssm_g_a", "ssm_g_b") if full_gate is None else t.mul_mat(full_gate, cur)
    gate = t.reshape(gate, size, heads, b.n_tokens)
    out = b.norm(t.reshape(out, size, heads, b.n_tokens), b.needed(il, "ssm_norm"))
    out = t.cont(t.mul(out, t.activation(gate)), size * heads, b.n_tokens)
    return t.mul_mat(b.needed(il, "attn_output"), out)


def low_rank(b: Builder, il: int, cur: Tensor, first: str, second: str) -> Tensor:
    """A product with two thin matrices, or with one."""
    cur = t.mul_mat(b.needed(il, first), cur)
    weight = b.layer(il, second)
    return cur if weight is None else t.mul_mat(weight, cur)


def convolved(b: Builder, inputs: StateInputs, il: int, cur: Tensor) -> list[Tensor]:
    """Queries, keys and values [head size, heads, tokens of a sequence, n_seqs] (`causal_conv1d`)."""
    h = b.h
    size, heads, width, n_seqs = h.n_embd_head_kda, h.n_head[0], h.ssm_d_conv, b.n_seqs
    inner, n_tokens = size * heads, b.n_tokens // n_seqs
    cache = state_cache(b, il, "r")
    states = read_state(b, inputs, cache)
    parts = []
    for name, rows in zip("qkv", projections(b, il, cur), strict=True):
        before = t.view(states, (width - 1, inner, n_seqs), (4, 4 * (width - 1), states.nb[1]))
        shifted = t.concat(before, t.transpose(t.reshape(rows, inner, n_tokens, n_seqs)), 0)
        write_state(b, cache, t.view(shifted, before.ne, shifted.nb))
        weight = t.reshape(b.needed(il, f"ssm_conv1d_{name}"), width, inner)
        conv = t.made("ssm_conv", F32, (inner, n_tokens, n_seqs), shifted, weight)
        parts.append(t.reshape(t.activation(t.reshape(conv, inner, b.n_tokens)), size, heads, n_tokens, n_seqs))
    return parts


def projections(b: Builder, il: int, cur: Tensor) -> list[Tensor]:
    """What is convolved; of one matrix for all three the parts are copied."""
    fused = b.layer(il, "attn_qkv")
    if fused is None:
        return [t.mul_mat(b.needed(il, f"attn_{name}"), cur) for name in "qkv"]
    both = t.mul_mat(fused, cur)
    return [t.cont(t.view(both, (both.ne[0] // 3, b.n_tokens), both.nb[:2])) for _ in "qkv"]


def clamped_glu(gate: Tensor, up: Tensor) -> Tensor:
    """`swiglu_clamp_*` where no fused operation does it."""
    return t.mul(t.activation(gate), up)


def situ(gate: Tensor, up: Tensor) -> Tensor:
    """Kimi K3's activation: a product of functions of the gate, and `up` bent in its place."""
    return t.mul(t.mul(t.scale(gate), t.activation(gate)), up)


Gated = Callable[[Tensor, Tensor], Tensor]


def limited(b: Builder, key: str, il: int) -> Gated:
    """How a layer's gate is applied: with a limit where the file gives one."""
    limits = b.h.value(key, 0.0)
    limit = limits[il] if isinstance(limits, list) else limits
    is_limited = isinstance(limit, float) and limit > 1e-6
    return clamped_glu if is_limited else t.glu_split


def feed_forward(b: Builder, il: int, cur: Tensor, normed: bool = True, *, limits_at_once: bool = False) -> Tensor:
    """Dense in the first layers, then experts and one that every token passes.

    `limits_at_once`: the gate and its limit are one operation (glm5-next.cpp).
    """
    shared, chosen = (
        t.glu_split if limits_at_once else limited(b, key, il) for key in ("swiglu_clamp_shexp", "swiglu_clamp_exp")
    )
    if b.layer(il, "ffn_gate_inp") is None:
        return b.ffn(il, cur, gated=shared)
    out = moe(b, il, cur, normed=normed, gated=chosen)
    return t.add(out, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp", gated=shared))


def kimi_linear(b: Builder, layers: list[int]) -> None:
    """src/models/kimi-linear.cpp: attention without positions."""
    cur = b.embed()
    states, inputs, out_ids = state_inputs(b), latent_inputs(b), b.out_ids()
    for il in layers:
        residual = cur
        cur = b.graph.expand(b.norm(cur, b.needed(il, "attn_norm")))
        if b.h.is_recr[il]:
            cur = kimi_delta_attention(b, states, il, cur)
        else:
            cur = latent_attention(b, inputs, il, cur, None, wo=b.needed(il, "attn_output"))
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        residual = t.add(cur, residual)
        cur = t.add(feed_forward(b, il, b.norm(residual, b.needed(il, "ffn_norm"))), residual)
    b.output(cur)


def bailingmoe3(b: Builder, layers: list[int]) -> None:
    """src/models/bailingmoe3.cpp: attention has a gate for each head."""
    cur = b.embed()
    states, inputs = state_inputs(b), latent_inputs(b)
    positions, out_ids = b.positions(), b.out_ids()
    normed = bool(b.h.value("expert_weights_norm", False))
    for il in layers:
        residual = cur
        cur = b.norm(cur, b.needed(il, "attn_norm"))
        if b.h.is_recr[il]:
            cur = kimi_delta_attention(b, states, il, cur)
        else:
            out = latent_attention(b, inputs, il, cur, positions)
            heads = b.h.n_head[0]
            gate = t.activation(t.reshape(t.mul_mat(b.needed(il, "attn_gate"), cur), 1, heads, b.n_tokens))
            out = t.mul(t.reshape(out, out.ne[0] // heads, heads, b.n_tokens), gate)
            cur = t.mul_mat(b.needed(il, "attn_output"), t.cont(out, out.ne[0] * heads, b.n_tokens))
        residual = t.add(cur, residual)
        cur = t.add(feed_forward(b, il, b.norm(residual, b.needed(il, "ffn_norm")), normed), residual)
    late_output(b, cur, out_ids)


class Residuals:
    """Kimi K3's residual stream, and the sums kept of every few layers, which later layers look back at."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.period = b.h.number("attn_res.block_size")
        self.kept: Tensor | None = None

    def keep(self, cur: Tensor) -> None:
        """`res_push`."""
        row = t.reshape(cur, cur.ne[0], 1, cur.ne[1])
        self.kept = row if self.kept is None else t.concat(self.kept, row, 1)

    def mix(self, cur: Tensor, score: Tensor | None) -> Tensor:
        """`res_mix`: an average of what is kept and the stream, weighted by their scores."""
        kept = self.kept
        if kept is None or score is None:
            return cur
        n, n_tokens = kept.ne[1:3]
        scores = t.reshape(t.sum_rows(self.b.norm(kept, score)), n, n_tokens)
        shares = t.soft_max(t.concat(scores, t.sum_rows(self.b.norm(cur, score)), 0))
        of_kept, of_cur = (t.cont(t.view(shares, (width, n_tokens), shares.nb[:2])) for width in (n, 1))
        total = t.made("dsv4_hc_pre", F32, cur.ne, kept, of_kept)
        return t.add(total, t.mul(cur, of_cur))


def kimi_k3(b: Builder, layers: list[int]) -> None:
    """src/models/kimi-k3.cpp; no two blocks are alike: each has more to look back at than the last."""
    stream = b.embed()
    states, inputs, out_ids = state_inputs(b), latent_inputs(b), b.out_ids()
    residuals = Residuals(b)
    for il in layers:
        cur = residuals.mix(stream, b.layer(il, "attn_res_score"))
        keeps = residuals.period > 0 and il % residuals.period == 0
        if keeps:
            residuals.keep(stream)
        cur = b.graph.expand(b.norm(cur, b.needed(il, "attn_norm")))
        if b.h.is_recr[il]:
            cur = kimi_delta_attention(b, states, il, cur)
        else:
            out = latent_attention(b, inputs, il, cur, None)
            if (weight := b.layer(il, "attn_gate")) is not None:
                out = t.mul(out, t.activation(t.mul_mat(weight, cur)))
            cur = t.mul_mat(b.needed(il, "attn_output"), out)
        stream = cur if keeps else t.add(stream, cur)
        cur = b.norm(residuals.mix(stream, b.layer(il, "ffn_res_score")), b.needed(il, "ffn_norm"))
        dense = b.layer(il, "ffn_gate_inp") is None
        stream = t.add(stream, b.ffn(il, cur, gated=situ) if dense else latent_experts(b, il, cur))
    b.output(t.get_rows(residuals.mix(stream, b.w("output_res_score")), out_ids))


def latent_experts(b: Builder, il: int, cur: Tensor) -> Tensor:
    """`build_latent_moe`: experts of narrower rows, chosen by the whole ones."""
    down, norm, up = (b.layer(il, f"ffn_routed_{name}") for name in ("down", "norm", "up"))
    rows = cur if down is None else t.mul_mat(down, cur)
    scores = t.mul_mat(b.needed(il, "ffn_gate_inp"), cur)
    out = moe(b, il, rows, probs=scores, normed=bool(b.h.value("expert_weights_norm", False)), gated=situ)
    out = out if norm is None else b.norm(out, norm)
    out = out if up is None else t.mul_mat(up, out)
    if b.layer(il, "ffn_gate_shexp") is None:
        return out
    return t.add(out, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp", gated=situ))


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "kimi-linear": kimi_linear,
    "bailingmoe3": bailingmoe3,
    "kimi-k3": kimi_k3,
}
