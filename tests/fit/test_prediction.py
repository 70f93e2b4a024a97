"""What an engine takes with what else it is given: a projector, adapters, a model that drafts, experts on the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from modelpipes.errors import FileError
from modelpipes.fit.flags import in_force
from modelpipes.fit.memory import predict_memory
from modelpipes.fit.prediction import EnginePredictor
from modelpipes.fit.shares import Memory
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.header import read_header
from tests.fit.shapes import SHAPES, write_model
from tests.projector import PROJECTORS, write_projector

MIB = 1 << 20
CARD = EngineSpec(backend="cuda")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "llama.gguf"
    write_model(path, SHAPES["llama-3.2-1b"]())
    return str(path)


def write_tensors(path: Path, architecture: str, tensors: dict[str, int]) -> str:
    """A file with tensors of so many bytes."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, n_bytes in tensors.items():
        writer.add_tensor(name, np.zeros(n_bytes // 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def taken(spec: EngineSpec) -> Memory:
    spec = in_force(spec)
    return EnginePredictor(spec)(spec)


def test_alone_it_is_what_the_model_takes(llama: str) -> None:
    assert taken(replace(CARD, model=llama)) == predict_memory(read_header(llama), CARD)


def test_a_projector_lies_on_the_first_device_or_on_the_host_without_one(llama: str, tmp_path: Path) -> None:
    projector = write_tensors(tmp_path / "p.gguf", "clip", {"v.a": MIB, "mm.b": MIB})
    for n_devices in (0, 1, 2):
        spec = replace(CARD, model=llama, n_devices=n_devices)
        alone, found = taken(spec), taken(replace(spec, arguments=("--mmproj", projector)))
        more = [new.total_bytes - old.total_bytes for new, old in zip(found.devices, alone.devices, strict=True)]
        assert more == [2 * MIB, 0][:n_devices]
        assert found.host.total_bytes - alone.host.total_bytes == (0 if n_devices else 2 * MIB)
        assert found.estimate == "generic"


@pytest.mark.parametrize("name", PROJECTORS)
def test_what_a_picture_is_computed_in_is_counted_beside_the_projectors_weights(
    name: str, llama: str, tmp_path: Path
) -> None:
    """As b11434 reserves it for these; `tests.bench.counted` measures the same."""
    projector = str(write_projector(tmp_path / "p.gguf", PROJECTORS[name]))
    alone, found = (
        taken(replace(CARD, model=llama, arguments=arguments)) for arguments in ((), ("--mmproj", projector))
    )
    more = found.devices[0].compute_bytes - alone.devices[0].compute_bytes
    assert round(more / MIB, 2) == {"gemma3": 121.25, "mlp": 19.32, "idefics3": 21.0}[PROJECTORS[name].kind]


@pytest.mark.parametrize("n_devices", [0, 1, 2])
def test_a_persons_own_estimate_takes_the_place_of_the_prediction_where_the_engine_computes(
    llama: str, n_devices: int
) -> None:
    spec = replace(CARD, model=llama, n_devices=n_devices, n_gpu_layers=None if n_devices else 0)
    predicted, own = taken(spec), taken(replace(spec, memory=7 * MIB + 1))
    assert own.estimate == "own"
    if n_devices:
        assert (own.device_bytes, own.host) == (7 * MIB + 1, predicted.host)
        assert all(share.total_bytes for share in own.devices)
    else:
        assert own.host.total_bytes == 7 * MIB + 1


def test_with_no_layer_on_the_card_the_own_estimate_is_of_the_host(llama: str) -> None:
    own = taken(replace(CARD, model=llama, n_gpu_layers=0, memory=7 * MIB))
    assert own.host.total_bytes == 7 * MIB
    assert own.devices == taken(replace(CARD, model=llama, n_gpu_layers=0)).devices


def test_an_adapter_lies_with_the_weights_that_it_changes(llama: str, tmp_path: Path) -> None:
    names = [f"blk.{layer}.attn_q.weight.lora_{side}" for layer in (0, 15) for side in "ab"]
    adapter = write_tensors(tmp_path / "a.gguf", "llama", dict.fromkeys(names, MIB))
    spec = replace(CARD, model=llama, n_gpu_layers=2)  # the output and block 15
    alone, found = taken(spec), taken(replace(spec, arguments=("--lora", adapter)))
    assert found.device_bytes - alone.device_bytes == 2 * MIB
    assert found.host.total_bytes - alone.host.total_bytes == 2 * MIB


def test_a_model_that_drafts_is_counted_whole_but_for_the_runtime_which_is_there_once(llama: str) -> None:
    spec = replace(CARD, model=llama)
    alone, found = taken(spec), taken(replace(spec, arguments=("-md", llama)))
    one, both = alone.devices[0], found.devices[0]
    assert (both.model_bytes, both.context_bytes) == (2 * one.model_bytes, 2 * one.context_bytes)
    # The logits of what was drafted, too.
    more = both.compute_bytes - 2 * one.compute_bytes
    assert 0 <= more < one.compute_bytes
    assert both.overhead_bytes == one.overhead_bytes


def test_the_experts_of_the_first_blocks_leave_the_device_and_of_all_blocks_are_all(tmp_path: Path) -> None:
    path = tmp_path / "moe.gguf"
    write_model(path, SHAPES["qwen3-30b-a3b"]())
    whole, some, most, every = (
        taken(replace(CARD, model=str(path), arguments=arguments))
        for arguments in ((), ("-ncmoe", "12"), ("-ncmoe", "48"), ("-cmoe",))
    )
    assert most.devices[0].model_bytes == every.devices[0].model_bytes
    assert most.host.model_bytes == every.host.model_bytes
    experts = whole.devices[0].model_bytes - every.devices[0].model_bytes
    assert whole.devices[0].model_bytes - some.devices[0].model_bytes == pytest.approx(experts / 4, rel=0.1)
    assert (whole.estimate, some.estimate, every.estimate) == ("exact", "generic", "exact")


def test_a_file_that_is_missing_is_named(llama: str) -> None:
    with pytest.raises(FileError, match=r"no-such\.gguf"):
        taken(replace(CARD, model=llama, arguments=("--mmproj", "no-such.gguf")))
