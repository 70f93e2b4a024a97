"""What a user's own arguments of an engine add to its spec, or override: llama.cpp's flags read into the fields.

The names follow llama.cpp's common/arg.cpp (b11434). A value that llama.cpp would refuse is passed over: the engine
says so itself, and better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.types import CACHE_TYPES


def _number(text: str) -> int:
    return int(text)


def _layers(text: str) -> int | None:
    return None if text in ("auto", "all") else int(text)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(share) for share in text.replace("/", ",").split(","))


def _cache_type(text: str) -> str:
    if text not in CACHE_TYPES:
        raise ValueError(text)
    return text


def _is_on(text: str) -> bool:
    return text != "off"


def _files(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _scaled(text: str) -> tuple[str, ...]:
    return tuple(each.rpartition(":")[0] or each for each in text.split(","))


# flags: the field of the spec, and how its value is read; `draft.` fields are those of the model that drafts.
_VALUES: Mapping[tuple[str, ...], tuple[str, Callable[[str], Any]]] = {
    ("-m", "--model"): ("model", str),
    ("-c", "--ctx-size"): ("n_ctx", _number),
    ("-b", "--batch-size"): ("n_batch", _number),
    ("-ub", "--ubatch-size"): ("n_ubatch", _number),
    ("-np", "--parallel"): ("n_parallel", _number),
    ("-t", "--threads"): ("threads", _number),
    ("-fa", "--flash-attn"): ("flash_attn", _is_on),
    ("-ctk", "--cache-type-k"): ("type_k", _cache_type),
    ("-ctv", "--cache-type-v"): ("type_v", _cache_type),
    ("-ngl", "--gpu-layers", "--n-gpu-layers"): ("n_gpu_layers", _layers),
    ("-ts", "--tensor-split"): ("tensor_split", _shares),
    ("-ncmoe", "--n-cpu-moe"): ("n_cpu_moe", _number),
    ("-mm", "--mmproj"): ("projector", str),
    ("--lora",): ("adapters", _files),
    ("--lora-scaled",): ("adapters", _scaled),
    ("-md", "--model-draft", "--spec-draft-model"): ("draft.model", str),
    ("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"): ("draft.n_gpu_layers", _layers),
    ("-ctkd", "--cache-type-k-draft", "--spec-draft-type-k"): ("draft.type_k", _cache_type),
    ("-ctvd", "--cache-type-v-draft", "--spec-draft-type-v"): ("draft.type_v", _cache_type),
    ("--spec-draft-n-max",): ("n_draft", _number),
}
_SWITCHES: Mapping[tuple[str, ...], tuple[str, bool]] = {
    ("-cmoe", "--cpu-moe"): ("cpu_moe", True),
    ("-kvu", "--kv-unified"): ("kv_unified", True),
    ("-no-kvu", "--no-kv-unified"): ("kv_unified", False),
}
# They move memory between devices and host, or add some, in ways that `memory` has no rules for.
_UNCOUNTED = frozenset(
    ("-ot", "--override-tensor", "-sm", "--split-mode", "-mg", "--main-gpu", "-dev", "--device", "-nkvo",
     "--no-kv-offload", "--swa-full", "--rpc", "-ncffn", "--n-cpu-ffn", "--moe-cache-mib", "--no-op-offload",
     "--no-mmproj-offload", "--control-vector", "--control-vector-scaled", "--override-kv", "-mu", "--model-url",
     "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo", "-mmu", "--mmproj-url", "-hfd", "-hfrd", "--hf-repo-draft",
     "--spec-draft-hf")
)  # fmt: skip
_READERS = {flag: meant for flags, meant in _VALUES.items() for flag in flags}
_MEANT = {flag: meant for flags, meant in _SWITCHES.items() for flag in flags}
# Less is another's to refuse.
_LEAST = {"n_ctx": 0, "n_batch": 1, "n_ubatch": 1, "n_parallel": 1, "n_cpu_moe": 0, "n_draft": 0}
# What a model that drafts has of its own; all else is as of the model that it drafts for.
_OF_DRAFTS = ("model", "n_gpu_layers", "type_k", "type_v")
DRAFTED_TOKENS = 3  # at a time: common_params_speculative_draft of llama.cpp's common/common.h


def in_force(spec: EngineSpec) -> EngineSpec:
    """The spec with what its own arguments say in its fields; twice is the same as once. Pure.

        in_force(EngineSpec(arguments=("-c", "65536"))).n_ctx == 65536

    Of two values llama.cpp takes the later; adapters add up.
    """
    told: dict[str, Any] = {}
    adapters: list[str] = []
    uncounted: list[str] = []
    for flag, value in _pairs(spec.arguments):
        if flag in _UNCOUNTED:
            uncounted.append(flag)
        elif flag in _MEANT:
            field, meaning = _MEANT[flag]
            told[field] = meaning
        elif flag in _READERS and value:  # without one llama.cpp refuses it, but for a bare -fa, which is our default
            field, read = _READERS[flag]
            try:
                meant = read(value)
            except ValueError:
                continue
            if isinstance(meant, int) and meant < _LEAST.get(field, meant):
                continue
            if field == "adapters":
                adapters += meant
            else:
                told[field] = meant
    # A physical batch is never larger than the logical one; ours are equal.
    n_ubatch = min(told.pop("n_batch", spec.n_ubatch), told.pop("n_ubatch", spec.n_ubatch))
    drafts = {field.removeprefix("draft."): told.pop(field) for field in list(told) if field.startswith("draft.")}
    n_draft = told.pop("n_draft", DRAFTED_TOKENS)
    found = replace(
        spec, **told, n_ubatch=n_ubatch, adapters=tuple(adapters) or spec.adapters, uncounted=tuple(uncounted)
    )
    if spec.draft:
        drafts = {name: getattr(spec.draft, name) for name in _OF_DRAFTS} | drafts
    return _with_draft(found, drafts, n_draft) if drafts.get("model") else found


def _with_draft(spec: EngineSpec, own: Mapping[str, Any], n_draft: int) -> EngineSpec:
    """The spec with a model that drafts for it: `common_base_params_to_speculative` in common/speculative.cpp.

    What was drafted is looked at all at once, which gives logits of so many more tokens
    (`common_speculative_get_output_limits`).
    """
    draft = EngineSpec(
        n_ctx=spec.n_ctx, n_ubatch=spec.n_ubatch, n_parallel=spec.n_parallel, kv_unified=spec.kv_unified,
        flash_attn=spec.flash_attn, n_devices=spec.n_devices, tensor_split=spec.tensor_split, backend=spec.backend,
    )  # fmt: skip
    n_outputs = min(spec.n_ubatch, spec.n_parallel * (1 + n_draft))
    return replace(spec, draft=replace(draft, **own), n_outputs=n_outputs)


def _pairs(arguments: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Every flag with what may be its value: the word behind it, or, as the embedded engine takes it, after `=`."""
    for place, word in enumerate(arguments):
        flag, has_value, value = word.partition("=")
        if not has_value and place + 1 < len(arguments):
            value = arguments[place + 1]
        yield flag, value
