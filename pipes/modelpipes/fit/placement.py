"""Where llama.cpp puts a model's weights: which device or the host, and how many bytes each of them holds.

Follows `llama_model_base::load_tensors` and `llama_model_loader::create_tensor` (b11434). A layer's weights go to
the layer's device; the input's always to the host; the output, and what belongs to no block, to the device of layer
number `n_layer`. A header is weighed once (`weigh`); placing under other settings is then arithmetic (`place`).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec import Struct

from modelpipes.errors import ModelFileError, UsageError
from modelpipes.fit.hparams import Hparams
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header, Tensor
from modelpipes.gguf.types import TENSOR_TYPES

Device = int | None  # None is the host

INPUT = -1
UNUSED = -2
TABLE = -3

HOST_ALIGNMENT = 32  # TENSOR_ALIGNMENT in ggml-cpu, also of RPC devices with a CPU behind them
CUDA_ALIGNMENT = 128  # ggml_backend_cuda_buffer_type_get_alignment
CUDA_ROW = 512  # MATRIX_ROW_PADDING: rows of quantised matrices are read in pieces of so many elements
QUANTISED = frozenset(id for id, type in TENSOR_TYPES.items() if type.block_size > 1)

# `--cpu-moe` (LLM_FFN_EXPS_REGEX in common/common.h); searched for, so that biases and scales match as well.
EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")

# By LLM_TENSOR_INFOS in llama-arch.cpp. What is in none of these lists and in no block goes with the output.
INPUTS = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
FIRST_LAYER = (
    "token_embd_norm.",
    "per_layer_model_proj.",
    "per_layer_proj_norm.",
    "hrm.",
    "conv1d.",
    "nextn.pre_projection.",
)
TABLES = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")  # one copy wherever a layer uses them
NEVER_LOADED = ("masked_embd_", "cross_attn_rel_b.")
BLOCK = re.compile(r"(?:(?:enc\.|dec\.)?blk|posnet|convnext)\.([0-9]{1,4})\.(.*)", re.DOTALL)
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"


class Size(NamedTuple):
    """Bytes with their padding: on the host and on devices in general, and on CUDA devices."""

    plain: int
    cuda: int


NOTHING = Size(0, 0)


class Weights(Struct, frozen=True):
    """A model's weights added up: by layer (the output last), experts apart; and what lies elsewhere.

    `tables` are copied to every place that holds one of `table_layers`. `tied` is the input's matrix where it
    serves as the output's too; it is copied to the output's place, or (`tied_always_copied`) even beside itself.
    """

    layers: tuple[Size, ...]
    experts: tuple[Size, ...]
    inputs: Size
    tables: Size
    table_layers: tuple[int, ...]
    tied: Size
    tied_always_copied: bool
    homes: Mapping[str, int]  # `locate` of every tensor


class Placement(Struct, frozen=True):
    """Devices (None: the host) of every layer and of the output; bytes that each device and the host hold."""

    layers: tuple[Device, ...]
    output: Device
    layer_bytes: tuple[int, ...]  # of every layer, the output last; experts on the host included
    model_bytes: tuple[int, ...]  # of every device
    host_model_bytes: int
    keeps_experts: Callable[[int], bool]  # of a layer, on the host

    def device_of(self, name: str, home: int) -> Device:
        """Where a tensor lies that goes with `home` (`locate`); of the tables that are copied, the first layer's copy.

        A tied `token_embd.weight` lies on the host; its copy is where `output` is.
        """
        if home in (INPUT, UNUSED) or (EXPERTS.search(name) and self.keeps_experts(home)):
            return None
        if home == TABLE:
            home = 0
        return self.output if home == len(self.layers) else self.layers[home]


def weigh(header: Header, hparams: Hparams) -> Weights:
    """Add up the weights of a model by where they go.

    A model in shards is given as for `read_hparams`. Raises ModelFileError for a tensor of an unknown type.
    """
    output = hparams.n_layer
    rest: dict[int, list[int]] = {}  # bytes as in Size
    experts: dict[int, list[int]] = {}
    ends: dict[str, Size] = {}
    homes: dict[str, int] = {}
    sizes: dict[tuple[int | tuple[int, ...], ...], Size] = {}  # most tensors look like others
    for tensor in header.tensors:
        name, shape, type, _, n_bytes = tensor
        if n_bytes is None:
            raise ModelFileError(header.path, f"tensor {name} is of type {type}, which llama.cpp does not know")
        home = homes[name] = locate(name, hparams)
        size = sizes.get((n_bytes, type, shape))
        if size is None:
            size = sizes[n_bytes, type, shape] = size_of(tensor)
        _add(experts if "exps" in name and EXPERTS.search(name) else rest, home, size)
        if name in (EMBEDDING, OUTPUT):
            ends[name] = size
    if hparams.facts.input_from_output and EMBEDDING not in ends:
        # models/codeshell.cpp makes the input from the output, on the output's device, and then the output.
        _add(rest, output, ends.get(OUTPUT, NOTHING))
    is_tied = OUTPUT not in ends and hparams.facts.ties_output
    return Weights(
        layers=tuple(Size(*rest.get(layer, NOTHING)) for layer in range(output + 1)),
        experts=tuple(Size(*experts.get(layer, NOTHING)) for layer in range(output + 1)),
        inputs=Size(*rest.get(INPUT, NOTHING)),
        tables=Size(*rest.get(TABLE, NOTHING)),
        table_layers=tuple(_table_layers(hparams)),
        tied=ends.get(EMBEDDING, NOTHING) if is_tied else NOTHING,
        tied_always_copied=hparams.facts.embedding_copy,
        homes=homes,
    )


def place(weights: Weights, hparams: Hparams, settings: EngineSpec) -> Placement:
    """Choose the devices of all layers, and add up what each of them holds."""
    devices = layer_devices(hparams.n_layer, settings)
    is_cuda = settings.backend == "cuda"
    totals = [0] * settings.n_devices
    host = weights.inputs.plain
    layer_bytes = []

    def put(device: Device, size: Size) -> int:
        nonlocal host
        if device is None:
            host += size.plain
            return size.plain
        n_bytes = size.cuda if is_cuda else size.plain
        totals[device] += n_bytes
        return n_bytes

    for layer, (device, size, experts) in enumerate(zip(devices, weights.layers, weights.experts, strict=True)):
        held = put(device, size)
        if experts.plain:
            held += put(None if settings.keeps_experts(layer) else device, experts)
        layer_bytes.append(held)
    output = devices[-1]
    if weights.tied.plain and (output is not None or weights.tied_always_copied):
        layer_bytes[-1] += put(output, weights.tied)
    if weights.tables.plain:
        for device in {devices[layer] for layer in weights.table_layers}:
            put(device, weights.tables)
    return Placement(devices[:-1], output, tuple(layer_bytes), tuple(totals), host, settings.keeps_experts)


def locate(name: str, hparams: Hparams) -> int:
    """The layer that a tensor goes with (`n_layer`: the output), or INPUT, TABLE or UNUSED."""
    block = BLOCK.match(name)
    if block is not None:
        return _locate_in_block(int(block[1]), block[2], hparams)
    if name.startswith(INPUTS):
        return INPUT
    if name.startswith(FIRST_LAYER):
        return hparams.n_layer if hparams.facts.norm_at_output else 0
    if name.startswith(TABLES):
        return TABLE
    return UNUSED if name.startswith(NEVER_LOADED) else hparams.n_layer


def size_of(tensor: Tensor) -> Size:
    """Bytes that a tensor takes in a buffer (`ggml_backend_buft_get_alloc_size`, and the alignment)."""
    n_bytes = tensor.n_bytes or 0
    cuda = n_bytes
    if n_bytes and tensor.type in QUANTISED and tensor.shape[0] % CUDA_ROW:
        cuda += cuda_row_padding(tensor.shape[0], n_bytes, math.prod(tensor.shape))
    return Size(aligned(n_bytes, HOST_ALIGNMENT), aligned(cuda, CUDA_ALIGNMENT))


def aligned(n_bytes: int, alignment: int) -> int:
    """Bytes rounded up to a multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment


def cuda_row_padding(row: int, n_bytes: int, n_elements: int) -> int:
    """Bytes that CUDA adds after a quantised tensor (`ggml_backend_cuda_buffer_type_get_alloc_size`)."""
    return -row % CUDA_ROW * n_bytes // n_elements


def layer_devices(n_layer: int, settings: EngineSpec) -> tuple[Device, ...]:
    """The devices of layers 0 to `n_layer`, the last of which is the output (`get_layer_buft_list`)."""
    wanted = settings.n_gpu_layers
    n_gpu = n_layer + 1 if wanted is None or wanted < 0 else min(wanted, n_layer + 1)
    if not settings.n_devices:
        n_gpu = 0
    start = n_layer + 1 - n_gpu
    shares = _split_points(settings)
    devices: list[Device] = [None] * start
    if settings.n_devices == 1:
        return (*devices, *(0,) * n_gpu)
    for layer in range(n_gpu):
        point = _float32(layer / n_gpu)
        devices.append(sum(share <= point for share in shares))
    return tuple(devices)


def _split_points(settings: EngineSpec) -> Sequence[float]:
    """Where the shares of the devices end, from 0 to 1, in llama.cpp's precision."""
    given = settings.tensor_split or ()
    shares = [_float32(share) for share in given[: settings.n_devices]]
    shares += [0.0] * (settings.n_devices - len(shares))
    if any(share < 0 for share in shares):
        raise UsageError(f"a device's share of the layers cannot be negative: {given}")
    if not any(shares):
        shares = [1.0] * settings.n_devices
    ends = list(accumulate(shares, lambda total, share: _float32(total + share)))
    return [_float32(end / ends[-1]) for end in ends]


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _add(sums: dict[int, list[int]], home: int, size: Size) -> None:
    there = sums.get(home)
    if there is None:
        sums[home] = [size.plain, size.cuda]
    else:
        there[0] += size.plain
        there[1] += size.cuda


def _locate_in_block(layer: int, name: str, hparams: Hparams) -> int:
    """As `locate`, for what follows the number of a block in a tensor's name."""
    if name.startswith(NEVER_LOADED):
        return UNUSED
    if layer >= hparams.n_layer:  # blocks of a head go with the output (llama_model_base::create_tensor)
        return hparams.n_layer
    if layer < hparams.n_layer_trunk or hparams.n_layer_trunk == 0:  # gemma4-assistant has no trunk
        return layer
    # Of blocks for next-token prediction most stays in the file, as without `load_mtp`.
    kept = hparams.facts.nextn_loaded
    return layer if kept and name.startswith(kept) else UNUSED


def _table_layers(hparams: Hparams) -> Iterator[int]:
    """The layers whose loader asks for rope tables."""
    which = hparams.facts.rope_tables
    layers = range(hparams.n_layer if which == "all" else hparams.n_layer_trunk or hparams.n_layer)
    if which == "dense":
        return (layer for layer in layers if not hparams.is_swa[layer])
    return iter(layers)
