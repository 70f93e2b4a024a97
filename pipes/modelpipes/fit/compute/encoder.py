"""Graphs of encoders and of diffusion models, which keep nothing between batches: every token sees all others.

Follows llama.cpp b11434: `build_attn_inp_no_cache` and its `build_attn` in src/llama-graph.cpp, and
src/models/*.cpp of each architecture. Pooling and classification are left out, as llama.cpp leaves them out
unless a context is made for embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.tensor import F16, F32, Tensor

DECISION_TYPES = 3  # N_DECISION_TYPES in models/modern-bert.cpp: a head's scores for each type of question


class Masks:
    """Which tokens of a batch see each other, one table for each kind of layer (`build_attn_inp_no_cache`)."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.full = self._mask()
        self.window = self._mask() if b.h.swa_type != "none" else self.full

    def _mask(self) -> Tensor:
        b = self.b
        return t.graph_input(F16 if b.settings.flash_attn else F32, b.n_tokens, b.n_tokens)

    def of(self, il: int) -> Tensor:
        return self.window if self.b.h.is_swa[il] else self.full


def attend(
    b: Builder, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, wo: Tensor, wo_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`build_attn` without a cache."""
    for tensor in (q, k, v):
        b.graph.expand(tensor)
    return b.linear(b.mha(q, k, v, mask, bias=bias), wo, wo_bias)


# BERT and its kin: norms after each step
class Bert(Struct, frozen=True):
    """How one of BERT's kin knows positions: from a table, by rotation, or (neither) by the mask alone."""

    table: bool = False
    rope: bool = False


def bert(b: Builder, layers: list[int], style: Bert) -> None:
    """`llama_model_bert::graph`."""
    positions = b.positions()
    cur = b.embed()
    types = b.w("token_types")
    if types is not None:
        cur = t.add(cur, _first_row(types))
    if style.table:
        cur = t.add(t.get_rows(b.weight("position_embd.weight"), positions), cur)
    cur = b.norm(cur, b.w("token_embd_norm"), b.weights["token_embd_norm.bias"], "norm")
    masks = Masks(b)
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        q, k, v = b.qkv(il, cur)
        q, k = _wide_norm(b, il, q, "attn_q_norm"), _wide_norm(b, il, k, "attn_k_norm")
        if style.rope:
            q, k = t.rope(q, positions), t.rope(k, positions)
        cur = attend(b, masks.of(il), q, k, v, b.needed(il, "attn_output"), b.bias(il, "attn_output"))
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        cur = _layer_norm(b, il, t.add(cur, residual), "attn_output_norm")
        if b.layer(il, "attn_norm_2") is not None:
            cur = _layer_norm(b, il, t.add(cur, residual), "attn_norm_2")
        out = b.ffn(il, cur) if b.layer(il, "ffn_gate_inp") is None else moe(b, il, cur, normed=False)
        cur = _layer_norm(b, il, t.add(out, cur), "layer_output_norm")
    b.graph.expand(cur)


def _first_row(weight: Tensor) -> Tensor:
    row = t.view(weight, (weight.ne[0],))
    row.size = weight.size // weight.ne[1]
    return row


def _layer_norm(b: Builder, il: int, cur: Tensor, name: str) -> Tensor:
    return b.norm(cur, b.layer(il, name), b.bias(il, name), "norm")


def _wide_norm(b: Builder, il: int, cur: Tensor, name: str) -> Tensor:
    """A norm of all heads together, where there is one."""
    if b.layer(il, name) is None:
        return cur
    flat = t.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2])
    return t.reshape(_layer_norm(b, il, flat, name), *cur.ne)


# Later encoders, and diffusion models: norms before each step
class Modern(Struct, frozen=True):
    """What one architecture does that the weights do not tell."""

    norm: str = "rms_norm"
    scaled_input: bool = False
    normed_experts: bool = True
    logits: bool = False


def modern(b: Builder, layers: list[int], style: Modern) -> None:
    """The graphs of models/modern-bert.cpp, neo-bert.cpp, eurobert.cpp, gemma-embedding.cpp, dream.cpp, ..."""
    n_head_blocks = b.h.number("decision.block_count")
    cur = b.embed(style.scaled_input)
    if b.w("token_embd_norm") is not None:
        cur = b.norm(cur, b.w("token_embd_norm"), None, style.norm)
    positions = b.positions()
    masks = Masks(b)
    out_ids = b.out_ids()
    trunk = [il for il in layers if il < b.h.n_layer - n_head_blocks]
    for il in trunk:
        cur = _modern_block(b, il, cur, style, positions, masks.of(il), out_ids if il == layers[-1] else None)
    if style.logits:
        b.output(cur, style.norm)
        return
    cur = b.norm(cur, b.w("output_norm") or b.w("enc.output_norm"), None, style.norm)
    if n_head_blocks:
        cur = _decide(b, layers[len(trunk) :], cur, masks.full, out_ids)
    b.graph.expand(cur)


def _modern_block(
    b: Builder, il: int, cur: Tensor, style: Modern, positions: Tensor | None, mask: Tensor, out_ids: Tensor | None
) -> Tensor:
    """Attention, then a feed-forward network; `out_ids` are the rows that the last block goes on with."""

    def normed(cur: Tensor, name: str) -> Tensor:
        weight = b.layer(il, name)
        return cur if weight is None else b.norm(cur, weight, b.bias(il, name), style.norm)

    residual = cur
    q, k, v = b.qkv(il, normed(cur, "attn_norm"))
    q, k = normed(q, "attn_q_norm"), normed(k, "attn_k_norm")
    if positions is not None:
        q, k = t.rope(q, positions), t.rope(k, positions)
    cur = attend(b, mask, q, k, v, b.needed(il, "attn_output"), b.bias(il, "attn_output"))
    if out_ids is not None:
        cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
    residual = t.add(normed(cur, "post_attention_norm"), residual)
    cur = normed(residual, "ffn_norm")
    cur = b.ffn(il, cur) if b.layer(il, "ffn_gate_inp") is None else moe(b, il, cur, normed=style.normed_experts)
    return t.add(normed(cur, "post_ffw_norm"), residual)


def _decide(b: Builder, layers: list[int], cur: Tensor, mask: Tensor, out_ids: Tensor) -> Tensor:
    """`build_decision_head`: the last blocks, once for each type of question."""
    types = b.weight("token_types.weight")
    scores: Tensor | None = None
    for _ in range(DECISION_TYPES):
        one = t.add(cur, _first_row(types))
        for il in layers:
            one = _modern_block(b, il, one, MODERN_BERT, None, mask, out_ids if il == layers[-1] else None)
        one = b.norm(one, b.w("cls.norm"), b.weights["cls.norm.bias"], "norm")
        one = t.activation(b.linear(one, b.weight("cls.weight"), b.weight("cls.bias")))
        one = b.linear(one, b.weight("cls.output.weight"), b.weight("cls.output.bias"))
        scores = one if scores is None else t.concat(scores, one, 0)
    assert scores is not None
    return scores


BERT = {
    "bert": Bert(table=True),
    "nomic-bert": Bert(rope=True),
    "nomic-bert-moe": Bert(rope=True),
    "jina-bert-v2": Bert(),
    "jina-bert-v3": Bert(rope=True),
}
MODERN_BERT = Modern(norm="norm")
MODERN = {
    "modern-bert": MODERN_BERT,
    "neo-bert": Modern(),
    "eurobert": Modern(),
    "gemma-embedding": Modern(scaled_input=True),
    "llama-embed": Modern(),
    "dream": Modern(logits=True),
    "llada": Modern(logits=True),
    "llada-moe": Modern(logits=True, normed_experts=False),
    "rnd1": Modern(logits=True),
}
GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    **{arch: partial(bert, style=style) for arch, style in BERT.items()},
    **{arch: partial(modern, style=style) for arch, style in MODERN.items()},
}
