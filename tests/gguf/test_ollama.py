from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from modelpipes.gguf.modelfile import ModelFile, Problem
from modelpipes.gguf.ollama import MAX_MANIFEST_BYTES, MODEL_LAYER
from modelpipes.gguf.scan import find_model_files


class Store:
    """An Ollama store with what a test pulls into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs").mkdir(parents=True)
        (path / "manifests").mkdir()

    def pull(self, name: str, content: str = "weights") -> Path:
        """Pull `REGISTRY/NAMESPACE/MODEL/TAG`; the model's blob."""
        digest = hashlib.sha256(content.encode()).hexdigest()
        blob = self.path / "blobs" / f"sha256-{digest}"
        blob.write_text(content)
        layers = [
            {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'0' * 64}", "size": 1},
            {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": len(content)},
        ]
        self.write(name, json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
        return blob

    def write(self, name: str, manifest: str) -> Path:
        path = self.path / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(manifest)
        return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def find(place: Path) -> tuple[dict[str, str], dict[str, str]]:
    found = list(find_model_files([str(place)]))
    return (
        {each.name: each.path for each in found if isinstance(each, ModelFile)},
        {each.path: each.reason for each in found if isinstance(each, Problem)},
    )


def test_models_have_the_names_that_ollama_list_prints(store: Store) -> None:
    blobs = {
        "llama3.1:8b": store.pull("registry.ollama.ai/library/llama3.1/8b", "llama"),
        "someone/their-model:latest": store.pull("registry.ollama.ai/someone/their-model/latest", "theirs"),
        "hf.co/org/repo:Q4_K_M": store.pull("hf.co/org/repo/Q4_K_M", "hub"),
    }
    assert find(store.path) == ({name: str(blob) for name, blob in blobs.items()}, {})


def test_a_store_is_known_wherever_it_lies(store: Store) -> None:
    store.pull("registry.ollama.ai/library/tiny/latest")
    (store.path.parent / "other").mkdir()
    assert list(find(store.path.parent)[0]) == ["tiny:latest"]


def test_two_tags_of_one_blob_are_two_names(store: Store) -> None:
    for tag in ("8b", "latest"):
        store.pull(f"registry.ollama.ai/library/llama3.1/{tag}")
    assert sorted(find(store.path)[0]) == ["llama3.1:8b", "llama3.1:latest"]


def test_a_size_is_the_blobs(store: Store) -> None:
    store.pull("registry.ollama.ai/library/tiny/latest", "12345")
    (model,) = find_model_files([str(store.path)])
    assert isinstance(model, ModelFile)
    assert model.size_bytes == 5


def test_models_that_are_no_gguf_files_are_passed_over(store: Store) -> None:
    store.write("registry.ollama.ai/library/gpt-oss/120b-cloud", '{"layers": null}')
    store.write("registry.ollama.ai/library/tensors/latest", '{"layers": [{"mediaType": "x", "digest": "y"}]}')
    assert find(store.path) == ({}, {})


def test_a_blob_that_is_gone_is_a_problem_that_says_how_to_get_it_back(store: Store) -> None:
    blob = store.pull("registry.ollama.ai/library/tiny/latest")
    blob.unlink()
    reason = "the blob of tiny:latest: No such file or directory; run `ollama pull tiny:latest`"
    assert find(store.path) == ({}, {str(blob): reason})


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "torn {",
        "[]",
        '{"layers": 1}',
        '{"layers": [{"mediaType": 3}]}',
        "\xff",
        "[" * 100_000,
        " " * (2 * MAX_MANIFEST_BYTES),
    ],
    ids=repr,
)
def test_a_manifest_that_is_none_is_a_problem(store: Store, manifest: str) -> None:
    path = store.write("registry.ollama.ai/library/tiny/latest", manifest)
    assert find(store.path) == ({}, {str(path): "this is no manifest: run `ollama pull tiny:latest`"})


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:", "md5:1", f"sha256:{'A' * 64}"])
def test_a_digest_cannot_lead_out_of_the_store(store: Store, digest: str) -> None:
    manifest = json.dumps({"layers": [{"mediaType": MODEL_LAYER, "digest": digest}]})
    path = store.write("registry.ollama.ai/library/tiny/latest", manifest)
    reason = "the manifest of tiny:latest names no blob: run `ollama pull tiny:latest`"
    assert find(store.path) == ({}, {str(path): reason})


def test_what_else_lies_among_the_manifests_is_no_crash_and_nothing_waits(store: Store) -> None:
    library = store.path / "manifests/registry.ollama.ai/library"
    store.pull("registry.ollama.ai/library/tiny/latest")
    os.mkfifo(library / "tiny" / "pipe")
    (library / "tiny" / "folder").mkdir()
    (library / "tiny" / "dangling").symlink_to("nowhere")
    (library / "tiny" / "circle").symlink_to("circle")
    (library / "loop").symlink_to("..")
    (library / "stray").write_text("{}")
    names, problems = find(store.path)
    assert list(names) == ["tiny:latest"]
    assert {os.path.basename(path): reason for path, reason in problems.items()} == {
        "pipe": "this is no manifest: run `ollama pull tiny:pipe`",
        "circle": "the manifest of tiny:circle cannot be read: Too many levels of symbolic links",
        "dangling": "the manifest of tiny:dangling cannot be read: No such file or directory",
    }


def test_a_name_that_is_no_unicode_can_be_shown(store: Store) -> None:
    store.pull(os.fsdecode(b"registry.ollama.ai/library/caf\xe9/la\ntest"))
    assert list(find(store.path)[0]) == ["caf\ufffd:la test"]
