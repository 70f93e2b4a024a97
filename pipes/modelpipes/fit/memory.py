"""How much memory a model takes under given settings: on every device and on the host, to the byte where llama.cpp is.

Weights, caches and state follow from the table of tensors and llama.cpp's rules (`placement`, `context`); the
compute buffers from the graph that llama.cpp builds, laid out as ggml does (`compute`). Follows b11434.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from msgspec import Struct

from modelpipes.errors import ContradictionError, FileError
from modelpipes.fit import cuda
from modelpipes.fit.compute import build
from modelpipes.fit.compute.builder import Builder, MissingWeight
from modelpipes.fit.compute.repeats import without_repeats
from modelpipes.fit.compute.schedule import Device, buffer_sizes
from modelpipes.fit.compute.tensor import Tensor, stored
from modelpipes.fit.compute.transformer import has_rope
from modelpipes.fit.context import Context, plan_context
from modelpipes.fit.hparams import Hparams, classify, read_hparams
from modelpipes.fit.placement import Placement, Weights, locate, place, size_of, weigh
from modelpipes.fit.shares import Memory, Share
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header

FOLLOWED_BUILD = "b11434"  # of llama.cpp, whose rules these are
KNOWN_MODELS = 64  # whose weights were added up and are kept: a plan tries one model under many settings
FLOAT_BYTES = 4
ATTENDS = re.compile(r"blk\.[0-9]+\.attn_q\.weight")


def predict_memory(header: Header, settings: EngineSpec | None = None) -> Memory:
    """The memory that llama.cpp takes for a model under these settings (None: its own), in bytes.

        memory = predict_memory(read_header("model.gguf"), EngineSpec(n_ctx=8192, backend="cuda"))
        print(memory.device_bytes, memory.host.total_bytes, memory.estimate)

    `devices` has a share for each device, `host` is that of the host; a share has the weights, the context's caches,
    the compute buffers and what the runtime takes beside. `estimate` says whether the rules for the architecture are
    llama.cpp's own. They are those of b11434; the modules of `modelpipes.fit` name the files that they follow.

    Raises FileError where the file is no language model, ContradictionError where it contradicts itself, and UsageError
    where llama.cpp would refuse the settings.
    """
    return Predictor(header)(settings or EngineSpec())


class Predictor:
    """Predicts one model's memory under many settings: what its header says is worked out once, as is each of them."""

    def __init__(self, header: Header) -> None:
        """Raises FileError where the file is no language model, ContradictionError where it contradicts itself."""
        self._path = header.path
        with _checked(header.path):
            self._model = _model_of(header)
        self._known: dict[EngineSpec, Memory] = {}
        self._weights: _WeightTable | None = None  # as they lay when last asked: contexts are tried one after another

    @property
    def hparams(self) -> Hparams:
        return self._model.hparams

    def __call__(self, settings: EngineSpec) -> Memory:
        """As `predict_memory`."""
        known = self._known.get(settings)
        if known is None:
            with _checked(self._path):
                known = self._known[settings] = self._predict(settings)
        return known

    def without_compute(self, settings: EngineSpec) -> Memory:
        """The same but for the compute buffers, which are what takes the time: never more than it is with them."""
        with _checked(self._path):
            placement = place(self._model.weights, self.hparams, settings)
            context = plan_context(self.hparams, placement, settings)
            return self._memory(settings, placement, context, [0] * (settings.n_devices + 1), known=False)

    def _predict(self, settings: EngineSpec) -> Memory:
        model = self._model
        placement = place(model.weights, self.hparams, settings)
        context = plan_context(self.hparams, placement, settings)
        if self._weights is None or not self._weights.lie(placement, settings):
            self._weights = _WeightTable(model, placement, settings)
        compute, known = _compute_bytes(model, self._weights, placement, context, settings)
        return self._memory(settings, placement, context, compute, known=known)

    def _memory(
        self, settings: EngineSpec, placement: Placement, context: Context, compute: list[int], *, known: bool
    ) -> Memory:
        hparams = self.hparams
        # Experts of some blocks on the host were never measured side by side with llama.cpp, only those of all.
        is_measured = settings.cpu_moe or not 0 < settings.n_cpu_moe < hparams.n_layer
        overhead = cuda.OVERHEAD_BYTES if settings.backend == "cuda" else 0
        logits = FLOAT_BYTES * hparams.n_vocab * settings.n_parallel
        return Memory(
            tuple(
                Share(model_bytes, context_bytes, compute_bytes, overhead)
                for model_bytes, context_bytes, compute_bytes in zip(
                    placement.model_bytes, context.device_bytes, compute[:-1], strict=True
                )
            ),
            Share(placement.host_model_bytes, context.host_bytes, compute[-1], logits),
            "exact" if known and hparams.known and not hparams.facts.approximate and is_measured else "generic",
        )

    def host_weights(self, settings: EngineSpec) -> tuple[int, int]:
        """Bytes of weights that the host computes with: dense ones, and all experts. The input's table is only read."""
        placement = place(self._model.weights, self.hparams, settings)
        weights = self._model.weights
        homes = (*placement.layers, placement.output)
        dense = sum(size.plain for home, size in zip(homes, weights.layers, strict=True) if home is None)
        experts = sum(
            size.plain
            for layer, (home, size) in enumerate(zip(homes, weights.experts, strict=True))
            if home is None or settings.keeps_experts(layer)
        )
        return dense, experts

    def place_adapter(self, adapter: Header, settings: EngineSpec) -> tuple[list[int], int]:
        """Bytes of an adapter's tensors on every device and on the host: each lies with the weight that it changes.

        Follows `llama_adapter_lora_init` in llama-adapter.cpp.
        """
        with _checked(adapter.path):
            placement = place(self._model.weights, self.hparams, settings)
            devices, host = [0] * settings.n_devices, 0
            for tensor in adapter.tensors:
                name = tensor.name.rpartition(".lora_")[0] or tensor.name
                device = placement.device_of(name, locate(name, self.hparams))
                if device is None:
                    host += size_of(tensor).plain
                else:
                    devices[device] += size_of(tensor).plain
            return devices, host


@contextlib.contextmanager
def _checked(path: str) -> Iterator[None]:
    """Within, numbers of a header that contradict each other, in more ways than the rules look for, are its fault."""
    try:
        yield
    except (ArithmeticError, LookupError, ValueError) as error:
        raise ContradictionError(path, f"its numbers contradict each other ({error})") from None


class _Model(Struct, frozen=True):
    """What is worked out from a header once, for all settings."""

    hparams: Hparams
    weights: Weights
    tensors: Mapping[str, tuple[tuple[int, ...], int]]  # shape and bytes by name
    kinds: tuple[int, ...]  # blocks with equal numbers have weights of equal shapes


def _model_of(header: Header) -> _Model:
    found = _models.get(header.signature)
    if found is None:
        if len(_models) >= KNOWN_MODELS:
            del _models[next(iter(_models))]
        found = _models[header.signature] = _read_model(header)
    return found


_models: dict[bytes, _Model] = {}


def _read_model(header: Header) -> _Model:
    kind = classify(header)
    if kind != "model":
        raise FileError(f"{header.path}: a {kind}, not a language model")
    if header.shard is not None and len(header.tensors) < header.shard.n_tensors:
        raise FileError(f"{header.path}: one of {header.shard.count} shards; read the whole model with read_model")
    hparams = read_hparams(header)
    if any(tensor.n_bytes is None for tensor in header.tensors):
        header = _with_sizes(header)
    tensors = {tensor.name: (tensor.shape, tensor.n_bytes or 0) for tensor in header.tensors}
    if not any(hparams.n_head) and any(ATTENDS.fullmatch(name) for name in tensors):
        raise ValueError("attention.head_count is 0, and there are queries")
    return _Model(hparams, weigh(header, hparams), tensors, tuple(_block_kinds(tensors, hparams.n_layer)))


def _with_sizes(header: Header) -> Header:
    """Give tensors of a type that we do not know the bytes up to the next one's offset."""
    ordered = sorted(header.tensors, key=lambda tensor: tensor.offset)
    ends = [tensor.offset for tensor in ordered[1:]] + [header.file_size - header.data_offset]
    sized = [
        tensor if tensor.n_bytes is not None else tensor._replace(n_bytes=max(end - tensor.offset, 0))
        for tensor, end in zip(ordered, ends, strict=True)
    ]
    return replace(header, tensors=tuple(sized))


def _block_kinds(tensors: Mapping[str, tuple[tuple[int, ...], int]], n_layer: int) -> Iterator[int]:
    """A number for each block, equal where the names and shapes of its weights are."""
    blocks: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for name, (shape, _) in tensors.items():
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            of_block = blocks.get(number)
            if of_block is None:
                of_block = blocks[number] = set()
            of_block.add((rest, shape))
    numbers: dict[frozenset[tuple[str, tuple[int, ...]]], int] = {}
    for layer in range(n_layer):
        yield numbers.setdefault(frozenset(blocks.get(str(layer), ())), len(numbers))


class _WeightTable(dict[str, Tensor | None]):
    """Weights as tensors that lie somewhere, made as a graph asks for them; None: the file has none of that name."""

    def __init__(self, model: _Model, placement: Placement, settings: EngineSpec) -> None:
        super().__init__()
        self._model = model
        self._placement = placement
        self._where = _where(placement, settings)

    def lie(self, placement: Placement, settings: EngineSpec) -> bool:
        """Do they lie where this placement has them?"""
        return self._where == _where(placement, settings)

    def __missing__(self, name: str) -> Tensor | None:
        made = self[name] = self._make(name)
        return made

    def _make(self, name: str) -> Tensor | None:
        model, placement = self._model, self._placement
        device: int | None
        entry = model.tensors.get(name)
        if entry is not None:
            device = placement.device_of(name, model.weights.homes[name])
        elif name == "output.weight" and model.hparams.facts.ties_output:
            entry = model.tensors.get("token_embd.weight")
            device = placement.output
        if entry is None:
            return None
        host = len(placement.model_bytes)
        return stored(entry[0], entry[1], host if device is None else device, weight=True)


def _where(placement: Placement, settings: EngineSpec) -> tuple[object, ...]:
    return placement.layers, placement.output, settings.n_devices, settings.cpu_moe, settings.n_cpu_moe


def _compute_bytes(
    model: _Model, weights: _WeightTable, placement: Placement, context: Context, settings: EngineSpec
) -> tuple[list[int], bool]:
    """Compute buffers of every device and of the host; whether they follow from the architecture's own graph."""
    hparams, last = model.hparams, settings.n_devices
    homes = [last if device is None else device for device in (*placement.layers, placement.output)]
    settings = replace(settings, flash_attn=context.flash_attn)
    builder = Builder(weights, hparams, context, settings, homes)
    deep = hparams.number("n_deepstack_layers")
    labels = [
        (homes[il], model.kinds[il], hparams.is_swa[il], hparams.is_recr[il], hparams.has_kv[il], il < deep,
         has_rope(hparams, il), settings.keeps_experts(il))
        for il in range(hparams.n_layer_trunk)
    ]  # fmt: skip
    try:
        build(builder, list(range(len(labels))) if hparams.facts.growing else without_repeats(labels))
    except MissingWeight:
        return _rough_compute_bytes(hparams, homes, context, settings), False
    device = cuda.device() if settings.backend == "cuda" else Device()
    pipelined = last > 1 and all(home != last for home in homes) and not (settings.cpu_moe or settings.n_cpu_moe)
    return buffer_sizes(builder.graph, [device] * last, Device(), pipelined=pipelined), True


def _rough_compute_bytes(h: Hparams, homes: list[int], context: Context, settings: EngineSpec) -> list[int]:
    """A compute buffer where the graph is not known: the largest of what a dense block and the logits need.

    Our own approximation: the masks, the residual and the widest of feed-forward, attention and output.
    """
    n = min(context.n_ctx, context.n_ubatch)
    heads, head = max(h.n_head, default=0), max(h.n_embd_head_k, default=0)
    cells = context.cells
    mask = cells * n * (2 if settings.flash_attn else FLOAT_BYTES)
    wide = max(3 * max(h.n_ff, default=0), 2 * heads * head, h.n_expert_used * (h.n_embd + h.n_ff_exp))
    attention = 0 if settings.flash_attn else cells * n * heads * FLOAT_BYTES
    outputs = (settings.n_outputs or settings.n_parallel) * h.n_vocab
    largest = mask + max(FLOAT_BYTES * n * (4 * h.n_embd + wide), attention + FLOAT_BYTES * n * 6 * h.n_embd,
                         FLOAT_BYTES * (outputs + 4 * n * h.n_embd))  # fmt: skip
    places = set(homes)
    host = mask + FLOAT_BYTES * n * 2 * h.n_embd
    last = settings.n_devices
    return [largest if place in places else 0 for place in range(last)] + [largest if last in places else host]
