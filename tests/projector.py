"""Projectors of real shapes, whose weights are a hole: a tower for pictures, and the way into a language model.

Names and keys are those of llama.cpp's tools/mtmd/clip-impl.h (b11434).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fit.shapes import Metadata, Model, Tensor, TensorType, write_model


@dataclass(frozen=True)
class Projector:
    """A tower of `n_layer` blocks over pictures of `image` pixels a side in patches of `patch`."""

    kind: str
    image: int
    patch: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_out: int  # the width of the language model


PROJECTORS = {
    "gemma-3 (SigLIP)": Projector("gemma3", 896, 14, 1152, 4304, 27, 16, 2048),
    "llava-1.5 (CLIP-L)": Projector("mlp", 336, 14, 1024, 4096, 24, 16, 2048),
    "smolvlm (SigLIP-B)": Projector("idefics3", 512, 16, 768, 3072, 12, 12, 2048),
}


def write_projector(path: Path, shape: Projector) -> Path:
    """The file; the path, for convenience."""
    grey: Any = [0.5, 0.5, 0.5]  # encoded as any other array
    vision: Metadata = {
        "image_size": shape.image, "patch_size": shape.patch, "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff, "block_count": shape.n_layer, "attention.head_count": shape.n_head,
        "attention.layer_norm_epsilon": 1e-6, "projection_dim": shape.n_out, "image_mean": grey,
        "image_std": grey,
    }  # fmt: skip
    if shape.kind == "idefics3":
        vision["projector.scale_factor"] = 4
    metadata: Metadata = {
        "general.architecture": "clip", "general.alignment": 32, "clip.has_vision_encoder": True,
        "clip.projector_type": shape.kind, "clip.use_gelu": True,
        **{f"clip.vision.{key}": value for key, value in vision.items()},
    }  # fmt: skip
    tensors = [
        Tensor(name, dims, TensorType.F16 if len(dims) > 1 and "embd" not in name else TensorType.F32)
        for name, dims in _tensors(shape)
    ]
    write_model(path, Model(metadata, tensors))
    return path


def _tensors(shape: Projector) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, patches = shape.n_embd, (shape.image // shape.patch) ** 2
    yield "v.patch_embd.weight", (shape.patch, shape.patch, 3, width)
    for layer in range(shape.n_layer):
        block = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield f"{block}{name}.weight", (width, width)
            yield f"{block}{name}.bias", (width,)
        for name in ("ln1", "ln2"):
            yield f"{block}{name}.weight", (width,)
            yield f"{block}{name}.bias", (width,)
        yield f"{block}ffn_up.weight", (width, shape.n_ff)
        yield f"{block}ffn_up.bias", (shape.n_ff,)
        yield f"{block}ffn_down.weight", (shape.n_ff, width)
        yield f"{block}ffn_down.bias", (width,)
    if shape.kind == "mlp":
        yield "v.class_embd", (width,)
        yield "v.position_embd.weight", (width, patches + 1)
        yield "v.pre_ln.weight", (width,)
        yield "v.pre_ln.bias", (width,)
        yield "mm.0.weight", (width, shape.n_out)
        yield "mm.0.bias", (shape.n_out,)
        yield "mm.2.weight", (shape.n_out, shape.n_out)
        yield "mm.2.bias", (shape.n_out,)
        return
    yield "v.patch_embd.bias", (width,)
    yield "v.position_embd.weight", (width, patches)
    yield "v.post_ln.weight", (width,)
    yield "v.post_ln.bias", (width,)
    if shape.kind == "gemma3":
        yield "mm.input_projection.weight", (shape.n_out, width)
        yield "mm.soft_emb_norm.weight", (width,)
    else:
        yield "mm.model.fc.weight", (width * 16, shape.n_out)
