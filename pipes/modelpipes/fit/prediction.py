"""What an engine will take by its spec: its model, and what else it is given beside it. Reads the files' headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelpipes.fit.flags import in_force
from modelpipes.fit.memory import Predictor
from modelpipes.fit.pictures import picture_bytes
from modelpipes.fit.placement import size_of
from modelpipes.fit.shares import Memory, Share
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import Header
from modelpipes.gguf.shards import read_model


def files_of(spec: EngineSpec) -> tuple[str, ...]:
    """The paths of all that an engine with this spec, in force, loads."""
    draft = (spec.draft.model,) if spec.draft else ()
    projector = (spec.projector,) if spec.projector else ()
    return (spec.model, *draft, *projector, *spec.adapters)


class EnginePredictor:
    """Predicts one engine's memory under many settings: the headers of its files are read once."""

    def __init__(self, spec: EngineSpec) -> None:
        """Of the spec only its files count. Raises FileError for one that cannot be read or is none of its kind."""
        told = in_force(spec)
        self.header = read_model(told.model)
        self._model = Predictor(self.header)
        self._draft = Predictor(read_model(told.draft.model)) if told.draft else None
        self._projector = read_model(told.projector) if told.projector else None
        self._adapters = [read_model(path) for path in told.adapters]

    @property
    def n_layers(self) -> int:
        """Blocks of the model, and its output."""
        return self._model.hparams.n_layer + 1

    def with_context(self, spec: EngineSpec) -> EngineSpec:
        """The spec with the context that the model was trained with, where it asks for that one by 0."""
        return spec if spec.n_ctx else replace(spec, n_ctx=self._model.hparams.n_ctx_train)

    def __call__(self, spec: EngineSpec) -> Memory:
        """The memory under a spec in force, in bytes; UsageError where llama.cpp would refuse it."""
        memory = self._model(spec)
        if self._draft and spec.draft:
            placed = replace(spec.draft, n_devices=spec.n_devices, backend=spec.backend, n_ctx=spec.n_ctx)
            drafted = self._draft(placed)
            # The runtime's part of each device is there once.
            memory = _beside(memory, [replace(share, overhead_bytes=0) for share in drafted.devices], drafted.host)
        for adapter in self._adapters:
            devices, host = self._model.place_adapter(adapter, spec)
            memory = _beside(memory, [Share(n_bytes) for n_bytes in devices], Share(host))
        if self._projector:
            # clip.cpp puts all of it on the first device.
            share = Share(_weights_bytes(self._projector), compute_bytes=picture_bytes(self._projector))
            nothing = [Share()] * (spec.n_devices - 1)
            memory = _beside(memory, [share, *nothing] if spec.n_devices else [], Share() if spec.n_devices else share)
        return memory if spec.memory is None else own_estimate(memory, spec, spec.memory)


def own_estimate(memory: Memory, spec: EngineSpec, own_bytes: int) -> Memory:
    """The memory with a person's own estimate in place of what is predicted where the engine computes.

    Of several devices each takes its part as it was predicted; what the host has beside them stays.
    """
    if not memory.devices or spec.n_gpu_layers == 0:
        return Memory(memory.devices, Share(own_bytes), "own")
    predicted = memory.device_bytes
    parts = [own_bytes * share.total_bytes // predicted for share in memory.devices]
    parts[0] += own_bytes - sum(parts)
    return Memory(tuple(map(Share, parts)), memory.host, "own")


def _weights_bytes(header: Header) -> int:
    return sum(size_of(tensor).plain for tensor in header.tensors)


def _beside(memory: Memory, devices: Sequence[Share], host: Share) -> Memory:
    """The memory of a model with that of something else; then the whole is an estimate."""
    both = tuple(_sum(ours, theirs) for ours, theirs in zip(memory.devices, devices, strict=True))
    return Memory(both, _sum(memory.host, host), "generic")


def _sum(ours: Share, theirs: Share) -> Share:
    return Share(
        ours.model_bytes + theirs.model_bytes,
        ours.context_bytes + theirs.context_bytes,
        ours.compute_bytes + theirs.compute_bytes,
        ours.overhead_bytes + theirs.overhead_bytes,
    )
