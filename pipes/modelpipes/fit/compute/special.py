"""Graphs of decoders that a style of transformer.py does not describe: looped blocks, chunked experts, and others.

Follows llama.cpp b11434, src/models/ hrm-text.cpp, nanbeige.cpp, llama4.cpp, grovemoe.cpp, cogvlm.cpp and
chameleon.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import AttentionInputs, Builder
from modelpipes.fit.compute.experts import moe
from modelpipes.fit.compute.tensor import F32, I32, Tensor
from modelpipes.fit.compute.transformer import PLAIN, block

IMAGE_TOKENS = 8192  # of Chameleon's vocabulary, whose logits are overwritten
ROPE_PERIOD = 4  # of so many layers of Llama 4 the last has no rotation (llama_hparams::n_no_rope_layer_step)


class _SharedBlocks(dict[str, Tensor | None]):
    """Weights of layers that are run from one block, under the layers' own numbers."""

    def __init__(self, weights: Mapping[str, Tensor | None], block_of: Callable[[int], int]) -> None:
        super().__init__()
        self.weights = weights
        self.block_of = block_of

    def __missing__(self, name: str) -> Tensor | None:
        return self.weights[self._source(name)]

    def _source(self, name: str) -> str:
        if not name.startswith("blk."):
            return name
        _, layer, rest = name.split(".", 2)
        return f"blk.{self.block_of(int(layer))}.{rest}"


def _rows(cur: Tensor, residual: Tensor, out_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the last layer goes on with."""
    if out_ids is None:
        return cur, residual
    return t.get_rows(cur, out_ids), t.get_rows(residual, out_ids)


# HRM: two stacks of blocks, run in turns, each from the sum of both stacks' results
def hrm_text(b: Builder, layers: Sequence[int]) -> None:
    """`llama_model_hrm_text::graph`; every run of a stack has caches of its own.

    All layers are built, whatever `layers`: they go back and forth between the blocks' devices.
    """
    depth = b.h.number("hrm.layers_per_stack", 1)
    turns = b.h.number("hrm.l_cycles", 1) + 1  # the low stack's, then one of the high stack
    b.weights = _SharedBlocks(b.weights, lambda il: il % depth + (depth if il // depth % turns == turns - 1 else 0))
    high = b.embed()
    if b.h.value("embedding_scale"):
        high = b.graph.expand(t.scale(high))
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)
    low = b.weight("hrm.z_l_init")
    for run in range(b.h.n_layer // depth):
        cur = t.add(high, low)
        for il in range(run * depth, (run + 1) * depth):
            cur = _hrm_block(b, il, cur, positions, inputs)
        cur = b.norm(cur, None)
        if run % turns == turns - 1:
            high = cur
        else:
            low = cur
    b.graph.expand(b.linear(t.get_rows(high, b.out_ids()), b.weight("output.weight")))


def _hrm_block(b: Builder, il: int, residual: Tensor, positions: Tensor, inputs: AttentionInputs) -> Tensor:
    cur = b.norm(residual, None)
    gate = t.mul_mat(b.needed(il, "attn_gate"), cur)
    q, k, v = b.qkv(il, cur)
    cur = b.attend(inputs, b.context.cells, il, t.rope(q, positions), t.rope(k, positions), v)
    cur = t.mul_mat(b.needed(il, "attn_output"), t.mul(cur, t.activation(gate)))
    residual = t.add(cur, residual)
    return t.add(b.ffn(il, b.norm(residual, None)), residual)


def nanbeige(b: Builder, layers: Sequence[int]) -> None:
    """`llama_model_nanbeige::graph`: all blocks several times over, with a norm between (as in `hrm_text`, all)."""
    layers = range(b.h.n_layer)
    n_blocks = b.h.n_layer // b.h.number("num_loops", 1)
    b.weights = _SharedBlocks(b.weights, lambda il: il % n_blocks)
    cur = b.embed()
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)
    out_ids = b.out_ids()
    for il in layers:
        rows = out_ids if il == layers[-1] else None
        cur = block(b, PLAIN, il, cur, positions, inputs, b.context.cells, rows)
        if (il + 1) % n_blocks == 0 and il != layers[-1] and not b.h.value("skip_loop_final_norm", False):
            cur = b.norm(cur, b.w("output_norm"))
    b.output(cur)


def llama4(b: Builder, layers: list[int]) -> None:
    """`llama_model_llama4::graph`: some layers without rotation, whose queries are scaled by their position."""
    h, context = b.h, b.context
    if b.settings.cpu_moe or b.settings.n_cpu_moe:
        # All layers: between dense ones on a device, experts on the host scatter its memory.
        layers = list(range(h.n_layer_trunk))
    has_window = h.swa_type != "none"
    rope_period = ROPE_PERIOD if has_window else h.n_layer_trunk
    cur = b.embed()
    positions = b.positions()
    scales = t.graph_input(F32, 1, 1, b.n_tokens)
    full = b.attention_inputs(context.cells, False if has_window else None)
    window = b.attention_inputs(context.cells_swa, True) if has_window else full
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        q, k, v = b.qkv(il, b.norm(cur, b.layer(il, "attn_norm")))
        if (il + 1) % rope_period:
            q, k = t.rope(q, positions), t.rope(k, positions)
        else:
            q = t.mul(q, scales)
        inputs, cells = (window, context.cells_swa) if h.is_swa[il] else (full, context.cells)
        cur = b.attend(inputs, cells, il, q, k, v, wo=b.layer(il, "attn_output"))
        cur, residual = _rows(cur, residual, out_ids if il == layers[-1] else None)
        residual = t.add(cur, residual)
        cur = b.norm(residual, b.layer(il, "ffn_norm"))
        if b.layer(il, "ffn_gate_inp") is None:
            cur = b.ffn(il, cur)
        else:
            experts = moe(b, il, cur, normed=False, weighted_first=True)
            cur = t.add(experts, b.ffn(il, cur, "ffn_up_shexp", "ffn_gate_shexp", "ffn_down_shexp"))
        cur = t.add(cur, residual)
    b.output(cur)


def grovemoe(b: Builder, layers: list[int]) -> None:
    """`llama_model_grovemoe::graph`: experts, and then smaller ones that each serve a group of them."""
    cur = b.embed()
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        q, k, v = b.qkv(il, b.norm(cur, b.layer(il, "attn_norm")))
        q = t.rope(b.norm(q, b.layer(il, "attn_q_norm")), positions)
        k = t.rope(b.norm(k, b.layer(il, "attn_k_norm")), positions)
        cur = b.attend(inputs, b.context.cells, il, q, k, v, wo=b.layer(il, "attn_output"))
        cur, residual = _rows(cur, residual, out_ids if il == layers[-1] else None)
        residual = t.add(cur, residual)
        cur = b.norm(residual, b.layer(il, "ffn_norm"))
        logits = t.mul_mat(b.needed(il, "ffn_gate_inp"), cur)
        n_used, n_groups = b.h.n_expert_used, b.needed(il, "ffn_up_chexps").ne[2]
        cur = moe(b, il, cur, probs=logits, chosen=t.argsort_top_k(t.activation(logits), n_used))
        groups = t.argsort_top_k(t.activation(logits), min(n_used, n_groups))
        groups = t.cast(t.scale(t.cast(groups, F32)), I32)
        names = ("ffn_up_chexps", "ffn_gate_chexps", "ffn_down_chexps")
        more = moe(b, il, cur, probs=logits, chosen=groups, names=names)
        cur = t.add(t.add(cur, t.scale(more)), residual)
    b.output(cur)


def cogvlm(b: Builder, layers: list[int]) -> None:
    """`llama_model_cogvlm::graph` of a batch of text: it gives logits for every token."""
    cur = b.embed()
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)
    for il in layers:
        cur = block(b, PLAIN, il, cur, positions, inputs, b.context.cells, None)
    b.output(cur)


def chameleon(b: Builder, layers: list[int]) -> None:
    """`llama_model_chameleon::graph`: norms before or (swin) behind each step; no logits for parts of images."""
    swin = bool(b.h.value("swin_norm", False))
    if swin:  # all layers: feed-forward reads what came before the residual, and no two take the same memory
        layers = list(range(b.h.n_layer))

    def normed(cur: Tensor, name: str, at: bool) -> Tensor:
        return b.norm(cur, b.layer(il, name)) if swin is at else cur

    cur = b.embed()
    positions = b.positions()
    inputs = b.attention_inputs(b.context.cells)
    out_ids = b.out_ids()
    for il in layers:
        residual = cur
        q, k, v = b.qkv(il, normed(cur, "attn_norm", False))
        q, k = (
            t.rope(b.norm(cur, b.layer(il, name), b.bias(il, name), "norm"), positions)
            for cur, name in ((q, "attn_q_norm"), (k, "attn_k_norm"))
        )
        cur = b.attend(inputs, b.context.cells, il, q, k, v, wo=b.layer(il, "attn_output"))
        cur, residual = _rows(cur, residual, out_ids if il == layers[-1] else None)
        cur = normed(cur, "attn_norm", True)
        residual = t.add(cur, residual)
        cur = b.ffn(il, cur if swin else b.norm(residual, b.layer(il, "ffn_norm")))
        cur = t.add(normed(cur, "ffn_norm", True), residual)
    cur = b.norm(cur, b.w("output_norm"))
    cur.is_output = True  # the embeddings (t_embd): kept while logits are overwritten
    cur = b.linear(cur, b.weight("output.weight"))
    hidden = t.unary("clamp", t.leaf(F32, IMAGE_TOKENS))
    b.graph.expand(t.made("set", cur.type, cur.ne, cur, hidden))


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "hrm_text": hrm_text,
    "nanbeige": nanbeige,
    "llama4": llama4,
    "grovemoe": grovemoe,
    "cogvlm": cogvlm,
    "chameleon": chameleon,
}
