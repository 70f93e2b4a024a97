"""Ollama's store: which blob is which model, by the names that `ollama list` prints.

`manifests/REGISTRY/NAMESPACE/NAME/TAG` is the JSON of an image; the layer of type MODEL_LAYER names the blob,
a GGUF file. Models of other formats, and those that run in the cloud, have no such layer. Source: Ollama's
server/manifest.go and types/model/name.go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import msgspec

from modelpipes.gguf.modelfile import Candidate, ModelFile, Problem, model_of, printable
from modelpipes.gguf.walk import check_file, read_small_file

MODEL_LAYER = "application/vnd.ollama.image.model"
SUBFOLDERS = ("manifests", "blobs")
DEFAULT_REGISTRY = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
MAX_MANIFEST_BYTES = 1 << 20  # real ones have 1 kB
_DIGEST = "sha256[:-]([0-9a-f]{64})"


class _Layer(msgspec.Struct):
    digest: str
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    layers: list[_Layer] | None = None


def is_store(subfolders: list[str]) -> bool:
    """Whether a folder with these subfolders is a store."""
    return all(name in subfolders for name in SUBFOLDERS)


def find_in_store(store: str) -> Iterator[ModelFile | Problem]:
    """Every model of a store under its Ollama name, such as `llama3.1:8b` or `hf.co/org/repo:Q4_K_M`."""
    yield from _below(store, os.path.join(store, "manifests"), ())


def ollama_name(registry: str, namespace: str, name: str, tag: str) -> str:
    """What a person types for a model: the defaults are left out."""
    parts = [name]
    if registry != DEFAULT_REGISTRY:
        parts = [registry, namespace, name]
    elif namespace != DEFAULT_NAMESPACE:
        parts = [namespace, name]
    return printable(f"{'/'.join(parts)}:{tag}")


def _below(store: str, folder: str, above: tuple[str, ...]) -> Iterator[ModelFile | Problem]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield Problem(folder, f"the folder cannot be read: {error.strerror}")
        return
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            if len(above) < 3:
                yield from _below(store, path, (*above, name))
        elif len(above) == 3:
            found = _read_manifest(store, path, ollama_name(*above, name))
            if found is not None:
                yield found


def _read_manifest(store: str, path: str, name: str) -> ModelFile | Problem | None:
    try:
        manifest = msgspec.json.decode(read_small_file(path, MAX_MANIFEST_BYTES), type=_Manifest)
    except OSError as error:
        return Problem(path, f"the manifest of {name} cannot be read: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Problem(path, f"this is no manifest: run `ollama pull {name}`")
    for layer in manifest.layers or ():
        if layer.media_type == MODEL_LAYER:
            digest = re.fullmatch(_DIGEST, layer.digest)
            if digest is None:  # and a digest cannot lead out of the store
                return Problem(path, f"the manifest of {name} names no blob: run `ollama pull {name}`")
            blob = check_file(os.path.join(store, "blobs", f"sha256-{digest[1]}"))
            if isinstance(blob, Candidate):
                return model_of(name, [blob])
            return Problem(blob.path, f"the blob of {name}: {blob.reason}; run `ollama pull {name}`")
    return None
