"""Layers that mix a sequence without attention: Mamba, Mamba 2, PLaMo 2's Mamba and LFM 2's short convolution.

Follows llama.cpp b11434: src/models/mamba-base.cpp, `build_plamo2_mamba_layer` in src/models/plamo2.cpp and
`build_shortconv_block` in src/models/lfm2.cpp. Each takes and gives (n_embd, n_tokens).
"""

from __future__ import annotations

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder, MissingWeight
from modelpipes.fit.compute.state import StateInputs, read_state, state_cache, write_state
from modelpipes.fit.compute.tensor import F32, Tensor

PLAMO_DT_MIN, PLAMO_DT_SHARE = 64, 16  # the rank of the time step: a share of the embedding's width


def mamba(b: Builder, inputs: StateInputs, il: int, cur: Tensor) -> Tensor:
    """`build_mamba_layer`: a state and a time step for each channel."""
    h, n_seqs = b.h, b.n_seqs
    width, d_state, rank = h.ssm_d_inner, h.ssm_d_state, h.ssm_dt_rank
    rolling, recent = _recent(b, inputs, il, width)
    xz = t.mul_mat(b.needed(il, "ssm_in"), _by_sequence(b, cur))
    x, z = (t.view(xz, (width, *xz.ne[1:3]), xz.nb[:3]) for _ in range(2))
    x = _convolve(b, il, rolling, t.concat(recent, t.transpose(x), 0))
    parts = t.mul_mat(b.needed(il, "ssm_x"), x)
    per_seq = parts.ne[1]
    dt = t.view(parts, (rank, per_seq, n_seqs), parts.nb[:3])
    into, out = (t.view(parts, (d_state, 1, per_seq, n_seqs), _groups(parts, d_state)) for _ in range(2))
    norms = [b.layer(il, f"ssm_{name}_norm") for name in ("dt", "b", "c")]
    if h.value("ssm.dt_b_c_rms") or all(norm is not None for norm in norms):
        dt, into, out = (b.norm(part, norm) for part, norm in zip((dt, into, out), norms, strict=True))
    else:
        dt = t.cont(dt)
    dt = b.linear(dt, b.needed(il, "ssm_dt"), b.bias(il, "ssm_dt"))
    heads = t.reshape(x, 1, width, per_seq, n_seqs)
    y = _scan(b, inputs, il, heads, dt, bare(b, il, "ssm_a"), into, out)
    y = t.view(y, (width, per_seq, n_seqs), (4, heads.nb[2], heads.nb[3]))
    y = t.glu_split(t.cont(z), t.add(y, t.mul(x, bare(b, il, "ssm_d"))))
    return _flat(b, t.mul_mat(b.needed(il, "ssm_out"), y))


def mamba2(b: Builder, inputs: StateInputs, il: int, cur: Tensor) -> Tensor:
    """`build_mamba2_layer`: heads with a time step each, which share states in groups."""
    h, n_seqs = b.h, b.n_seqs
    width, d_state, n_head, n_group = h.ssm_d_inner, h.ssm_d_state, h.ssm_dt_rank, h.ssm_n_group
    head = width // n_head
    channels = width + 2 * n_group * d_state
    rolling, recent = _recent(b, inputs, il, channels)
    parts = _by_sequence(b, t.mul_mat(b.needed(il, "ssm_in"), cur))
    per_seq = parts.ne[1]
    z = t.view(parts, (head, n_head, per_seq, n_seqs), _groups(parts, head))
    mixed = t.view(parts, (channels, per_seq, n_seqs), parts.nb[:3])
    dt = t.view(parts, (n_head, per_seq, n_seqs), parts.nb[:3])
    mixed = _convolve(b, il, rolling, t.concat(recent, t.transpose(mixed), 0))
    x = t.view(mixed, (head, n_head, per_seq, n_seqs), _groups(mixed, head))
    into, out = (t.view(mixed, (d_state, n_group, per_seq, n_seqs), _groups(mixed, d_state)) for _ in range(2))
    dt = t.cont(dt)
    if (dt_bias := b.bias(il, "ssm_dt")) is not None:
        dt = t.add(dt, dt_bias)
    y = _scan(b, inputs, il, x, dt, bare(b, il, "ssm_a"), into, out)
    y = t.view(y, x.ne, (4, 4 * head, 4 * width, 4 * width * per_seq))
    y = t.glu_split(t.cont(z), t.add(y, t.mul(x, bare(b, il, "ssm_d"))))
    norm = b.layer(il, "ssm_norm")
    if norm is not None:
        y = b.norm(t.reshape(y, width // n_group, n_group, per_seq, n_seqs), norm)
    return t.mul_mat(b.needed(il, "ssm_out"), t.reshape(y, width, b.n_tokens))


def plamo2_mamba(b: Builder, inputs: StateInputs, il: int, cur: Tensor) -> Tensor:
    """`build_plamo2_mamba_layer`: Mamba 2's heads with Mamba's projections."""
    h, n_seqs = b.h, b.n_seqs
    width, d_state, n_head = h.ssm_d_inner, h.ssm_d_state, h.ssm_dt_rank
    head, rank = width // n_head, max(PLAMO_DT_MIN, h.n_embd // PLAMO_DT_SHARE)
    rolling, recent = _recent(b, inputs, il, width)
    zx = t.permute(t.mul_mat(b.needed(il, "ssm_in"), _by_sequence(b, cur)), 0, 2, 1, 3)
    per_seq = zx.ne[2]
    zx = t.cont(zx, 2 * head, n_head, per_seq, n_seqs)
    x, z = (t.view(zx, (head, *zx.ne[1:]), zx.nb) for _ in range(2))
    x = t.cont(x, width, per_seq, n_seqs)
    x = _convolve(b, il, rolling, t.concat(recent, t.transpose(x), 0))
    parts = t.mul_mat(b.needed(il, "ssm_x"), x)
    into, out, dt = (
        b.norm(t.view(parts, (size, per_seq, n_seqs), parts.nb[:3]), bare(b, il, f"ssm_{name}_norm"))
        for size, name in ((d_state, "b"), (d_state, "c"), (rank, "dt"))
    )
    dt = b.linear(dt, b.needed(il, "ssm_dt"), b.bias(il, "ssm_dt"))
    x = t.view(x, (head, n_head, per_seq, n_seqs), _groups(x, head))
    into, out = (t.view(part, (d_state, 1, per_seq, n_seqs), _groups(part, d_state)) for part in (into, out))
    y = _scan(b, inputs, il, x, dt, t.reshape(bare(b, il, "ssm_a"), 1, n_head), into, out)
    y = t.view(y, x.ne, (4, 4 * head, 4 * width, 4 * width * per_seq))
    y = t.add(y, t.mul(x, t.reshape(bare(b, il, "ssm_d"), 1, n_head)))
    y = t.glu_split(t.cont(z), y)
    y = t.view(y, (width, per_seq, n_seqs), (4, y.nb[2], y.nb[3]))
    return _flat(b, t.mul_mat(b.needed(il, "ssm_out"), y))


def short_convolution(b: Builder, inputs: StateInputs, il: int, cur: Tensor) -> Tensor:
    """`build_shortconv_block`: a gated convolution over a few tokens; around them where attention is not causal."""
    parts = t.mul_mat(b.needed(il, "shortconv.in_proj"), _by_sequence(b, cur))
    before, after, x = (t.view(parts, (parts.ne[0] // 3, *parts.ne[1:3]), parts.nb[:3]) for _ in range(3))
    x = t.transpose(t.mul(before, x))
    kernel = b.needed(il, "shortconv.conv")
    rolling = state_cache(b, il, "r")
    recent = t.reshape(read_state(b, inputs, rolling), kernel.ne[0] - 1, b.h.n_embd, b.n_seqs)
    if b.h.causal_attn:
        x = t.concat(recent, x, 0)
    else:
        around = (kernel.ne[0] - 1) // 2
        left = t.cont(t.view(recent, (around, *recent.ne[1:3]), recent.nb[:3]))
        x = t.pad(t.concat(left, x, 0), around)
    _keep_recent(b, rolling, x, kernel.ne[0] - 1)
    y = t.mul(after, _ssm_conv(x, kernel))
    return _flat(b, t.mul_mat(b.needed(il, "shortconv.out_proj"), y))


def bare(b: Builder, il: int, name: str) -> Tensor:
    """A layer's tensor whose name may come without the word weight."""
    found = b.weights[f"blk.{il}.{name}"] or b.layer(il, name)
    if found is None:
        raise MissingWeight(f"blk.{il}.{name}")
    return found


def _by_sequence(b: Builder, cur: Tensor) -> Tensor:
    return t.reshape(cur, cur.ne[0], b.n_tokens // b.n_seqs, b.n_seqs)


def _flat(b: Builder, cur: Tensor) -> Tensor:
    return t.reshape(cur, cur.ne[0], b.n_tokens)


def _groups(a: Tensor, size: int) -> tuple[int, int, int, int]:
    """Strides of the rows of `a` in pieces of `size`."""
    return a.nb[0], size * a.nb[0], a.nb[1], a.nb[2]


def _recent(b: Builder, inputs: StateInputs, il: int, channels: int) -> tuple[Tensor, Tensor]:
    """The rolling states, and of each sequence what came before this batch."""
    rolling = state_cache(b, il, "r")
    return rolling, t.reshape(read_state(b, inputs, rolling), b.h.ssm_d_conv - 1, channels, b.n_seqs)


def _keep_recent(b: Builder, rolling: Tensor, sequence: Tensor, n_tokens: int) -> None:
    write_state(b, rolling, t.view(sequence, (n_tokens, *sequence.ne[1:3]), sequence.nb[:3]))


def _convolve(b: Builder, il: int, rolling: Tensor, sequence: Tensor) -> Tensor:
    """Keep the end of each sequence for the next batch, then convolve, and activate."""
    _keep_recent(b, rolling, sequence, b.h.ssm_d_conv - 1)
    cur = _ssm_conv(sequence, b.needed(il, "ssm_conv1d"))
    bias = b.bias(il, "ssm_conv1d")
    return t.activation(cur if bias is None else t.add(cur, bias))


def _ssm_conv(sequence: Tensor, kernel: Tensor) -> Tensor:
    """`ggml_ssm_conv`."""
    n_tokens = sequence.ne[0] - kernel.ne[0] + 1
    return t.made("ssm_conv", F32, (kernel.ne[1], n_tokens, sequence.ne[2]), sequence, kernel)


def _scan(
    b: Builder, inputs: StateInputs, il: int, x: Tensor, dt: Tensor, decay: Tensor, into: Tensor, out: Tensor
) -> Tensor:
    """`ggml_ssm_scan` from the states of the batch, and the states after it put back: gives both in one row."""
    cache = state_cache(b, il, "s")
    d_state, n_states = b.h.ssm_d_state, b.h.n_embd_s * b.n_seqs

    def scan(states: Tensor, ids: Tensor) -> Tensor:
        states = t.reshape(states, d_state, x.ne[0], x.ne[1], b.n_seqs)
        return t.made("ssm_scan", F32, (x.n_elements + n_states,), states, x, dt, decay, into, out, ids)

    y = read_state(b, inputs, cache, scan)
    write_state(b, cache, t.view(y, (n_states,)))
    return y
