"""The graph of WavTokenizer's decoder, which makes spectra from codes by convolutions over all tokens at once.

Follows llama.cpp b11434, src/models/wavtokenizer-dec.cpp, and `ggml_conv_1d_ph` and `ggml_conv_1d_dw_ph`
(ggml/src/ggml.c) with weights in half precision. Unlike elsewhere, the tokens are the contiguous dimension.
"""

from __future__ import annotations

from collections.abc import Callable

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.builder import Builder
from modelpipes.fit.compute.tensor import F16, Tensor

ATTENTION, LAST = 2, 5  # the posnet's blocks that are no pairs of convolutions


def wavtokenizer(b: Builder, layers: list[int]) -> None:
    """`llama_model_wavtokenizer_dec::graph`; its few ConvNeXt blocks are built all, whatever `layers`."""
    cur = _turned(b.embed())
    cur = _convolved(b, "conv1d", cur)
    for il in range(b.h.number("posnet.block_count")):
        if il == ATTENTION:
            cur = _attention(b, f"posnet.{il}", cur)
        elif il == LAST:
            cur = _normed(b, f"posnet.{il}.attn_norm", cur)
        else:
            cur = _convolutions(b, f"posnet.{il}", cur)
    cur = _turned(b.norm(_turned(cur), *_pair(b, "token_embd_norm"), "norm"))
    for il in range(b.h.number("convnext.block_count")):
        cur = _convnext(b, f"convnext.{il}", cur)
    b.output(_turned(cur), "norm")


def _pair(b: Builder, name: str) -> tuple[Tensor, Tensor]:
    return b.weight(f"{name}.weight"), b.weight(f"{name}.bias")


def _turned(cur: Tensor) -> Tensor:
    return t.cont(t.transpose(cur))


def _normed(b: Builder, name: str, cur: Tensor) -> Tensor:
    """A norm over groups of channels."""
    grouped = t.made("group_norm", cur.type, (cur.ne[0], 1, cur.ne[1]), t.reshape(cur, cur.ne[0], 1, cur.ne[1]))
    weight, bias = _pair(b, name)
    return t.add(t.mul(t.reshape(grouped, cur.ne[0], cur.ne[1]), weight), bias)


def _convolved(b: Builder, name: str, cur: Tensor) -> Tensor:
    """A convolution as a product with every token's neighbourhood laid out in a row."""
    weight, bias = _pair(b, name)
    width, n_in, n_out, _ = weight.ne
    rows = t.made("im2col", F16, (width * n_in, cur.ne[0]), weight, cur)
    product = t.mul_mat(rows, t.reshape(weight, width * n_in, n_out))
    return t.add(t.reshape(product, cur.ne[0], n_out), bias)


def _convolutions(b: Builder, name: str, residual: Tensor) -> Tensor:
    cur = residual
    for step in (1, 2):
        cur = _normed(b, f"{name}.norm{step}", cur)
        cur = _convolved(b, f"{name}.conv{step}", t.mul(t.activation(cur), cur))
    return t.add(cur, residual)


def _attention(b: Builder, name: str, residual: Tensor) -> Tensor:
    cur = _normed(b, f"{name}.attn_norm", residual)
    q, k, v = (_convolved(b, f"{name}.attn_{kind}", cur) for kind in "qkv")
    q, k = _turned(q), _turned(k)
    cur = t.mul_mat(t.soft_max(t.mul_mat(k, q)), v)
    return t.add(_convolved(b, f"{name}.attn_output", cur), residual)


def _convnext(b: Builder, name: str, residual: Tensor) -> Tensor:
    """A convolution of each channel alone, then a feed-forward network."""
    weight, bias = _pair(b, f"{name}.dw")
    n, channels, _, _ = residual.ne
    rows = t.made("im2col", F16, (weight.ne[0], n, channels), weight, t.reshape(residual, n, 1, channels))
    cur = t.add(t.reshape(t.mul_mat(rows, weight), n, channels), bias)
    cur = b.norm(_turned(cur), *_pair(b, f"{name}.norm"), "norm")
    cur = b.linear(t.activation(b.linear(cur, *_pair(b, f"{name}.pw1"))), *_pair(b, f"{name}.pw2"))
    return t.add(_turned(t.mul(cur, b.weight(f"{name}.gamma.weight"))), residual)


GRAPHS: dict[str, Callable[[Builder, list[int]], None]] = {"wavtokenizer-dec": wavtokenizer}
