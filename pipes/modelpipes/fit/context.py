"""What llama.cpp keeps for a context: caches of keys and values, and recurrent state, on every device.

Follows `llama_model::create_memory` and the memory modules that it chooses from (b11434): llama-kv-cache*.cpp and
llama-memory-*.cpp. A layer's cache lies where the layer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from modelpipes.errors import UsageError
from modelpipes.fit.hparams import Hparams
from modelpipes.fit.placement import (
    CUDA_ALIGNMENT,
    CUDA_ROW,
    HOST_ALIGNMENT,
    Placement,
    aligned,
    cuda_row_padding,
)
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.types import CACHE_TYPES, TENSOR_TYPES, TYPE_IDS, row_bytes

N_BATCH = 2048  # tokens of a logical batch: llama.cpp's default
PADDING = 256  # cells; contexts and windows are padded so (llama_context, llama_kv_cache_iswa)
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ

STATE_TYPE = "f32"

# DeepSeek V4 keeps every token within the window, and beyond it one for every 4 or 128 (llama-kv-cache-dsv4.cpp).
DSV4_FINE = 4
DSV4_COARSE = 128


class Row(Struct, frozen=True):
    """One layer's part of a cache: elements of keys and of values that one cell holds."""

    layer: int
    k: int
    v: int


class Cache(Struct, frozen=True):
    """One of llama.cpp's caches: `cells` in each of `streams`.

    `name` is base, window, indexer, or (DeepSeek V4) fine, coarse and fine-indexer.
    """

    name: str
    cells: int
    streams: int
    rows: tuple[Row, ...]


class State(Struct, frozen=True):
    """Elements of recurrent state of one layer for all sequences, in tensors of these sizes."""

    layer: int
    sizes: tuple[int, ...]


class Context(Struct, frozen=True):
    """A context as llama.cpp makes it, and what it takes.

    `n_ctx` is padded; a sequence has `n_ctx_seq` of it. `n_ubatch` is cut to the batch. `cells` are those of
    a stream of the main cache, `cells_swa` of the sliding-window cache (0: there is none).
    """

    n_ctx: int
    n_ctx_seq: int
    n_ubatch: int
    n_streams: int
    cells: int
    cells_swa: int
    flash_attn: bool
    caches: tuple[Cache, ...]
    states: tuple[State, ...]
    kv_bytes: tuple[int, ...]  # of every device
    state_bytes: tuple[int, ...]
    host_kv_bytes: int
    host_state_bytes: int

    @property
    def device_bytes(self) -> tuple[int, ...]:
        """Of every device: caches and state."""
        return tuple(kv + state for kv, state in zip(self.kv_bytes, self.state_bytes, strict=True))

    @property
    def host_bytes(self) -> int:
        return self.host_kv_bytes + self.host_state_bytes


def plan_context(hparams: Hparams, placement: Placement, settings: EngineSpec) -> Context:
    """The context that llama.cpp makes under these settings.

    Raises UsageError where it would refuse them, as a quantised V cache without flash attention.
    """
    flash_attn = settings.flash_attn and hparams.facts.flash_attention  # llama_init_from_model
    _check(hparams, settings, flash_attn)
    n_ctx, n_ctx_seq, n_ubatch = _lengths(hparams, settings)
    shape = _Shape(hparams, settings, n_ctx_seq, n_ubatch, transposed=not flash_attn)
    caches = tuple(cache for cache in _make_caches(shape) if cache.rows)
    states = tuple(_make_states(hparams, settings.n_parallel))
    kv, host_kv = _add_up(_cache_tensors(caches, settings), placement, settings)
    state, host_state = _add_up(_state_tensors(states), placement, settings)
    windows = [cache for cache in caches if cache.name == "window"]
    return Context(
        n_ctx=n_ctx,
        n_ctx_seq=n_ctx_seq,
        n_ubatch=n_ubatch,
        n_streams=shape.streams,
        cells=n_ctx_seq if hparams.facts.memory not in ("none", "recurrent") else 0,
        cells_swa=windows[0].cells if windows else 0,
        flash_attn=flash_attn,
        caches=caches,
        states=states,
        kv_bytes=kv,
        state_bytes=state,
        host_kv_bytes=host_kv,
        host_state_bytes=host_state,
    )


def _check(hparams: Hparams, settings: EngineSpec, flash_attn: bool) -> None:
    """Refuse what `llama_init_from_model` and the constructor of `llama_context` refuse."""
    if not 0 < settings.n_parallel <= MAX_SEQUENCES:
        raise UsageError(f"llama.cpp takes 1 to {MAX_SEQUENCES} sequences, not {settings.n_parallel}")
    for name in (settings.type_k, settings.type_v):
        if name not in CACHE_TYPES:
            raise UsageError(f"no cache can be of type {name}; llama.cpp takes {', '.join(CACHE_TYPES)}")
    if _block_size(settings.type_v) > 1 and not flash_attn:
        raise UsageError(f"a V cache of type {settings.type_v} needs flash attention")
    if (hparams.is_mla or hparams.facts.memory == "dsv4") and settings.type_k != settings.type_v:
        raise UsageError(f"{hparams.arch} needs K and V caches of one type, not {settings.type_k}, {settings.type_v}")
    if flash_attn:
        for name, heads in ((settings.type_k, hparams.n_embd_head_k), (settings.type_v, hparams.n_embd_head_v)):
            for head in set(heads[: hparams.n_layer_trunk]):
                _row_bytes(name, head)


def _row_bytes(type: str, n_elements: int) -> int:
    """Bytes of a row of a cache; UsageError where it is not whole blocks."""
    try:
        return row_bytes(type, n_elements)
    except ValueError as error:
        raise UsageError(f"this model has no cache of type {type}: {error}") from None


def _block_size(type: str) -> int:
    return TENSOR_TYPES[TYPE_IDS[type]].block_size


def _lengths(hparams: Hparams, settings: EngineSpec) -> tuple[int, int, int]:
    """The context, one sequence's part of it, and the physical batch (the constructor of `llama_context`)."""
    wanted = settings.n_ctx or hparams.n_ctx_train
    n_batch = min(wanted, N_BATCH) if hparams.causal_attn else N_BATCH
    n_ubatch = min(n_batch, settings.n_ubatch or N_BATCH)
    n_ctx = aligned(wanted, PADDING)
    if settings.kv_unified:
        return n_ctx, n_ctx, n_ubatch
    n_ctx_seq = aligned(n_ctx // settings.n_parallel, PADDING)
    return n_ctx_seq * settings.n_parallel, n_ctx_seq, n_ubatch


class _Shape:
    """What caches are made from: the model's sizes, and the settings' cells and streams."""

    def __init__(self, hparams: Hparams, settings: EngineSpec, cells: int, n_ubatch: int, *, transposed: bool) -> None:
        self.hparams = hparams
        self.cells = cells
        self.transposed = transposed
        # DeepSeek V4 keeps sequences apart whatever is asked for.
        unified = settings.kv_unified and hparams.facts.memory != "dsv4"
        self.streams = 1 if unified else settings.n_parallel
        sequences = settings.n_parallel if unified else 1
        self.cells_swa = aligned(min(cells, hparams.n_swa * sequences + n_ubatch), PADDING)

    def attention(self, name: str, layers: Iterable[int], cells: int, *, k_only: bool = False) -> Cache:
        """A cache of the layers' keys and values (`llama_kv_cache`).

        Without flash attention V is kept transposed, in rows of the widest layer.
        """
        h = self.hparams
        rows: list[Row] = []
        widest = h.n_embd_v_gqa_max if self.transposed else 0
        for layer in layers:
            if not h.has_kv[layer]:
                continue
            v = 0 if k_only or h.is_mla else widest or h.n_embd_v_gqa(layer)
            rows.append(Row(layer, h.n_embd_k_gqa(layer), v))
        return Cache(name, cells, self.streams, tuple(rows))

    def windowed(self, layers: Sequence[int], *, k_only: bool = False) -> list[Cache]:
        """One cache of the dense layers, and a small one of those with a window (`llama_kv_cache_iswa`)."""
        is_swa = self.hparams.is_swa
        dense = [layer for layer in layers if not is_swa[layer]]
        window = [layer for layer in layers if is_swa[layer]]
        return [
            self.attention("base", dense, self.cells, k_only=k_only),
            self.attention("window", window, self.cells_swa, k_only=k_only),
        ]

    def indexer(self, layers: Iterable[int], k: int, v: int = 0, name: str = "indexer", cells: int = 0) -> Cache:
        """A cache of one head of keys for each layer, by which others' keys are chosen."""
        return Cache(name, cells or self.cells, self.streams, tuple(Row(layer, k, v) for layer in layers))


def _make_caches(shape: _Shape) -> list[Cache]:
    """The caches that `llama_model::create_memory` makes."""
    h = shape.hparams
    memory = h.facts.memory
    every, trunk = range(h.n_layer), range(h.n_layer_trunk)
    if memory in ("none", "recurrent") or h.facts.drafts:
        return []
    if memory == "dsv4":
        return _make_dsv4_caches(shape)
    if memory == "msa":
        sparse = range(h.n_layer_dense_lead, h.n_layer)
        v = max(h.n_embd_head_v) if shape.transposed else h.n_embd_head_v[0]
        return [shape.attention("base", every, shape.cells), shape.indexer(sparse, h.indexer_head_size, v)]
    if memory == "dsa":
        return _make_dsa_caches(shape)
    if memory == "kv":
        # A router's block, and a model of nothing but blocks for next-token prediction, keep theirs.
        layers = trunk if h.n_layer_trunk and h.router_layer < 0 else every
        return shape.windowed(layers) if h.swa_type != "none" else [shape.attention("base", layers, shape.cells)]
    attending = _attending_layers(h)
    if h.swa_type != "none":
        return shape.windowed(attending)
    caches = [shape.attention("base", attending, shape.cells)]
    if memory == "hybrid-indexed" and h.indexer_head_size:
        rows = h.facts.indexer_rows if h.indexer_kpool else 1
        caches.append(shape.indexer(_indexed(h, attending), h.indexer_head_size * rows))
    return caches


def _attending_layers(h: Hparams) -> list[int]:
    """The layers of a hybrid model that keep keys and values."""
    if h.facts.recurrence == "all":  # falcon-h1: its layers keep both
        return list(range(h.n_layer))
    if h.facts.recurrence == "no-kv-heads-nor-ff":
        return [layer for layer in range(h.n_layer) if not h.is_recr[layer] and h.n_ff[layer] == 0]
    # Of most architectures the filter of `llama_memory_hybrid` knows nothing of next-token prediction.
    layers = range(h.n_layer if h.facts.nextn_attends else h.n_layer_trunk)
    return [layer for layer in layers if not h.is_recr[layer]]


def _indexed(h: Hparams, layers: Iterable[int]) -> list[int]:
    """Those of the layers that have an indexer of their own."""
    return [layer for layer in layers if h.facts.indexed_always or h.is_indexer_full[layer]]


def _make_dsa_caches(shape: _Shape) -> list[Cache]:
    """Sparse attention with an indexer (`llama_kv_cache_dsa`, `llama_kv_cache_dsa_iswa`)."""
    h = shape.hparams
    layers = range(h.n_layer if h.facts.nextn_cached else h.n_layer_trunk)
    caches = shape.windowed(layers) if h.swa_type != "none" else [shape.attention("base", layers, shape.cells)]
    if h.facts.indexer_optional and not h.indexer_top_k:
        return caches
    return [*caches, shape.indexer(_indexed(h, range(h.n_layer_trunk)), h.indexer_head_size)]


def _make_dsv4_caches(shape: _Shape) -> list[Cache]:
    """A window of raw keys, and condensed ones of the whole context (`llama_kv_cache_dsv4`)."""
    h = shape.hparams
    ratios = h.dsv4_compress_ratios
    fine = [layer for layer in range(h.n_layer) if ratios[layer] == DSV4_FINE]
    coarse = [layer for layer in range(h.n_layer) if ratios[layer] == DSV4_COARSE]
    cells_fine = aligned(-(-shape.cells // DSV4_FINE), PADDING)
    cells_coarse = aligned(-(-shape.cells // DSV4_COARSE), PADDING)
    return [
        *shape.windowed(range(h.n_layer), k_only=True),
        shape.attention("fine", fine, cells_fine, k_only=True),
        shape.attention("coarse", coarse, cells_coarse, k_only=True),
        shape.indexer(fine, h.indexer_head_size, name="fine-indexer", cells=cells_fine),
    ]


def _make_states(h: Hparams, n_sequences: int) -> Iterable[State]:
    """Recurrent state (`llama_memory_recurrent`), or DeepSeek V4's of condensing (`llama_dsv4_comp_state`)."""
    if h.facts.memory == "dsv4":
        for layer in range(h.n_layer_trunk):
            head, ratio = h.n_embd_head_k[0], h.dsv4_compress_ratios[layer]
            if ratio == DSV4_FINE:
                main, index = (2 * DSV4_FINE * 2 * width * n_sequences for width in (head, h.indexer_head_size))
                yield State(layer, (main, main, index, index))
            elif ratio == DSV4_COARSE:
                yield State(layer, (DSV4_COARSE * head * n_sequences,) * 2)
        return
    if h.facts.memory not in ("recurrent", "hybrid", "hybrid-indexed"):
        return
    rolling, recurrent = h.n_embd_r * n_sequences, h.n_embd_s * n_sequences
    for layer in range(h.n_layer_trunk):
        if h.is_recr[layer] and not (h.facts.recurrence == "no-kv-heads-nor-ff" and h.n_ff[layer]):
            history = (h.ple_conv_state * n_sequences,) if h.is_ple[layer] else ()
            yield State(layer, (rolling, recurrent, *history))


def _cache_tensors(caches: Sequence[Cache], settings: EngineSpec) -> Iterable[tuple[int, str, int, int]]:
    """Layer, type, row length and number of rows of every tensor of the caches."""
    for cache in caches:
        n_rows = cache.cells * cache.streams
        for row in cache.rows:
            yield row.layer, settings.type_k, row.k, n_rows
            if row.v:
                yield row.layer, settings.type_v, row.v, n_rows


def _state_tensors(states: Sequence[State]) -> Iterable[tuple[int, str, int, int]]:
    for state in states:
        for size in state.sizes:
            yield state.layer, STATE_TYPE, size, 1


def _add_up(
    tensors: Iterable[tuple[int, str, int, int]], placement: Placement, settings: EngineSpec
) -> tuple[tuple[int, ...], int]:
    """Bytes of the tensors, on each device and on the host."""
    devices = [0] * settings.n_devices
    host = 0
    for layer, type, row, n_rows in tensors:
        n_bytes = _row_bytes(type, row) * n_rows
        device = placement.layers[layer]
        if device is None:
            host += aligned(n_bytes, HOST_ALIGNMENT)
        elif settings.backend == "cuda":
            if n_bytes and _block_size(type) > 1 and row % CUDA_ROW:
                n_bytes += cuda_row_padding(row, n_bytes, row * n_rows)
            devices[device] += aligned(n_bytes, CUDA_ALIGNMENT)
        else:
            devices[device] += aligned(n_bytes, HOST_ALIGNMENT)
    return tuple(devices), host
