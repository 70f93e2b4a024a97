"""The files of config/, and what they claim."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelpipes.config.example import CASES, GB, write_example
from modelpipes.config.reading import load, read
from modelpipes.config.settings import SECTIONS, Config, Use, keys
from modelpipes.fit import EngineSpec, predict_memory
from modelpipes.gguf import read_model
from modelpipes.machine.cards import _TOTAL_MIB, parse_gpu
from modelpipes.values.units import parse_count
from tests.fit.shapes import SHAPES, TensorType, write_model

FOLDER = Path(__file__).parent.parent.parent / "config"
CARDS = {"rtx4080": "RTX 4080", "rtx3060": "RTX 3060", "rtx3090": "RTX 3090", "cpu": None}
# The types of most tensors of a file that is called so; the shapes are of Q4_K_M, and keep their larger tensors.
TYPES = {"Q8_0": TensorType.Q8_0, "Q6_K": TensorType.Q6_K, "Q5_K_M": TensorType.Q5_K, "Q4_K_M": TensorType.Q4_K}
MODELS = ("llama-3.1-8b", "qwen2.5-7b", "gemma-3-12b", "mistral-nemo-12b", "phi-3.5-mini", "llama-3.2-1b")


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.toml").read_text()


def uncommented(text: str) -> str:
    """With every key in use; of the two ways to give the gateway's key, one."""
    text = re.sub(r"^# key = .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "card"), CARDS.items())
def test_a_cards_file_is_what_the_program_writes_for_it(name: str, card: str | None) -> None:
    total_bytes = parse_gpu(card).cards[0].total_bytes if card else None
    assert text_of(name) == write_example(card or "cpu", total_bytes)


def test_a_4090_has_the_numbers_of_a_3090() -> None:
    config = [read(write_example(name, parse_gpu(name).cards[0].total_bytes), "/").config for name in ("3090", "4090")]
    assert config[0] == config[1]


@pytest.mark.parametrize("name", CARDS)
def test_every_key_stands_in_it_and_is_explained_once(name: str) -> None:
    text = uncommented(text_of(name)).replace("[use.one]", "[use.NAME]").replace("[models.qwen]", "[models.NAME]")
    for heading, kind in SECTIONS.items():
        section = text.partition(f"\n[{heading}]\n")[2].partition("\n[")[0]
        assert section, heading
        for key in keys(kind):
            if (heading, key.name) == ("server", "key"):
                assert "# key = " in text_of(name)
                continue
            assert re.search(rf"^{key.name} = ", section, re.MULTILINE), f"{heading}.{key.name}"
            assert section.count(f"# {key.text}\n") == 1, f"{heading}.{key.name}"


@pytest.mark.parametrize("name", CARDS)
def test_it_is_read_as_it_stands_and_with_every_key_in_use(name: str) -> None:
    stands, used = (read(text, "/").config for text in (text_of(name), uncommented(text_of(name))))
    assert list(stands.use) == list(used.use) == list(CASES)
    assert not stands.models and list(used.models) == ["qwen"]


def test_what_is_commented_out_without_brackets_is_the_default() -> None:
    default = Config()
    for heading, kind in SECTIONS.items():
        if heading.endswith(".NAME"):
            continue
        for key in keys(kind):
            if key.default is not None:
                section = getattr(default, heading.replace("-", "_"))
                assert getattr(section, key.name) == key.default
            else:
                assert re.search(r"\[.+\]", key.text), f"{heading}.{key.name} does not say what holds without it"


def test_the_reference_card_has_one_of_14_two_of_7_and_three_of_four_and_a_half_gb() -> None:
    uses = load(str(FOLDER / "rtx4080.toml")).config.use
    assert {name: (use.models, use.memory) for name, use in uses.items()} == {
        "one": (1, 14 * GB),
        "two": (2, 7 * GB),
        "three": (3, 4_500_000_000),
    }


@pytest.mark.parametrize("card", _TOTAL_MIB)
def test_every_known_cards_use_cases_fit_it_all_at_once(card: str) -> None:
    (found,) = parse_gpu(card).cards
    uses = read(write_example(card, found.total_bytes), "/").config.use
    for use in uses.values():
        assert 0 < use.memory * use.models < found.total_bytes


@pytest.mark.parametrize("name", ["rtx4080", "rtx3060", "rtx3090"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_the_advised_quantisation_takes_no_more_than_its_share(
    name: str, model: str, tmp_path: Path
) -> None:
    shape = SHAPES[model]()
    for case, use in load(str(FOLDER / f"{name}.toml")).config.use.items():
        write_model(tmp_path / "model.gguf", shape)
        parameters = sum(math.prod(tensor.dims) for tensor in shape.tensors)
        quant = advised(use, parameters)
        if quant not in TYPES:
            continue
        kinds = {TensorType.Q4_K, TensorType.Q5_K, TensorType.F16} if quant == "Q8_0" else {TensorType.Q4_K}
        tensors = [replace(one, type=TYPES[quant] if one.type in kinds else one.type) for one in shape.tensors]
        write_model(tmp_path / "model.gguf", replace(shape, tensors=tensors))
        assert use.ctx_size and use.kv_type
        settings = EngineSpec(
            n_ctx=use.ctx_size, type_k=use.kv_type, type_v=use.kv_type, n_ubatch=128, backend="cuda", n_devices=1
        )
        memory = predict_memory(read_model(str(tmp_path / "model.gguf")), settings)
        assert memory.device_bytes <= use.memory, f"{case}: {quant}"


def advised(use: Use, parameters: int) -> str | None:
    sizes = sorted((parse_count(size), quant) for size, quant in use.quant.items())
    return next((quant for most, quant in sizes if parameters <= most), None)
