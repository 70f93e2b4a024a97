"""Graphs of RWKV 6 and 7, and of Qwen 2 with their time mixing in place of attention.

Follows llama.cpp b11434: src/models/rwkv6-base.cpp, rwkv6.cpp, rwkv6qwen2.cpp, rwkv7-base.cpp, rwkv7.cpp and
arwkv7.cpp, and `build_rwkv_token_shift_*` in src/llama-graph.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.state import StateInputs, read_state, state_cache, state_inputs, write_state
from modelpipes.fit.compute.tensor import F32, Tensor

MIXES = 5  # of a token with the one before it in RWKV 6: for w, k, v, r and g

# of a block's normed input, and of the same one token earlier
TimeMix = Callable[[Builder, StateInputs, int, Tensor, Tensor], Tensor]


def time_mix6(b: Builder, states: StateInputs, il: int, cur: Tensor, before: Tensor) -> Tensor:
    """`build_rwkv6_time_mix`; where there is no `time_mix_first`, with gated linear attention."""
    n_tokens, n_embd = b.n_tokens, b.h.n_embd
    first = b.layer(il, "time_mix_first")
    change = t.reshape(_sub(before, cur), n_embd, n_tokens)
    cur = t.reshape(cur, n_embd, n_tokens)
    w, k, v, r, g = _mixed6(b, il, change, cur)
    r, k, v = (
        b.linear(x, b.needed(il, f"time_mix_{name}"), b.bias(il, f"time_mix_{name}"))
        for x, name in ((r, "receptance"), (k, "key"), (v, "value"))
    )
    g = t.activation(t.mul_mat(b.needed(il, "time_mix_gate"), g))
    k, v = (_kv_heads(b, il, x) for x in (k, v))
    r = _heads(b, r)
    w = t.mul_mat(b.needed(il, "time_mix_decay_w1"), w)
    w = t.add(t.mul_mat(b.needed(il, "time_mix_decay_w2"), t.activation(w)), b.needed(il, "time_mix_decay"))
    w = _heads(b, t.activation(t.activation(t.activation(w))))
    if first is None:
        k = _sub(k, t.mul(k, w))
        cur = _attend(b, states, il, "gated_linear_attn", k, v, r, w)
    else:
        cur = _attend(b, states, il, "rwkv_wkv6", k, v, r, first, w)
    cur = t.reshape(cur, n_embd, n_tokens) if first is None else _head_norm(b, il, cur)
    return _by_sequence(b, t.mul_mat(b.needed(il, "time_mix_output"), t.mul(cur, g)))


def _mixed6(b: Builder, il: int, change: Tensor, cur: Tensor) -> list[Tensor]:
    """The tokens mixed with the ones before them in different measures."""
    n_tokens, n_embd = b.n_tokens, b.h.n_embd
    into, out = b.needed(il, "time_mix_w1"), b.needed(il, "time_mix_w2")
    parts = t.add(t.mul(change, b.needed(il, "time_mix_lerp_x")), cur)
    parts = t.activation(t.mul_mat(into, parts))
    parts = t.cont(t.permute(t.reshape(parts, into.ne[1] // MIXES, 1, MIXES, n_tokens), 0, 1, 3, 2))
    parts = t.mul_mat(t.reshape(out, out.ne[0], out.ne[1], 1, MIXES), parts)
    fused = b.layer(il, "time_mix_lerp_fused")
    if fused is not None:
        change, cur = t.reshape(change, n_embd, 1, n_tokens), t.reshape(cur, n_embd, 1, n_tokens)
        return _parts(b, t.add(t.mul(t.add(parts, fused), change), cur), MIXES)
    measures = (b.needed(il, f"time_mix_lerp_{name}") for name in "wkvrg")
    views = _parts(b, parts, MIXES)
    return [t.add(t.mul(t.add(x, m), change), cur) for x, m in zip(views, measures, strict=True)]


def _kv_heads(b: Builder, il: int, cur: Tensor) -> Tensor:
    """Heads of keys or values, repeated where there are fewer."""
    size, n_kv = b.h.wkv_head_size, b.h.n_head_kv[il]
    n_head = b.h.n_embd // size
    if n_kv not in (0, n_head):
        cur = t.repeat(t.reshape(cur, size, 1, n_kv, b.n_tokens), size, n_head // n_kv, n_kv, b.n_tokens)
    return _heads(b, cur)


class TimeMix7:
    """`build_rwkv7_time_mix`; remembers the first block's values, which all others add to theirs."""

    def __init__(self) -> None:
        self.first_value: Tensor | None = None

    def __call__(self, b: Builder, states: StateInputs, il: int, cur: Tensor, before: Tensor) -> Tensor:
        n_mixes = 5 if b.layer(il, "time_mix_g1") is None else 6
        change = t.repeat(_sub(before, cur), *cur.ne[:3], n_mixes)
        mixed = t.add(t.mul(change, b.needed(il, "time_mix_lerp_fused")), cur)
        r, w, k, v, a, *gate = _parts(b, mixed, n_mixes)
        r = t.mul_mat(b.needed(il, "time_mix_receptance"), r)
        w = t.activation(t.mul_mat(b.needed(il, "time_mix_w1"), w))
        w = t.add(t.mul_mat(b.needed(il, "time_mix_w2"), w), b.needed(il, "time_mix_w0"))
        w = t.activation(t.scale(t.activation(w)))
        k = t.mul_mat(b.needed(il, "time_mix_key"), k)
        v = self.value(b, il, v)
        a = t.activation(_low_rank(b, il, "a", a))
        normed = t.made("l2_norm", F32, _head_shape(b), _heads(b, t.mul(k, b.needed(il, "time_mix_k_k"))))
        ka = t.mul(k, b.needed(il, "time_mix_k_a"))
        k = t.add(k, _sub(t.mul(a, ka), ka))
        r, w, k, v, a = (_heads(b, x) for x in (r, w, k, v, a))
        cur = _attend(b, states, il, "rwkv_wkv7", r, w, k, v, t.activation(normed), t.mul(normed, a))
        has_norm = b.layer(il, "time_mix_ln") is not None and b.bias(il, "time_mix_ln") is not None
        cur = _head_norm(b, il, cur) if has_norm else t.reshape(cur, b.h.n_embd, b.n_tokens)
        bonus = t.reshape(b.needed(il, "time_mix_r_k"), *_head_shape(b)[:2])
        bonus = t.mul(v, t.sum_rows(t.mul(t.mul(k, r), bonus)))
        cur = t.add(cur, t.reshape(bonus, b.h.n_embd, b.n_tokens))
        if gate:
            g = t.activation(t.mul_mat(b.needed(il, "time_mix_g1"), gate[0]))
            cur = t.mul(cur, t.mul_mat(b.needed(il, "time_mix_g2"), g))
        return _by_sequence(b, t.mul_mat(b.needed(il, "time_mix_output"), cur))

    def value(self, b: Builder, il: int, mixed: Tensor) -> Tensor:
        value = t.mul_mat(b.needed(il, "time_mix_value"), mixed)
        if self.first_value is None:
            self.first_value = value
            return value
        share = t.activation(_low_rank(b, il, "v", mixed))
        return t.add(value, t.mul(_sub(self.first_value, value), share))


def rwkv(version: int, b: Builder, layers: list[int]) -> None:
    """RWKV's own blocks: a state keeps the last normed inputs of time mixing and of channel mixing."""
    mix: TimeMix = time_mix6 if version == 6 else TimeMix7()
    n_embd, n_tokens = b.h.n_embd, b.n_tokens
    cur = b.norm(b.embed(), b.w("token_embd_norm"), b.weights["token_embd_norm.bias"], "norm")
    states = state_inputs(b)
    out_ids = b.out_ids()
    rescale = b.h.number("rescale_every_n_layers")
    for il in layers:
        residual = _by_sequence(b, cur)
        cache, shift = _load_shift(b, states, il)
        time_shift, channel_shift = (t.view(shift, (n_embd, 1, b.n_seqs), shift.nb[:3]) for _ in range(2))
        time_input = b.norm(residual, b.layer(il, "attn_norm"), b.bias(il, "attn_norm"), "norm")
        cur = mix(b, states, il, time_input, _shifted(b, time_shift, time_input))
        residual = t.add(cur, residual)
        cur = b.norm(residual, b.layer(il, "attn_norm_2"), b.bias(il, "attn_norm_2"), "norm")
        before = _shifted(b, channel_shift, cur)
        write_state(b, cache, t.reshape(t.concat(_last(b, time_input), _last(b, cur), 1), cache.n_elements))
        residual, cur, before = (t.reshape(x, n_embd, n_tokens) for x in (residual, cur, before))
        if il == layers[-1]:
            residual, cur, before = (t.get_rows(x, out_ids) for x in (residual, cur, before))
        cur = t.add(_channel_mix(b, il, cur, before), residual)
        if rescale and version == 6 and (il + 1) % rescale == 0:
            cur = t.scale(cur)
    b.output(cur, "norm")


def qwen2(version: int, b: Builder, layers: list[int]) -> None:
    """Qwen 2's blocks with time mixing for attention."""
    mix: TimeMix = time_mix6 if version == 6 else TimeMix7()
    n_embd, n_tokens = b.h.n_embd, b.n_tokens
    cur = b.embed()
    states = state_inputs(b)
    out_ids = b.out_ids()
    for il in layers:
        residual = _by_sequence(b, cur)
        cache, shift = _load_shift(b, states, il)
        time_input = b.norm(residual, b.layer(il, "attn_norm"))
        cur = mix(b, states, il, time_input, _shifted(b, shift, time_input))
        write_state(b, cache, _last(b, time_input))
        residual = t.reshape(t.add(cur, residual), n_embd, n_tokens)
        if il == layers[-1]:
            residual = t.get_rows(residual, out_ids)
        cur = t.add(b.ffn(il, b.norm(residual, b.layer(il, "ffn_norm"))), residual)
    b.output(cur)


def _channel_mix(b: Builder, il: int, cur: Tensor, before: Tensor) -> Tensor:
    """`build_rwkv6_channel_mix` and `build_rwkv7_channel_mix`, which has no receptance."""
    change = _sub(before, cur)
    key = t.add(t.mul(change, b.needed(il, "channel_mix_lerp_k")), cur)
    receptance = b.layer(il, "channel_mix_receptance")
    gate = None
    if receptance is not None:
        gate = t.add(t.mul(change, b.needed(il, "channel_mix_lerp_r")), cur)
        gate = t.activation(t.mul_mat(receptance, gate))
    key = t.activation(t.activation(t.mul_mat(b.needed(il, "channel_mix_key"), key)))
    cur = t.mul_mat(b.needed(il, "channel_mix_value"), key)
    return cur if gate is None else t.mul(gate, cur)


def _load_shift(b: Builder, states: StateInputs, il: int) -> tuple[Tensor, Tensor]:
    """`build_rwkv_token_shift_load`: the states, and what they hold of the tokens before the batch."""
    cache = state_cache(b, il, "r")
    return cache, t.reshape(read_state(b, states, cache), b.h.n_embd, b.h.token_shift_count, b.n_seqs)


def _shifted(b: Builder, first: Tensor, cur: Tensor) -> Tensor:
    """For every token the one before it."""
    rest = t.view(cur, (cur.ne[0], cur.ne[1] - 1, cur.ne[2]), cur.nb[:3])
    return t.concat(first, rest, 1)


def _last(b: Builder, cur: Tensor) -> Tensor:
    """The last token of every sequence."""
    return t.view(cur, (cur.ne[0], 1, cur.ne[2]), cur.nb[:3])


def _attend(b: Builder, states: StateInputs, il: int, op: str, *args: Tensor) -> Tensor:
    """One of RWKV's scans; it gives the new state after the output, and that is stored."""
    cache = state_cache(b, il, "s")
    width, size = b.h.n_embd, b.h.wkv_head_size
    state = read_state(b, states, cache)
    both = t.made(op, F32, (width, b.n_tokens + size * b.n_seqs), *args, state)
    out = t.view(both, (width * b.n_tokens,))
    write_state(b, cache, t.view(both, (cache.n_elements,)))
    return out


def _head_norm(b: Builder, il: int, cur: Tensor) -> Tensor:
    cur = t.reshape(b.norm(_heads(b, cur), None, None, "norm"), b.h.n_embd, b.n_tokens)
    bias = b.bias(il, "time_mix_ln")
    cur = t.mul(cur, b.needed(il, "time_mix_ln"))
    return cur if bias is None else t.add(cur, bias)


def _low_rank(b: Builder, il: int, name: str, cur: Tensor) -> Tensor:
    """The product of two thin matrices, and a bias."""
    cur = t.mul_mat(b.needed(il, f"time_mix_{name}2"), t.mul_mat(b.needed(il, f"time_mix_{name}1"), cur))
    return t.add(cur, b.needed(il, f"time_mix_{name}0"))


def _parts(b: Builder, cur: Tensor, n: int) -> list[Tensor]:
    return [t.view(cur, (b.h.n_embd, b.n_tokens), cur.nb[:2]) for _ in range(n)]


def _by_sequence(b: Builder, cur: Tensor) -> Tensor:
    return t.reshape(cur, b.h.n_embd, b.n_tokens // b.n_seqs, b.n_seqs)


def _head_shape(b: Builder) -> tuple[int, int, int]:
    size = b.h.wkv_head_size
    return size, b.h.n_embd // size, b.n_tokens


def _heads(b: Builder, cur: Tensor) -> Tensor:
    return t.reshape(cur, *_head_shape(b))


def _sub(a: Tensor, b: Tensor) -> Tensor:
    return t.unary("sub", a, b)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {
    "rwkv6": partial(rwkv, 6),
    "rwkv6qwen2": partial(qwen2, 6),
    "rwkv7": partial(rwkv, 7),
    "arwkv7": partial(qwen2, 7),
}
