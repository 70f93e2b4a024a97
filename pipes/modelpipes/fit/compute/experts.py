"""Mixtures of experts: choose some for each token, run them side by side, add them up.

Follows llama.cpp b11434, src/llama-graph.cpp: `llm_graph_context::build_moe_ffn`.
"""

from __future__ import annotations

from collections.abc import Callable

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.tensor import Tensor


def moe(
    b: Builder, il: int, cur: Tensor, *, softmax_weight: bool = False, normed: bool = True,
    probs: Tensor | None = None, chosen: Tensor | None = None, weighted_first: bool = False,
    names: tuple[str, str, str] = ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps"),
    gated: Callable[[Tensor, Tensor], Tensor] = t.glu_split,
) -> Tensor:  # fmt: skip
    """`build_moe_ffn`: choose experts for each token, run them side by side, add them up.

    Which function turns the router's numbers into probabilities makes no difference here, but for
    `softmax_weight`: a softmax over the chosen ones only.
    """
    h, graph = b.h, b.graph
    n_embd, n_tokens = cur.ne[0], cur.ne[1]
    n_used = h.n_expert_used_arr[il]
    if probs is None:
        logits = t.mul_mat(b.needed(il, "ffn_gate_inp"), cur)
        if (gate_bias := b.bias(il, "ffn_gate_inp")) is not None:
            logits = t.add(logits, gate_bias)
    else:
        logits = probs
    n_expert = logits.ne[0]
    probs = logits if softmax_weight else t.soft_max(logits)
    selection = probs
    exp_bias = b.bias(il, "exp_probs_b") or b.weights[f"blk.{il}.exp_probs_b"]
    if exp_bias is not None:
        selection = t.add(probs, exp_bias)
    if weighted_first:
        selection = logits
    if h.number("expert_group_count") > 1:
        selection = _masked_groups(b, selection, n_expert, n_tokens)
    if chosen is None:
        chosen = t.argsort_top_k(selection, n_used)
    weights = t.get_rows(t.reshape(probs, 1, n_expert, n_tokens), chosen)
    if softmax_weight:
        weights = t.reshape(t.soft_max(t.reshape(weights, n_used, n_tokens)), 1, n_used, n_tokens)
    if normed:
        weights = t.reshape(weights, n_used, n_tokens)
        total = t.unary("clamp", t.sum_rows(weights))
        weights = t.reshape(t.unary("div", weights, total), 1, n_used, n_tokens)
    if h.value("expert_weights_scale", 0.0) not in (0.0, 1.0):  # takes memory: the argument is a view
        weights = t.scale(weights)
    graph.expand(weights)
    cur = t.reshape(cur, n_embd, 1, n_tokens)
    if weighted_first:
        cur = t.mul(t.repeat(cur, n_embd, n_used, n_tokens), weights)
    experts = _experts(b, il, cur, chosen, names, gated)
    if not weighted_first:
        experts = t.mul(experts, weights)
    graph.expand(experts)
    views = [
        graph.expand(t.view(experts, (experts.ne[0], n_tokens), (experts.nb[0], experts.nb[2]))) for _ in range(n_used)
    ]
    out = views[0]
    for other in views[1:]:
        out = graph.expand(t.add(out, other))
    return t.cont(out) if n_used == 1 else out


def _experts(
    b: Builder, il: int, cur: Tensor, chosen: Tensor, names: tuple[str, str, str],
    gated: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    name_up, name_gate, name_down = names
    merged = b.layer(il, name_up.replace("_up_", "_gate_up_"))

    def product(weight: Tensor, cur: Tensor, name: str) -> Tensor:
        cur = t.mul_mat_id(weight, cur, chosen)
        scale = b.weights[f"blk.{il}.{name}.scale"] if b.h.facts.scaled_experts else None
        if scale is not None:  # one number for each expert
            scales = t.repeat(t.reshape(scale, 1, scale.ne[0]), 1, scale.ne[0], cur.ne[2])
            cur = t.mul(cur, t.get_rows(scales, chosen))
        bias = b.bias(il, name)
        return cur if bias is None else t.Tensor("add_id", cur.type, cur.ne, (cur, bias, chosen))

    if merged is not None:
        both = product(merged, cur, name_up.replace("_up_", "_gate_up_"))
        half = (both.ne[0] // 2, both.ne[1], both.ne[2])
        cur = gated(t.view(both, half, both.nb[:3]), t.view(both, half, both.nb[:3]))
    else:
        up = product(b.needed(il, name_up), cur, name_up)
        gate = b.layer(il, name_gate)
        cur = t.activation(up) if gate is None else gated(product(gate, cur, name_gate), up)
    return product(b.needed(il, name_down), cur, name_down)


def _masked_groups(b: Builder, selection: Tensor, n_expert: int, n_tokens: int) -> Tensor:
    """Experts outside of the best groups are never chosen (DeepSeek V3)."""
    n_groups = b.h.number("expert_group_count")
    per_group = n_expert // n_groups
    groups = t.reshape(selection, per_group, n_groups, n_tokens)
    best = t.argsort_top_k(groups, 2)
    scores = t.get_rows(t.reshape(groups, 1, per_group, n_groups, n_tokens), best)
    scores = t.sum_rows(t.reshape(scores, 2, n_groups, n_tokens))
    chosen = t.argsort_top_k(t.reshape(scores, n_groups, n_tokens), b.h.number("expert_group_used_count"))
    kept = t.get_rows(groups, chosen)
    masked = t.set_rows(t.Tensor("fill", groups.type, groups.ne, (groups,)), kept, chosen)
    return t.reshape(masked, n_expert, n_tokens)


# the end
