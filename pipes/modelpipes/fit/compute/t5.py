"""Graphs of T5: its encoder, and its decoder, which attends to what the encoder made of a whole context.

Follows llama.cpp b11434, src/models/t5.cpp. A context for the whole model is sized by the decoder's graph. All
blocks are built, whatever `layers`: each leaves the memory more scattered, so that no two of them take the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder, MissingWeight
from modelpipes.fit.compute.tensor import F16, F32, I32, Tensor


class Block(Struct, frozen=True):
    """The weights of one block of the encoder ("enc") or the decoder ("dec")."""

    b: Builder
    stack: str
    il: int

    def __call__(self, name: str) -> Tensor:
        weight = self.find(name)
        if weight is None:
            raise MissingWeight(f"{self.stack}.blk.{self.il}.{name}.weight")
        return weight

    def find(self, name: str, il: int | None = None) -> Tensor | None:
        return self.b.weights[f"{self.stack}.blk.{self.il if il is None else il}.{name}.weight"]


def encoder(b: Builder, layers: Sequence[int]) -> None:
    """`llama_model_t5::graph<true>`."""
    layers = range(b.h.n_layer)
    cur = b.embed()
    buckets = t.graph_input(I32, b.n_tokens, b.n_tokens)
    mask = t.graph_input(_mask_type(b), b.n_tokens, b.n_tokens)
    out_ids = _out_ids(b)
    for il in layers:
        block = Block(b, "enc", il)
        residual = cur
        cur = b.norm(cur, block("attn_norm"))
        q, k, v = (_heads(b, block(f"attn_{name}"), cur, il) for name in "qkv")
        cur = _attend(b, block("attn_o"), mask, q, k, v, _bias(block, buckets))
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        cur = _feed_forward(b, block, t.add(cur, residual))
    b.graph.expand(b.norm(cur, b.w("enc.output_norm")))


def decoder(b: Builder, layers: Sequence[int]) -> None:
    """`llama_model_t5::graph<false>`."""
    context = b.context
    cur = b.embed()
    encoded = t.graph_input(F32, b.n_embd_inp, b.h.n_ctx_train)
    buckets = t.graph_input(I32, context.cells, b.n_tokens)
    inputs = b.attention_inputs(context.cells)
    cross_mask = t.graph_input(_mask_type(b), b.h.n_ctx_train, b.n_tokens)
    out_ids = _out_ids(b)
    layers = range(min(b.h.number("decoder_block_count", b.h.n_layer), b.h.n_layer))
    for il in layers:
        block = Block(b, "dec", il)
        residual = cur
        cur = b.norm(cur, block("attn_norm"))
        q, k, v = (_heads(b, block(f"attn_{name}"), cur, il) for name in "qkv")
        bias = _bias(block, buckets)
        cur = b.attend(inputs, context.cells, il, q, k, v, bias=bias, wo=block("attn_o"))
        residual = cur = t.add(cur, residual)
        q = _heads(b, block("cross_attn_q"), b.norm(cur, block("cross_attn_norm")), il)
        k, v = (_heads(b, block(f"cross_attn_{name}"), encoded, il) for name in "kv")
        cur = _attend(b, block("cross_attn_o"), cross_mask, q, k, v)
        if il == layers[-1]:
            cur, residual = t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)
        cur = _feed_forward(b, block, t.add(cur, residual))
    cur = b.norm(cur, b.w("dec.output_norm"))
    b.graph.expand(b.linear(cur, b.weight("output.weight")))


def _mask_type(b: Builder) -> str:
    return F16 if b.settings.flash_attn else F32


def _out_ids(b: Builder) -> Tensor:
    """Every token's row: a model with an encoder may be asked for all (`llama_model_has_encoder`)."""
    return t.graph_input(I32, min(b.context.n_ctx, b.context.n_ubatch))


def _heads(b: Builder, weight: Tensor, cur: Tensor, il: int) -> Tensor:
    size = b.h.n_embd_head_k[il]
    return t.reshape(t.mul_mat(weight, cur), size, weight.ne[1] // size, cur.ne[1])


def _bias(block: Block, buckets: Tensor) -> Tensor:
    """`build_pos_bias`: from each token's distance to each other, for every head."""
    weight = block.find("attn_rel_b") or block.find("attn_rel_b", 0)
    assert weight is not None
    bias = t.get_rows(weight, t.reshape(buckets, buckets.ne[0] * buckets.ne[1]))
    return t.cont(t.permute(t.reshape(bias, bias.ne[0], buckets.ne[0], buckets.ne[1]), 2, 0, 1, 3))


def _attend(
    b: Builder, wo: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> Tensor:
    for tensor in (q, k, v):
        b.graph.expand(tensor)
    return t.mul_mat(wo, b.mha(q, k, v, mask, bias=bias))


def _feed_forward(b: Builder, block: Block, residual: Tensor) -> Tensor:
    cur = b.norm(residual, block("ffn_norm"))
    up = t.mul_mat(block("ffn_up"), cur)
    gate = block.find("ffn_gate")
    cur = t.activation(up) if gate is None else t.glu_split(t.mul_mat(gate, cur), up)
    return t.add(t.mul_mat(block("ffn_down"), cur), residual)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {"t5": decoder, "t5encoder": encoder}
