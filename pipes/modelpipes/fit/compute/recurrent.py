"""Graphs of models whose layers keep a state, all of them or some beside layers with attention.

Follows llama.cpp b11434: src/models/mamba.cpp (also for mamba2), jamba.cpp, falcon-h1.cpp, granite-hybrid.cpp,
nemotron-h.cpp (also for nemotron_h_moe), plamo2.cpp and lfm2.cpp (also for lfm2moe).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.mamba import bare, mamba, mamba2, plamo2_mamba, short_convolution
from modelpipes.fit.compute.state import StateInputs, state_inputs
from modelpipes.fit.compute.tensor import Tensor

Mixer = Callable[[Builder, StateInputs, int, Tensor], Tensor]


class Style(Struct, frozen=True):
    """A hybrid with a mixer and a feed-forward in every block."""

    mixer: Mixer
    rope: bool = True
    residual_first: tuple[bool, bool] = (False, False)  # in the sums after mixer and feed-forward
    post_norms: bool = False
    normed_experts: bool = True
    scaled: bool = False  # Granite's factors of embeddings, residuals and logits
    output_norm: str = "output_norm"


class Inputs(Struct, frozen=True):
    """What the layers of a hybrid read beside their states; no positions, no rope."""

    states: StateInputs
    attention: AttentionInputs
    cells: int
    positions: Tensor | None


STYLES = {
    "jamba": Style(mamba, rope=False, residual_first=(True, True), normed_experts=False),
    "granitehybrid": Style(mamba2, scaled=True),
    "plamo2": Style(plamo2_mamba, post_norms=True),
    "lfm2": Style(short_convolution, residual_first=(True, True), output_norm="token_embd_norm"),
    "lfm2moe": Style(short_convolution, residual_first=(True, True), output_norm="token_embd_norm"),
}


def recurrent(mixer: Mixer, b: Builder, layers: list[int]) -> None:
    """Mamba's graph: nothing but mixers."""
    cur = b.embed()
    states = state_inputs(b)
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        cur = mixer(b, states, il, b.norm(cur, b.needed(il, "attn_norm")))
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        cur = t.add(cur, residual)
    b.output(cur)


def hybrid(style: Style, b: Builder, layers: list[int]) -> None:
    """Blocks of a mixer or attention, then a feed-forward."""

    def scaled(cur: Tensor, key: str) -> Tensor:
        return t.scale(cur) if style.scaled and b.h.value(key) else cur

    cur = b.graph.expand(scaled(b.embed(), "embedding_scale"))
    rope = style.rope and not (style.scaled and b.h.value("rope.scaling.finetuned") is False)
    inputs = _inputs(b, rope)
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        cur = b.norm(cur, b.needed(il, "attn_norm"))
        cur = style.mixer(b, inputs.states, il, cur) if b.h.is_recr[il] else attention(b, inputs, il, cur)
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        if style.post_norms:
            cur = b.norm(cur, bare(b, il, "post_attention_norm"))
        residual = _sum(scaled(cur, "residual_scale"), residual, style.residual_first[0])
        cur = feed_forward(b, style, il, b.norm(residual, b.needed(il, "ffn_norm")))
        if style.post_norms:
            cur = b.norm(cur, bare(b, il, "post_ffw_norm"))
        cur = _sum(scaled(cur, "residual_scale"), residual, style.residual_first[1])
    cur = b.linear(b.norm(cur, b.w(style.output_norm)), b.weight("output.weight"))
    b.graph.expand(scaled(cur, "logit_scale"))


def falcon_h1(b: Builder, layers: list[int]) -> None:
    """Attention and a mixer side by side in every block."""
    cur = b.embed()
    inputs = _inputs(b, rope=True)
    out_ids = b.out_ids()
    for il in layers:
        norm = b.needed(il, "attn_norm")
        attended = attention(b, inputs, il, b.norm(cur, norm))
        mixed = mamba2(b, inputs.states, il, b.norm(cur, norm))
        cur = t.add(t.add(attended, mixed), cur)
        if il == layers[-1]:
            cur = t.get_rows(cur, out_ids)
        cur = t.add(b.ffn(il, b.norm(cur, bare(b, il, "ffn_norm"))), cur)
    b.output(cur)


def nemotron_h(b: Builder, layers: list[int]) -> None:
    """Blocks of a mixer, attention or a feed-forward; outputs are chosen after the last norm."""
    h = b.h
    cur = b.embed()
    inputs = _inputs(b, rope=False)
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        cur = b.norm(cur, b.needed(il, "attn_norm"))
        if h.is_recr[il]:
            cur = mamba2(b, inputs.states, il, cur)
        elif h.n_ff[il] == 0:
            cur = attention(b, inputs, il, cur)
        else:
            cur = _nemotron_ffn(b, il, cur)
        cur = t.add(cur, residual)
    cur = b.norm(cur, b.w("output_norm"))
    cur.is_output = True  # for a head that predicts further tokens
    b.graph.expand(b.linear(t.get_rows(cur, out_ids), b.weight("output.weight")))


def _nemotron_ffn(b: Builder, il: int, cur: Tensor) -> Tensor:
    """`build_ffn_layer`: experts may work on a narrower embedding."""
    if b.layer(il, "ffn_gate_inp") is None:
        return b.ffn(il, cur)
    down, up = b.layer(il, "ffn_latent_down"), b.layer(il, "ffn_latent_up")
    out = moe(
        b, il, cur if down is None else t.mul_mat(down, cur), normed=bool(b.h.value("expert_weights_norm")),
        probs=t.mul_mat(b.needed(il, "ffn_gate_inp"), cur),
    )  # fmt: skip
    if up is not None:
        out = t.mul_mat(up, out)
    return t.add(out, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp"))


def attention(b: Builder, inputs: Inputs, il: int, cur: Tensor) -> Tensor:
    q, k, v = b.qkv(il, cur)
    q_norm, k_norm = b.layer(il, "attn_q_norm"), b.layer(il, "attn_k_norm")
    if q_norm is not None and k_norm is not None:
        q, k = b.norm(q, q_norm), b.norm(k, k_norm)
    if inputs.positions is not None:
        q, k = t.rope(q, inputs.positions), t.rope(k, inputs.positions)
    return b.attend(
        inputs.attention, inputs.cells, il, q, k, v,
        wo=b.layer(il, "attn_output"), wo_bias=b.bias(il, "attn_output"),
    )  # fmt: skip


def feed_forward(b: Builder, style: Style, il: int, cur: Tensor) -> Tensor:
    """Dense, or experts and maybe one that every token passes."""
    if b.layer(il, "ffn_gate_inp") is None:
        return b.ffn(il, cur)
    out = moe(b, il, cur, normed=style.normed_experts)
    if b.layer(il, "ffn_up_shexp") is None:
        return out
    return t.add(out, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp"))


def _inputs(b: Builder, rope: bool) -> Inputs:
    """`build_inp_mem_hybrid`, or `build_inp_mem_hybrid_iswa` where attention has a window: that never rotates."""
    window = any(b.h.is_swa)
    cells = b.context.cells_swa if window else b.context.cells
    attention_inputs = b.attention_inputs(cells)
    if window:
        attention_inputs.k_rotation = attention_inputs.v_rotation = None
    return Inputs(state_inputs(b), attention_inputs, cells, b.positions() if rope else None)


def _sum(cur: Tensor, residual: Tensor, residual_first: bool) -> Tensor:
    return t.add(residual, cur) if residual_first else t.add(cur, residual)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "mamba": partial(recurrent, mamba),
    "mamba2": partial(recurrent, mamba2),
    "falcon-h1": falcon_h1,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    **{arch: partial(hybrid, style) for arch, style in STYLES.items()},
}
