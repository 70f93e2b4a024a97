"""What only CUDA adds to a model's memory: alignment, padding, scratch, staging copies, the driver's context.

Follows llama.cpp b11434, ggml/src/ggml-cuda: `ggml_backend_cuda_buffer_type_get_alignment`,
`ggml_backend_cuda_buffer_type_get_alloc_size`, `ggml_cuda_flash_attn_ext_get_alloc_size` (for cards with Turing's
tensor cores and later ones), `ggml_backend_cuda_device_offload_op`.
"""

from __future__ import annotations

from modelpipes.fit.compute.schedule import Device
from modelpipes.fit.compute.tensor import Tensor
from modelpipes.fit.placement import CUDA_ALIGNMENT

MIB = 1 << 20
# The driver's context, cuBLAS and the memory pool of one engine: measured as 250 to 320 MiB on cards of 16 GB.
OVERHEAD_BYTES = 320 * MIB
OFFLOAD_TOKENS = 32  # op_offload_min_batch_size: a batch as large is worth copying a weight from the host for
HALF_BYTES = 2


def device() -> Device:
    """A CUDA device's rules for compute buffers."""
    return Device(CUDA_ALIGNMENT, alloc_size, offloads)


def alloc_size(tensor: Tensor) -> int:
    """Bytes of a tensor in a CUDA buffer: attention converts a quantised cache to half floats beside its result."""
    if tensor.op != "flash_attn_ext":
        return tensor.size
    size = tensor.size
    keys, values = tensor.src[1], tensor.src[2]
    for cache in (keys, values):
        if cache.type != "f16" and (cache is keys or cache.view_src is not keys.view_src):
            size = -(-size // CUDA_ALIGNMENT) * CUDA_ALIGNMENT + cache.n_elements * HALF_BYTES
    return size


def offloads(node: Tensor) -> bool:
    """Whether a device takes over an operation whose weights lie on the host (`get_op_batch_size`)."""
    if node.op == "get_rows":
        return False
    if node.op == "mul_mat":
        return node.ne[1] >= OFFLOAD_TOKENS
    if node.op in ("mul_mat_id", "rope"):
        return node.ne[2] >= OFFLOAD_TOKENS
    return node.ne[1] * node.ne[2] * node.ne[3] >= OFFLOAD_TOKENS
