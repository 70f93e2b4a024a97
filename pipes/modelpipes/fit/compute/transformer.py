"""Graphs of transformers that attend over a cache of keys and values: dense ones and mixtures of experts.

What a model has (biases, norms of queries and keys, gates, shared experts) is seen from its weights; what
they do not tell stands in the table of styles. Follows src/models/*.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.tensor import Tensor
from modelpipes.fit.hparams import Hparams

# How the parts of a block are added up where feed-forward runs beside attention.
Parallel = Literal["", "ffn+attention", "attention+ffn", "ffn+input"]


# From where on only the tokens that have an output are computed; `all` have one.
Rows = Literal["last-block", "last-norm", "output", "all"]
# Which layers turn queries and keys by their positions: of `three-of-four`, not every fourth; of `small`, all or none.
Rope = Literal["all", "none", "windowed", "three-of-four", "small"]
NO_ROPE_STEP = 4  # llama_hparams::n_no_rope_layer_step


class Style(Struct, frozen=True):
    """How an architecture differs from LLaMA's."""

    norm: str = "rms_norm"
    bare_norm: bool = False  # norms that have no weights
    scaled_input: bool = False  # the embeddings are multiplied token by token
    scaled_embeddings: bool | None = False  # all by one number; None: where the file says so
    rope: Rope = "all"
    table_of_positions: bool = False  # learned positions are added to the embeddings
    parallel: Parallel = ""
    parallel_if_told: bool = False  # the file may say that the parts are not parallel
    ffn_norm: str = "ffn_norm"
    attended_norm: str = ""  # of what attention found
    lent_norm: bool = False  # feed-forward without a norm of its own is given what attention was
    loses_attention: bool = False  # what attention found is lost where there is no feed-forward
    dense: bool = False  # experts in the file are not used
    dense_beside: bool = False  # experts have a dense part beside them
    softmax_weight: bool = False  # the weights of the chosen experts alone are made to sum to one
    normed_experts: bool | None = True  # None: as the file says
    early_router: bool = False  # experts are chosen by the block's input
    rows: Rows = "last-block"
    residual_first: Literal["", "first", "last"] = ""  # which of a block's sums begins with what went past


SMALL_LAYERS = 32  # those of Baichuan 7B, whose larger sister has no rope

LAYER_NORM = Style(norm="norm")
FILE_NORMED = Style(normed_experts=None)
UNNORMED = Style(normed_experts=False)

STYLES: dict[str, Style] = {
    **dict.fromkeys(["codeshell", "jais2", "nemotron", "orion", "pockettts", "starcoder2"], LAYER_NORM),
    "stablelm": Style(norm="norm", lent_norm=True),
    "baichuan": Style(rope="small"),
    "deci": Style(loses_attention=True),
    **dict.fromkeys(["bloom", "jais"], Style(norm="norm", rope="none")),
    **dict.fromkeys(["gpt2", "mpt", "starcoder"], Style(norm="norm", rope="none", table_of_positions=True)),
    "command-r": Style(norm="norm", parallel="ffn+input"),
    "gptneox": Style(norm="norm", parallel="ffn+input", parallel_if_told=True),
    "cohere2": Style(norm="norm", parallel="ffn+input", rope="windowed"),
    **dict.fromkeys(["bailingmoe", "bailingmoe2", "dots1", "glm4moe", "laguna"], FILE_NORMED),
    **dict.fromkeys(["gemma", "gemma2", "minicpm"], Style(scaled_embeddings=True)),
    "grok": Style(scaled_embeddings=True, attended_norm="attn_output_norm", dense_beside=True),
    **dict.fromkeys(["granite", "granitemoe", "granite_swa", "graniteswitch"], Style(scaled_embeddings=None)),
    "afmoe": Style(normed_experts=None, scaled_embeddings=True, rope="three-of-four"),
    "exaone-moe": Style(normed_experts=None, rope="windowed"),
    "exaone4": Style(rope="windowed"),
    "muse-glimmer": Style(rope="windowed"),
    "smollm3": Style(rope="three-of-four"),
    **dict.fromkeys(["deepseek", "olmoe", "qwen2moe"], UNNORMED),
    "cohere2moe": Style(rope="windowed", parallel="ffn+attention", normed_experts=None, rows="output"),
    **dict.fromkeys(("dflash", "eagle3"), Style(rows="all")),
    "dbrx": Style(norm="norm", ffn_norm="attn_output_norm"),
    "falcon": Style(norm="norm", parallel="ffn+attention"),
    "gemma3": Style(scaled_input=True),
    "gpt-oss": Style(
        softmax_weight=True, normed_experts=False, ffn_norm="post_attention_norm", rows="last-norm"
    ),
    "hy_v3": Style(normed_experts=None, rows="output"),
    "olmo": Style(norm="norm", bare_norm=True),
    "openelm": Style(residual_first="first"),
    "phi2": Style(norm="norm", parallel="attention+ffn"),
    **dict.fromkeys(["phi3", "phimoe"], Style(residual_first="last")),
    "plamo": Style(parallel="ffn+attention"),
    "refact": Style(rope="none", dense=True),
    "smallthinker": Style(early_router=True, rope="windowed"),
    "step35": Style(normed_experts=None, rows="last-norm"),
}  # fmt: skip
PLAIN = Style()


def transformer(b: Builder, layers: list[int]) -> None:
    """The whole graph, of the given layers only."""
    h, context = b.h, b.context
    style = STYLES.get(h.arch, PLAIN)
    cur = b.embed(style.scaled_input)
    multiplied = style.scaled_embeddings
    if b.h.value("embedding_scale") if multiplied is None else multiplied:
        cur = b.graph.expand(t.scale(cur))
    positions = b.positions()
    if style.table_of_positions and (table := b.w("position_embd")) is not None:
        cur = t.add(cur, t.get_rows(table, positions))
    if (weight := b.w("token_embd_norm")) is not None:
        cur = b.norm(cur, weight, b.weights["token_embd_norm.bias"], style.norm)
    has_window = h.swa_type != "none"
    full = b.attention_inputs(context.cells, False if has_window else None)
    window = b.attention_inputs(context.cells_swa, True) if has_window else None
    out_ids = b.out_ids()
    for il in layers:
        windowed = window is not None and h.is_swa[il]
        inputs, cells = (window, context.cells_swa) if windowed else (full, context.cells)
        assert inputs is not None
        rows = out_ids if il == layers[-1] and style.rows == "last-block" else None
        cur = block(b, style, il, cur, positions, inputs, cells, rows)
        if b.inputs is not None and il < b.h.number("n_deepstack_layers"):
            cur = t.add(cur, t.view(b.inputs, (h.n_embd, b.n_tokens)))
    if style.rows == "last-norm":
        cur.is_output = True  # a draft model may read it (t_h_nextn)
        cur = t.get_rows(cur, out_ids)
    b.output(cur, style.norm, out_ids if style.rows == "output" else None)


def block(
    b: Builder, style: Style, il: int, residual: Tensor, positions: Tensor, inputs: AttentionInputs, cells: int,
    rows: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention and feed-forward of one layer; of the chosen `rows` only, behind the last attention."""
    if not b.h.n_head[il] or not b.h.n_head_kv[il]:
        return without_attention(b, style, il, residual, rows)
    normed = norm(b, style, il, "attn_norm", residual)
    second = b.layer(il, "attn_norm_2")
    attended = normed if second is None else norm(b, style, il, "attn_norm_2", residual)
    probs = t.mul_mat(b.needed(il, "ffn_gate_inp"), residual) if style.early_router else None
    cur = attention(b, style, il, attended, positions, inputs, cells)
    if rows is not None:
        cur, residual = t.get_rows(cur, rows), t.get_rows(residual, rows)
    if style.loses_attention and not b.h.n_ff[il]:
        return residual  # in llama.cpp as well
    if rows is not None:
        probs = None if probs is None else t.get_rows(probs, rows)
    if style.parallel and (not style.parallel_if_told or b.h.value("use_parallel_residual", True)):
        return beside(b, style, il, cur, normed, residual, rows)
    if style.ffn_norm != "post_attention_norm":
        cur = norm(b, style, il, "post_attention_norm", cur)
    if style.attended_norm:
        cur = norm(b, style, il, style.attended_norm, cur)
    ffn_input = t.add(residual, cur) if style.residual_first == "first" else t.add(cur, residual)
    cur = norm(b, style, il, style.ffn_norm, ffn_input)
    if style.lent_norm and cur is ffn_input:
        cur = normed if rows is None else t.get_rows(normed, rows)
    if b.layer(il, "ffn_norm_exps") is not None:  # arctic: experts beside the block
        out = t.add(b.ffn(il, cur), ffn_input)
        return t.add(moe(b, il, norm(b, style, il, "ffn_norm_exps", residual)), out)
    cur = feed_forward(b, style, il, cur, probs)
    cur = norm(b, style, il, "layer_output_norm", norm(b, style, il, "post_ffw_norm", cur))
    return t.add(ffn_input, cur) if style.residual_first == "last" else t.add(cur, ffn_input)


def without_attention(b: Builder, style: Style, il: int, residual: Tensor, rows: Tensor | None) -> Tensor:
    """A layer that was pruned: one product, or nothing, in place of attention; perhaps no feed-forward (deci)."""
    wo = b.layer(il, "attn_output")
    cur = residual if wo is None else t.mul_mat(wo, norm(b, style, il, "attn_norm", residual))
    if rows is not None:
        cur, residual = t.get_rows(cur, rows), t.get_rows(residual, rows)
    if not b.h.n_ff[il]:
        return residual
    cur = cur if wo is None else t.add(cur, residual)
    return t.add(b.ffn(il, norm(b, style, il, "ffn_norm", cur)), cur)


def beside(
    b: Builder, style: Style, il: int, attended: Tensor, normed: Tensor, residual: Tensor, rows: Tensor | None
) -> Tensor:
    """Feed-forward of what attention was given, or of its own norm of the block's input."""
    if b.layer(il, "ffn_norm") is not None:
        cur = norm(b, style, il, "ffn_norm", residual)
    else:
        cur = normed if rows is None else t.get_rows(normed, rows)
    out = feed_forward(b, style, il, cur, None)
    if style.parallel == "ffn+input":
        return t.add(t.add(out, residual), attended)
    if style.parallel == "ffn+attention":
        return t.add(t.add(out, attended), residual)
    return t.add(t.add(attended, out), residual)


def norm(b: Builder, style: Style, il: int, name: str, cur: Tensor) -> Tensor:
    """The norm of that name, if the layer has one."""
    weight = b.layer(il, name)
    if weight is None and not (style.bare_norm and name in ("attn_norm", "ffn_norm")):
        return cur
    return b.norm(cur, weight, b.bias(il, name), style.norm)


def attention(
    b: Builder, style: Style, il: int, normed: Tensor, positions: Tensor, inputs: AttentionInputs, cells: int
) -> Tensor:
    """Attention of one layer; multiplied by a gate where the layer has one."""
    q, k, v = b.qkv(il, normed)
    q = head_norm(b, style, il, "attn_q_norm", q)
    k = head_norm(b, style, il, "attn_k_norm", k)
    if has_rope(b.h, il):
        q, k = t.rope(q, positions), t.rope(k, positions)
    gate, inner_norm = b.layer(il, "attn_gate"), b.layer(il, "attn_sub_norm")
    wo, wo_bias = b.layer(il, "attn_output"), b.bias(il, "attn_output")
    sinks = b.layer(il, "attn_sinks")
    if gate is None and inner_norm is None:
        return b.attend(inputs, cells, il, q, k, v, sinks=sinks, wo=wo, wo_bias=wo_bias)
    cur = norm(b, style, il, "attn_sub_norm", b.attend(inputs, cells, il, q, k, v, sinks=sinks))
    if gate is not None:
        cur = gated(cur, t.activation(t.mul_mat(gate, normed)))
    return cur if wo is None else b.linear(cur, wo, wo_bias)


def gated(cur: Tensor, gate: Tensor) -> Tensor:
    """Attention times its gate: number by number, or head by head."""
    if gate.ne[0] == cur.ne[0]:
        return t.mul(cur, gate)
    n_head = gate.ne[0]
    heads = t.reshape(cur, cur.ne[0] // n_head, n_head, cur.ne[1])
    return t.reshape(t.mul(heads, t.reshape(gate, 1, n_head, cur.ne[1])), *cur.ne)


def has_rope(h: Hparams, il: int) -> bool:
    """Whether positions turn a layer's queries and keys."""
    style = STYLES.get(h.arch, PLAIN)
    if style.rope == "windowed":
        return h.swa_type == "none" or h.is_swa[il]
    if style.rope == "three-of-four":
        return (il + 1) % NO_ROPE_STEP != 0
    return style.rope == "all" or (style.rope == "small" and h.n_layer == SMALL_LAYERS)


def head_norm(b: Builder, style: Style, il: int, name: str, cur: Tensor) -> Tensor:
    """A norm of queries or keys: of each head, or of all heads together where the weight is as wide."""
    weight = b.layer(il, name)
    if weight is None:
        return cur
    if weight.ne[0] == cur.ne[0]:
        return b.norm(cur, weight, None, style.norm)
    flat = cur.src[0] if cur.op == "reshape" else t.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2])
    return t.reshape(b.norm(flat, weight, None, style.norm), *cur.ne)


def feed_forward(b: Builder, style: Style, il: int, cur: Tensor, probs: Tensor | None) -> Tensor:
    """Dense, or experts with what all tokens share beside them."""
    if style.dense or b.layer(il, "ffn_gate_inp") is None:
        return b.ffn(il, cur)
    normed = style.normed_experts
    out = moe(
        b, il, cur, softmax_weight=style.softmax_weight, probs=probs,
        normed=bool(b.h.value("expert_weights_norm", False)) if normed is None else normed,
    )  # fmt: skip
    if b.layer(il, "ffn_up_shexp") is not None:
        shared = b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp")
        if (gate := b.layer(il, "ffn_gate_inp_shexp")) is not None:
            shared = t.mul(shared, t.activation(t.mul_mat(gate, cur)))
        out = t.add(out, shared)
    elif style.dense_beside and b.layer(il, "ffn_up") is not None:
        out = t.scale(t.add(b.ffn(il, cur), out))
    return out
